"""The three objectives. Each is a sum over its terms (targets or pairs); the loop divides by the step's global count.

Dividing by the count over *all* processes and micro-batches makes the update the same however the step is divided.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from training.batches import Batch, PackedRows


def next_token_loss(scores: Tensor) -> Tensor:
    """Returns the summed cross entropy, in nats, of targets with these log-probabilities (targets,).

    Pretraining and SFT are the same loss: they differ in which tokens are targets (Radford et al. 2018; for masking the
    prompt, Ouyang et al. 2022, section 3.5).
    """
    return -scores.sum()


def preference_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Returns the summed DPO loss (Rafailov et al. 2023, equation 7): -log sigmoid(beta * margin).

    The margin is how much more the policy prefers chosen to rejected than the reference does.

    Args:
        policy, reference: (pairs, 2) summed log-probabilities of the chosen and the rejected answer.
    """
    margin = (policy[:, 0] - policy[:, 1]) - (reference[:, 0] - reference[:, 1])
    return -logsigmoid(beta * margin).sum()


def answer_scores(batch: Batch, scores: Tensor, segments_per_row: int) -> Tensor:
    """Sums target log-probabilities by document: one forward pass of packed rows scores both answers of every pair.

    Args:
        scores: (targets,) log-probabilities.

    Returns:
        (pairs in all slots of the batch, 2): chosen, rejected; 0 in slots that hold no pair.
    """
    sums = scores.new_zeros(len(batch.input_ids) * segments_per_row)
    return sums.index_add(0, batch.segments, scores).view(-1, 2)


@dataclass(frozen=True)
class Reference:
    """What the model said about every pair before the first step: DPO's reference policy, computed once.

    Attributes:
        table: (rows of the file, segments_per_row) summed log-probabilities, fp32; 0 for rows that are not used.
    """

    table: Tensor

    def of(self, batch: Batch) -> Tensor:
        """Returns (slots, 2), laid out as `answer_scores`."""
        return self.table[list(batch.rows)].view(-1, 2).to(batch.input_ids.device)


@dataclass(frozen=True)
class Tally:
    """Sums over some rows: of the loss, of the pairs that are ranked right, and of the terms; a mean is sum / terms."""

    loss: Tensor
    right: Tensor


def evaluate_objective(data: PackedRows, batch: Batch, scores: Tensor, reference: Reference | None, beta: float) -> Tally:
    """Returns the objective's sums over one batch.

    `right` counts the pairs whose chosen answer the model finds likelier than the rejected one (ranking accuracy, Chen et
    al. 2024). Unlike the sign of DPO's margin, it also says something of a model before training.
    """
    if reference is None or not len(batch.pairs):
        return Tally(next_token_loss(scores), torch.zeros((), device=scores.device))
    policy = answer_scores(batch, scores, data.segments_per_row)[batch.pairs]
    loss = preference_loss(policy, reference.of(batch)[batch.pairs], beta)
    return Tally(loss, (policy[:, 0] > policy[:, 1]).sum())
