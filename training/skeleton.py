"""A model without its numbers: shapes on the meta device, made as a run makes them, for `plan` to count."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from training.adapters import with_adapters
from training.blocks import recompute_activations
from training.config import ModelConfig, TrainingConfig
from training.model import new_config
from training.resources import Checkpointing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def skeleton(
    config: ModelConfig, base: Path | None, vocabulary: int, training: TrainingConfig, recompute: Checkpointing
) -> "PreTrainedModel":
    """Returns what `build_model` would, in a second whatever its size: no weight is read or allocated.

    Args:
        base: the folder of an existing model; None for a new one.
        vocabulary: tokens of the tokenizer, for a new model.
        recompute: which activations are computed again in the backward pass.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.from_pretrained(base, local_files_only=True) if base else new_config(config, vocabulary, {})
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
        adapted = with_adapters(model, training) if training.lora_rank else model
        recompute_activations(model, recompute)
        return adapted
