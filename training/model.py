"""The model to train: a new one, or an existing safetensors folder; with LoRA adapters or without."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lineage.errors import BadInput
from training.adapters import with_adapters
from training.quantize import Nf4Linear
from training.vocabulary import Vocabulary, fit_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from training.config import ModelConfig, TrainingConfig

# What an architecture does at random while it trains. A step must be the same however it is divided over processes.
RANDOM = ("drop", "jitter_noise")


def build_model(
    config: "ModelConfig | None", base: Path | None, vocabulary: Vocabulary, training: "TrainingConfig", seq_len: int
) -> "PreTrainedModel":
    """Returns the model before its first step, in fp32 on the CPU; the same arguments give the same weights.

    Args:
        config: describes a new model; where there is a base, only whether its vocabulary may grow.
        base: the folder of an existing model, None for a new one.
        seq_len: tokens of a packed row; the model must have that many positions.

    Raises:
        BadInput: no model is described, the vocabularies differ, the rows are too long, or the base is not safe to load.
    """
    torch.manual_seed(training.seed)
    grown = False
    if base is not None:
        model = _load_model(base)
        grown = fit_vocabulary(model, base, vocabulary, grow=config is not None and config.grow_vocabulary)
    elif config is None or config.base or config.grow_vocabulary:
        raise BadInput(
            "job.yaml",
            "parents.base",
            "is missing, and `model` does not describe a new model",
            "name the stage to continue as parent `base`, or give the dimensions of a new model",
        )
    else:
        model = model_of(new_config(config, vocabulary.size, vocabulary.special))
    require_positions(model, base, seq_len)
    return with_adapters(model, training, grown) if training.lora_rank else model


def plain_model(model: "PreTrainedModel") -> "PreTrainedModel":
    """Returns the causal language model under its adapters, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def blocks_of(model: "PreTrainedModel") -> list[nn.Module]:
    """Returns the repeated blocks of any architecture, in their order: the lists of what transformers says not to split."""
    plain = plain_model(model)
    whole = plain._no_split_modules or ()
    lists = [part for part in plain.modules() if isinstance(part, nn.ModuleList)]
    return [part for found in lists for part in found if type(part).__name__ in whole]


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Returns how many weights the model has, and how many of them are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    packed = sum(part.in_features * part.out_features for part in model.modules() if isinstance(part, Nf4Linear))
    return sum(n for n, _ in sizes) + packed, sum(n for n, trained in sizes if trained)


def new_config(config: "ModelConfig", vocabulary_size: int, special: dict[str, int]) -> "PreTrainedConfig":
    """Returns transformers' configuration of a new model: a Llama of these dimensions, or what `config.config` says.

    Raises:
        BadInput: the architecture is unknown, or its values do not fit together.
    """
    from transformers import CONFIG_MAPPING, LlamaConfig

    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **special}
    if config.config is None:
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
            **ids,
        )
    kind = config.config["model_type"]
    _refuse_foreign(config.config, "model.config")
    try:
        made = CONFIG_MAPPING[kind].from_dict({**config.config, **ids, "vocab_size": vocabulary_size})
    except Exception as error:  # each architecture checks its values in its own way
        raise BadInput("model.config", str(kind), f"is not valid ({_first_line(error)})", "correct it") from None
    made.get_text_config().vocab_size = vocabulary_size
    return made


def model_of(config: "PreTrainedConfig") -> "PreTrainedModel":
    """Returns a new causal language model in fp32, without dropout; on the meta device it has shapes alone.

    Raises:
        BadInput: the configuration's values make none.
    """
    from transformers import AutoModelForCausalLM

    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(_without_noise(config), dtype=torch.float32)
    except Exception as error:  # whatever the layers say of dimensions that do not fit
        raise BadInput(
            "model.config", config.model_type, f"makes no causal language model ({_first_line(error)})", "correct it"
        ) from None
    return model


def config_of(folder: Path) -> "PreTrainedConfig":
    """Reads the configuration of an existing model.

    Raises:
        BadInput: it is no model folder, or not one that is safe to load.
    """
    from transformers import AutoConfig

    _refuse_unsafe(folder)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each architecture checks its values in its own way
        raise BadInput(folder / "config.json", "", f"is not valid ({_first_line(error)})", "give another base") from None
    return config


def require_positions(model: "PreTrainedModel", base: Path | None, seq_len: int) -> None:
    """Checks that a model takes rows of that many tokens.

    Raises:
        BadInput: it does not.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # recurrent models have none
    if limit is not None and limit < seq_len:
        raise BadInput(
            base or "job.yaml", "max_positions", f"is {limit}, but the packed rows have {seq_len} tokens", "raise it"
        )


def _load_model(folder: Path) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = _without_noise(config_of(folder))
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged file raises what the library that reads it raises
        raise BadInput(folder, "", f"is no model that can be loaded ({_first_line(error)})", "give another base") from None
    if missing := sorted(report["missing_keys"]):
        problem = f"holds no weights for {missing[0]}" + (f" and {len(missing) - 1} others" if missing[1:] else "")
        raise BadInput(folder, "", problem, "give a causal language model that is whole")
    return model


def _refuse_unsafe(folder: Path) -> None:
    """A base is a sealed bundle that verifies, or a plain folder whose weights are safetensors and nothing else."""
    from lineage.bundle import MANIFEST, UNSAFE_SUFFIXES, verify_bundle  # needs pydantic, and a new model has no base

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
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise BadInput(folder / "config.json", "", "is not JSON", "save the model again") from None
    _refuse_foreign(values, folder / "config.json")


def _refuse_foreign(values: dict[str, Any], where: str | Path) -> None:
    """Refuses what transformers alone cannot run, and weights that are not numbers to train on."""
    from transformers import CONFIG_MAPPING

    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING:
        brings = " and brings code of its own, which is never run" if values.get("auto_map") else ""
        raise BadInput(where, "model_type", f"is `{kind}`, which transformers does not know{brings}", "give another model")
    if values.get("quantization_config"):
        fix = "give the model before quantisation; `lora_quantize: nf4` quantises it while it trains"
        raise BadInput(where, "quantization_config", "says that the weights are quantised", fix)


def _without_noise(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """Switches off dropout and router noise, in a configuration and those inside it."""
    for name, value in vars(config).items():
        if isinstance(value, float) and any(word in name for word in RANDOM):
            setattr(config, name, 0.0)
    for name in config.sub_configs:
        if (inner := getattr(config, name, None)) is not None:
            _without_noise(inner)
    return config


def _first_line(error: Exception) -> str:
    """Returns what an error says first; a line that ends with a colon says nothing without the next one."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {more[0].strip()}" if first.endswith(":") and more else first
