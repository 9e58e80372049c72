"""Memory, arithmetic and time of a training stage before it runs, for `plan`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lineage.errors import BadInput
from training.attention import choose_attention, set_attention
from training.choices import WITHOUT_REFERENCE, ZERO_ENGINES
from training.config import ModelConfig, TrainingConfig
from training.engine_memory import DIVIDED, held_by
from training.float8 import require_float8
from training.flops import Arithmetic, arithmetic_of
from training.hardware import Precision, quickest_precision
from training.model import count_parameters, plain_model
from training.placement import require_possible
from training.rehearsal import Pass, rehearse
from training.resources import Resources
from training.row_shape import RowShape, assumed_rows
from training.skeleton import skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedModel

START_SECONDS = 6.0  # imports, model, tokenizer
# Useful arithmetic per second in whole training steps, where this device was never calibrated: measured with 6 M parameters
# on AVX-512 BF16 cores, per thread; for GPUs 40 % of an A100's bf16 peak (312 TFLOP/s), as well-run training reaches
# (Chowdhery et al. 2022, table 3).
CPU_FLOPS: dict[Precision, float] = {"bf16": 150e9, "fp16": 60e9, "fp32": 60e9, "fp8": 150e9}
GPU_FLOPS: dict[Precision, float] = {"bf16": 125e12, "fp16": 125e12, "fp32": 10e12, "fp8": 125e12}
TOKENS_PER_PARAMETER = 20  # compute-optimal pretraining (Hoffmann et al. 2022, Chinchilla, table 3)
# Resident memory of a process that trains a model of 20,000 weights: interpreter and libraries.
PROCESS_BYTES = 445_000_000
LIBRARY_BYTES = {"peft": 80_000_000, "deepspeed": 195_000_000}
# On a CPU, holes in the C library's heap stay resident: this share of what small tensors pass through it, as the median of
# ten configurations showed (docs/LOG.md).
HEAP_SHARE = 0.065


@dataclass(frozen=True)
class Memory:
    """The peak of one process, in bytes, by what holds them.

    Attributes:
        weights, gradients, optimizer: as the engine holds them from step to step (`training.engine_memory`).
        activations: what the forward pass keeps for the backward pass, logits apart.
        logits: the scores of all targets over the vocabulary.
        working: what the backward pass needs for a moment, buffers for communication, and holes in the heap.
        process: interpreter and libraries; on a GPU its context.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    working: int
    process: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Place:
    """Where a stage would run.

    Attributes:
        gpu: on GPUs; else on the CPU.
        threads: CPU threads per process.
        memory_bytes: what each process may take; None where that is not known here.
    """

    gpu: bool
    threads: int
    memory_bytes: int | None


