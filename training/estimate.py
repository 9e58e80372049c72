"""Memory and time of a training stage before it runs, for `plan`. Rough by design."""

import json
from dataclasses import dataclass
from pathlib import Path

from training.config import ModelConfig, Resources, TrainingConfig
from training.hardware import Precision, quickest_precision

# Resident memory of Python, torch, transformers and MLflow's client.
PROCESS_BYTES = 650_000_000
START_SECONDS = 6.0  # imports, model, tokenizer, first validation of a small model
# Useful arithmetic per second in whole training steps: measured with 6 M parameters on AVX-512 BF16 cores, per thread;
# for GPUs 40 % of an A100's bf16 peak (312 TFLOP/s), as well-run training reaches (Chowdhery et al. 2022, table 3).
CPU_FLOPS: dict[Precision, float] = {"bf16": 150e9, "fp16": 60e9, "fp32": 60e9, "fp8": 60e9}
GPU_FLOPS: dict[Precision, float] = {"bf16": 125e12, "fp16": 125e12, "fp32": 10e12, "fp8": 125e12}
# Bytes kept for the backward pass per token and layer, as (per hidden unit, per intermediate unit): counted with
# `torch.autograd.graph.saved_tensors_hooks` on transformers' Llama.
ACTIVATION_BYTES: dict[Precision, tuple[int, int]] = {"bf16": (34, 8), "fp16": (34, 8), "fp32": (40, 16), "fp8": (34, 8)}


@dataclass(frozen=True)
class Estimate:
    """What one stage will take.

    Attributes:
        parameters: weights of the model.
        memory_bytes: peak per process; on a GPU nearly all of it is the GPU's.
        seconds: wall clock, where nothing else uses the machine.
    """

    parameters: int
    memory_bytes: int
    seconds: float


def estimate(
    model: ModelConfig,
    training: TrainingConfig,
    resources: Resources,
    *,
    vocabulary: int,
    seq_len: int,
    threads: int,
    gpu: bool,
) -> Estimate:
    """Estimates one stage.

    Memory per process, with P weights of which T are trained, in fp32 master weights:

        4 P + 4 T (gradients) + 8 T (AdamW's moments) + 2 P (bf16 copies), sharded engines hold 1/processes of it
        + tokens of a micro-batch x (layers x activations per token and layer + logits)

    Arithmetic per token (Kaplan et al. 2020, appendix of the scaling laws; Hoffmann et al. 2022): 2 P' forward and 4 P'
    backward, with P' the weights in matrix products, plus 12 x layers x hidden x seq_len for attention; gradient
    checkpointing repeats the forward pass, LoRA leaves out the gradients of frozen weights.

    Args:
        vocabulary: tokens of the tokenizer.
        threads: CPU threads per process, where `gpu` is false.
    """
    total, trained = count(model, training, vocabulary)
    auto: Precision = "bf16" if gpu else quickest_precision("cpu")
    precision = auto if training.precision == "auto" else training.precision
    half = precision != "fp32"
    tokens = training.rows_per_step * seq_len
    shards = resources.processes if resources.engine in ("fsdp2", "zero3") else 1
    state = (4 * total + 12 * trained + (2 * total if half else 0)) // shards
    per_hidden, per_intermediate = ACTIVATION_BYTES[precision]
    per_layer = per_hidden * model.hidden_size + per_intermediate * model.intermediate_size
    kept = model.num_layers * per_layer
    if resources.activation_checkpointing == "full":
        kept = 4 * model.num_layers * model.hidden_size + per_layer
    micro_batch = tokens // (resources.processes * training.accumulation)
    logits = 2 * (2 if half else 4) * vocabulary  # the logits and their gradient
    memory = PROCESS_BYTES + state + micro_batch * (kept + logits)

    products = total - (0 if model.tie_embeddings else vocabulary * model.hidden_size)
    passes = (4 if training.lora_rank else 6) + (2 if resources.activation_checkpointing == "full" else 0)
    attention = 12 * model.num_layers * model.hidden_size * seq_len
    flops = training.steps * tokens * (passes * products + attention)
    rate = GPU_FLOPS[precision] if gpu else CPU_FLOPS[precision] * threads
    return Estimate(total, memory, START_SECONDS + flops / (rate * resources.processes))


def count(model: ModelConfig, training: TrainingConfig, vocabulary: int) -> tuple[int, int]:
    """Returns how many weights a Llama of these dimensions has, and how many of them the stage trains."""
    hidden, wide = model.hidden_size, model.intermediate_size
    narrow = hidden // model.num_heads * model.num_kv_heads
    shapes = {
        "q_proj": (hidden, hidden),
        "k_proj": (hidden, narrow),
        "v_proj": (hidden, narrow),
        "o_proj": (hidden, hidden),
        "gate_proj": (hidden, wide),
        "up_proj": (hidden, wide),
        "down_proj": (wide, hidden),
    }
    layer = sum(inside * outside for inside, outside in shapes.values()) + 2 * hidden
    total = model.num_layers * layer + hidden + vocabulary * hidden * (1 if model.tie_embeddings else 2)
    if not training.lora_rank:
        return total, total
    targets = shapes if isinstance(training.lora_targets, str) else training.lora_targets
    adapters = sum(training.lora_rank * sum(shapes.get(target, (0, 0))) for target in targets)
    return total + model.num_layers * adapters, model.num_layers * adapters


def read_dimensions(folder: Path) -> ModelConfig:
    """Returns the dimensions of a model folder or bundle, from its `config.json`; nothing heavy is imported."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return ModelConfig(
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        num_kv_heads=values.get("num_key_value_heads", values["num_attention_heads"]),
        max_positions=values["max_position_embeddings"],
        tie_embeddings=values.get("tie_word_embeddings", False),
    )
