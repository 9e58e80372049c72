"""A model without its numbers: shapes on the meta device, made as a run makes them, for `plan` to count."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from training.adapters import with_adapters
from training.blocks import recompute_activations
from training.choices import Checkpointing
from training.config import ModelConfig, TrainingConfig
from training.model import config_of, model_of, new_config, require_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def skeleton(
    config: ModelConfig,
    base: Path | None,
    vocabulary: int,
    training: TrainingConfig,
    recompute: Checkpointing,
    seq_len: int,
) -> "PreTrainedModel":
    """Returns what `build_model` would, in a second whatever its size: no weight is read or allocated.

    Args:
        base: the folder of an existing model; None for a new one.
        vocabulary: tokens of the tokenizer; a base with fewer rows grows, as it would in the run.
        recompute: which activations are computed again in the backward pass.
        seq_len: tokens of a packed row.

    Raises:
        BadInput: there is no such model, or it does not take such rows or such adapters.
    """
    with torch.device("meta"):
        model = model_of(config_of(base) if base else new_config(config, vocabulary, {}))
        require_positions(model, base, seq_len)
        if model.get_input_embeddings().num_embeddings < vocabulary:
            model.resize_token_embeddings(vocabulary, mean_resizing=False)
        adapted = with_adapters(model, training) if training.lora_rank else model
        recompute_activations(model, recompute)
        return adapted