@dataclass(frozen=True)
class Estimate:
    """What one stage will take.

    Attributes:
        parameters, trained: weights of the model, and those that are trained.
        memory: peak per process.
        tokens: positions that are read, padding included.
        flops: floating-point operations of the model itself, over the whole stage.
        seconds: wall clock, where nothing else uses the machine.
    """

    parameters: int
    trained: int
    memory: Memory
    tokens: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class Stage:
    """A training stage as `plan` knows it before it runs.

    Attributes:
        base: the folder of an existing model; None for a new one.
        vocabulary: tokens of the tokenizer.
        seq_len: tokens of a packed row.
        counted: the rows of the data version, where there is one.
    """

    model: ModelConfig
    training: TrainingConfig
    resources: Resources
    base: Path | None
    vocabulary: int
    seq_len: int
    counted: RowShape | None = None

    @property
    def rows(self) -> RowShape:
        """What the packed rows are like: those of the data version, else what is assumed."""
        return self.counted or assumed_rows(self.training.objective, self.seq_len)

    def precision(self, gpu: bool) -> Precision:
        """Returns what matrix products are computed in, where the run begins here."""
        auto: Precision = "bf16" if gpu else quickest_precision("cpu")
        return auto if self.training.precision == "auto" else self.training.precision

    @property
    def tokens_per_step(self) -> int:
        """Positions of one update, padding included."""
        return self.training.rows_per_step * self.seq_len

    @property
    def micro_batch(self) -> int:
        """Rows that a process computes at a time.

        Raises:
            BadInput: the rows cannot be divided equally.
        """
        training, processes = self.training, self.resources.processes
        if training.rows_per_step % (processes * training.accumulation):
            shares, rows = processes * training.accumulation, training.rows_per_step
            problem = f"is {rows}, no multiple of {processes} processes x accumulation {training.accumulation}"
            fix = f"use {-(-rows // shares) * shares}, or another number of processes"
            raise BadInput("job.yaml", "config.training.rows_per_step", problem, fix)
        return training.rows_per_step // (processes * training.accumulation)

    def skeleton(self) -> "PreTrainedModel":
        """Returns the model on the meta device."""
        recompute = self.resources.activation_checkpointing
        return skeleton(self.model, self.base, self.vocabulary, self.training, recompute, self.seq_len)

    def work(self, arithmetic: Arithmetic, tokens: int) -> float:
        """Returns the floating-point operations of training on so many positions."""
        return arithmetic.training(tokens, round(tokens * self.rows.target_share), self.seq_len)

    def scoring(self, arithmetic: Arithmetic, rows: int) -> float:
        """Returns the floating-point operations of scoring rows without learning from them."""
        tokens = rows * self.seq_len
        return arithmetic.scoring(tokens, round(tokens * self.rows.target_share), self.seq_len)

    def computed(self, arithmetic: Arithmetic) -> float:
        """Returns the floating-point operations of one update that a device really makes.

        Beside the model's own: what the backward pass computes again, and the mismatched answers that KTO's zero point is
        measured on.
        """
        again = self.resources.activation_checkpointing == "full"
        passes = again + (self.training.objective == "kto" and self.training.kto_loss == "kto")
        return self.work(arithmetic, self.tokens_per_step) + passes * self.scoring(arithmetic, self.training.rows_per_step)

    def scored_rows(self) -> int:
        """Returns how many rows are scored beside the updates: by validations, and by the reference at first."""
        training, rows = self.training, self.rows
        validations = 2 + (training.steps // training.validate_every if training.validate_every else 0)
        compared = 2 if training.objective == "kto" and training.kto_loss == "kto" else 1  # with mismatched answers too
        learnt = training.steps * training.rows_per_step
        once = (min(learnt, len(rows.tokens)) if rows.is_counted else learnt) + training.validation_rows
        has_reference = training.objective == "kto" or (
            training.objective == "dpo" and training.dpo_loss not in WITHOUT_REFERENCE
        )
        return compared * (validations * training.validation_rows + (once if has_reference else 0))


def estimate(stage: Stage, place: Place, flops_per_second: float | None = None) -> Estimate:
    """Estimates one stage.

    Args:
        flops_per_second: arithmetic of one process, where it was measured (`goldpath plan --calibrate`).
    """
    training, resources = stage.training, stage.resources
    model = stage.skeleton()
    parameters, trained = count_parameters(model)
    arithmetic = arithmetic_of(model)
    tokens = training.steps * stage.tokens_per_step
    precision = stage.precision(place.gpu)
    table = GPU_FLOPS[precision] if place.gpu else CPU_FLOPS[precision] * place.threads
    computed = training.steps * stage.computed(arithmetic) + stage.scoring(arithmetic, stage.scored_rows())
    seconds = START_SECONDS + computed / ((flops_per_second or table) * resources.processes)
    return Estimate(parameters, trained, memory_of(stage, place), tokens, stage.work(arithmetic, tokens), seconds)


def memory_of(stage: Stage, place: Place) -> Memory:
    """Returns the peak memory of each process: what its engine holds, and a rehearsal of one update.

    Raises:
        BadInput: the stage cannot be trained so.
    """
    training, resources = stage.training, stage.resources
    rows, precision = stage.micro_batch, stage.precision(place.gpu)
    require_possible(resources, training)
    if precision == "fp8" and not place.gpu:
        require_float8(torch.device("cpu"))
    model = stage.skeleton()
    held, sharded = held_by(model, resources, training, precision, place.gpu), "weights" in DIVIDED[resources.engine]
    seen = _rehearse(stage, model, precision, place.gpu, keep_gradients=not sharded)
    logits = stage.rows.most_targets(rows) * stage.vocabulary * (4 if precision == "fp32" else 2)
    # Gradients arise while activations go: what the peak holds beside them is neither's alone.
    working = max(0, seen.peak - seen.kept - (0 if sharded else held.gradients)) + held.moving
    if not place.gpu:
        working += round(HEAP_SHARE * seen.traffic)
    libraries = LIBRARY_BYTES["peft"] if training.lora_rank else 0
    libraries += LIBRARY_BYTES["deepspeed"] if resources.engine in ZERO_ENGINES else 0
    return Memory(
        weights=held.weights,
        gradients=held.gradients,
        optimizer=held.optimizer,
        activations=seen.kept - logits,
        logits=logits,
        working=working,
        process=PROCESS_BYTES + libraries,
    )


def _rehearse(stage: Stage, model: "PreTrainedModel", precision: Precision, gpu: bool, keep_gradients: bool) -> Pass:
    rows = stage.micro_batch
    device, plain, asked = torch.device("cuda" if gpu else "cpu"), plain_model(model), stage.resources.attention
    if asked != "auto" or plain._supports_sdpa:  # as `blocks.place_blocks` has it
        set_attention(plain, choose_attention(asked, device, precision, stage.seq_len, plain.config))
    return rehearse(
        model,
        rows=rows,
        seq_len=stage.seq_len,
        targets=stage.rows.most_targets(rows),
        documents=stage.rows.longest_documents(rows),
        half=precision != "fp32",
        half_weights=not keep_gradients and precision == "bf16",
        keep_gradients=keep_gradients,
        micro_batches=min(2, stage.training.accumulation),
    )
