"""KTO: the loss of single answers that were judged good or bad, without a pair to compare them in."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from training.config import TrainingConfig


def answer_losses(ratios: Tensor, desirable: Tensor, zero_point: float, config: "TrainingConfig") -> Tensor:
    """Returns the loss of each answer, (answers,).

    It is lambda (1 - sigmoid(+- beta (r - z))), with + and - for good and bad answers and the lambda of either (Ethayarajh
    et al. 2024, KTO, equation 7). With z = 0 it is APO-zero for single answers (D'Oosterlinck et al. 2024).

    Args:
        ratios: (answers,) r: how much likelier the policy finds each answer than the reference does, in nats.
        desirable: (answers,) whether it is a good one.
        zero_point: z, nats: how far the policy is from the reference on answers to other prompts.
    """
    signed = torch.where(desirable, ratios - zero_point, zero_point - ratios)
    weights = torch.where(desirable, config.kto_desirable_weight, config.kto_undesirable_weight)
    return weights * torch.sigmoid(-config.kto_beta * signed)
