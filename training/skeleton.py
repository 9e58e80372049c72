"""A model without its numbers: shapes on the meta device, made as a run makes them, for `plan` to count."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from training.config import ModelConfig, TrainingConfig
from training.model import new_config, with_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def skeleton(config: ModelConfig, base: Path | None, vocabulary: int, training: TrainingConfig) -> "PreTrainedModel":
    """Returns what `build_model` would, in a second whatever its size: no weight is read or allocated.

    Args:
        base: the folder of an existing model; None for a new one.
        vocabulary: tokens of the tokenizer, for a new model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.from_pretrained(base, local_files_only=True) if base else new_config(config, vocabulary, {})
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
        if training.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return with_adapters(model, training) if training.lora_rank else model
