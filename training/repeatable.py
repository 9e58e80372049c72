"""Equal runs give equal bytes, on GPUs too: where several kernels compute the same, one that adds in a fixed order."""

from typing import TYPE_CHECKING

import torch
import torch.utils.deterministic

from training import document_attention

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def insist(device: torch.device, config: "PretrainedConfig") -> bool:
    """Makes torch compute in fixed orders, for models all of whose operations can; returns whether it does.

    It is the backward pass of attention that would differ from run to run by itself: it adds what every block of queries
    gives to a key in the order in which they finish. Asked only to warn, torch leaves attention as it is; asked to insist,
    it raises where an operation has no such kernel, as some of recurrent models and of mixtures of experts have none.
    Those are left as they are.

    Without `training.hardware.prepare_gpus` torch raises at the next matrix product, and says so.

    Args:
        config: of the model.
    """
    if device.type != "cuda" or not document_attention.suits(config):
        return False
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory is a way to find mistakes, at the price of traffic.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return True
