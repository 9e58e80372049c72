"""The model to train: a new Llama of given dimensions or an existing safetensors folder, with LoRA adapters or without."""

import difflib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lineage.bundle import MANIFEST, UNSAFE_SUFFIXES, verify_bundle
from lineage.errors import BadInput
from training.config import ModelConfig, TrainingConfig

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel


class Vocabulary:
    """What the model must know of the tokenizer: its tokens, and the ids of the special ones.

    Attributes:
        folder: the Hugging Face tokenizer folder that will ship in the bundle.
        ids: token → id.
        size: one more than the highest id: the rows of the embedding.
        special: `bos_token_id`, `eos_token_id`, `pad_token_id`, each where the tokenizer has it.

    Raises:
        BadInput: the folder holds no `tokenizer.json`, or an unreadable one.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BadInput(
                folder, "tokenizer.json", "is missing", "give a folder with a fast tokenizer; run the data stage"
            )
        try:
            self.ids: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
        except Exception as error:  # the Rust library raises bare Exception
            raise BadInput(path, "", f"is not a tokenizer ({error})", "run the data stage again") from None
        self.folder = folder
        self.size = max(self.ids.values()) + 1
        self.special = self._special_ids(folder / "tokenizer_config.json")

    def _special_ids(self, path: Path) -> dict[str, int]:
        names = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found = {}
        for role in ("bos_token", "eos_token", "pad_token"):
            token = names.get(role)
            text = token.get("content") if isinstance(token, dict) else token
            if text in self.ids:
                found[f"{role}_id"] = self.ids[text]
        return found


def build_model(
    config: ModelConfig | None, base: Path | None, vocabulary: Vocabulary, training: TrainingConfig, seq_len: int
) -> "PreTrainedModel":
    """Returns the model before its first step, in fp32 on the CPU; the same arguments give the same weights.

    Args:
        config: the dimensions of a new model; unused where there is a base.
        base: the folder of an existing model, None for a new one.
        seq_len: tokens of a packed row; the model must have that many positions.

    Raises:
        BadInput: no model is described, the vocabularies differ, the rows are too long, or the base is not safe to load.
    """
    torch.manual_seed(training.seed)
    if base is not None:
        model = _load_model(base, vocabulary)
    elif config is None or config.base:
        raise BadInput(
            "job.yaml",
            "parents.base",
            "is missing, and `model` does not describe a new model",
            "name the stage to continue as parent `base`, or give the dimensions of a new model",
        )
    else:
        model = _new_model(config, vocabulary)
    limit = model.config.max_position_embeddings
    if limit < seq_len:
        raise BadInput(
            base or "job.yaml", "max_positions", f"is {limit}, but the packed rows have {seq_len} tokens", "raise it"
        )
    if training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return with_adapters(model, training) if training.lora_rank else model


def with_adapters(model: "PreTrainedModel", training: TrainingConfig) -> "PreTrainedModel":
    """Returns the model with LoRA adapters (Hu et al. 2021) in the layers that `lora_targets` names; only they are trained.

    Raises:
        BadInput: a target is no linear layer of this model.
    """
    from peft import LoraConfig, get_peft_model

    known = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    for target in training.lora_targets:
        if target not in known:
            near = difflib.get_close_matches(target, known, n=1)
            fix = f"did you mean `{near[0]}`?" if near else f"choose from {', '.join(sorted(known))}"
            raise BadInput("job.yaml", "config.training.lora_targets", f"`{target}` is no linear layer of the model", fix)
    adapters = LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        target_modules=list(training.lora_targets),
        lora_dropout=0.0,  # a resumed run repeats the same numbers, and adapters this small do not overfit without it
        task_type="CAUSAL_LM",
    )
    model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft uses transformers' old name
        return get_peft_model(model, adapters)


def choose_attention(device: torch.device, config: TrainingConfig, seq_len: int) -> str:
    """Returns transformers' name of the attention that is fastest to train with; both give the same numbers.

    On CPUs torch's fused kernel does not use bf16 matrix instructions: plain matrix products take half its time at 256
    tokens (whole steps are 19 % faster, 5 % at 512), until their seq_len x seq_len weights outgrow the caches.
    """
    return "eager" if device.type == "cpu" and config.precision == "bf16" and seq_len <= 512 else "sdpa"


def plain_model(model: "PreTrainedModel") -> "PreTrainedModel":
    """Returns the causal language model under its adapters, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Returns how many weights the model has, and how many of them are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def new_config(config: ModelConfig, vocabulary_size: int, special: dict[str, int]) -> "LlamaConfig":
    """Returns transformers' configuration of a new Llama of these dimensions."""
    from transformers import LlamaConfig

    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **special}
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tie_embeddings,
        attn_implementation="sdpa",
        **ids,
    )


def _new_model(config: ModelConfig, vocabulary: Vocabulary) -> "PreTrainedModel":
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(new_config(config, vocabulary.size, vocabulary.special))


def _load_model(folder: Path, vocabulary: Vocabulary) -> "PreTrainedModel":
    _refuse_unsafe(folder)
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise BadInput(folder, "", f"is no model that can be loaded ({first_line})", "give another base") from None
    rows = model.get_input_embeddings().num_embeddings
    known = Vocabulary(folder).ids if (folder / "tokenizer.json").is_file() else vocabulary.ids
    if vocabulary.size > rows or known != vocabulary.ids:
        raise BadInput(
            vocabulary.folder,
            "tokenizer.json",
            f"has another vocabulary ({vocabulary.size} tokens) than the base model in {folder} ({rows} rows)",
            "prepare the data with the base's tokenizer (`data: tokenizer: <base folder>`)",
        )
    _check_plain_head(model, folder)
    return model


def _refuse_unsafe(folder: Path) -> None:
    """A base is a sealed bundle that verifies, or a plain folder whose weights are safetensors and nothing else."""
    if not (folder / "config.json").is_file():
        raise BadInput(folder, "config.json", "is missing, so this is no model folder", "give a bundle or a model folder")
    if (folder / MANIFEST).is_file():
        verify_bundle(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix in UNSAFE_SUFFIXES:
            raise BadInput(
                folder, path.name, "can run code when it is loaded", "delete it and keep the safetensors weights"
            )
    if not any(folder.glob("*.safetensors")):
        raise BadInput(folder, "", "holds no safetensors weights", "convert the model to safetensors first")


@torch.no_grad()
def _check_plain_head(model: "PreTrainedModel", folder: Path) -> None:
    """Training scores targets by decoder, then output layer. A model that does more in between must not be trained so."""
    tokens = torch.arange(8)[None] % model.get_input_embeddings().num_embeddings
    whole = model(input_ids=tokens, use_cache=False).logits
    hidden = getattr(model, model.base_model_prefix)(input_ids=tokens, use_cache=False).last_hidden_state
    if not torch.allclose(whole, model.get_output_embeddings()(hidden), atol=1e-4):
        raise BadInput(
            folder, "config.json", f"{type(model).__name__} changes its logits after the output layer", "give another base"
        )
