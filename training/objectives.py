"""What is learnt from: cross entropy of targets, or losses on pairs. Each is a sum; the loop divides by the step's count.

Dividing by the count over *all* processes and micro-batches makes the update the same however the step is divided.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.batches import Batch, PackedRows
from training.config import TrainingConfig
from training.preference import Answers, pair_losses


def next_token_loss(scores: Tensor) -> Tensor:
    """Returns the summed cross entropy, in nats, of targets with these log-probabilities (targets,).

    Pretraining and SFT are the same loss: they differ in which tokens are targets (Radford et al. 2018; for masking the
    prompt, Ouyang et al. 2022, section 3.5).
    """
    return -scores.sum()


def answer_scores(batch: Batch, scores: Tensor, segments_per_row: int) -> Tensor:
    """Sums target log-probabilities by document: one forward pass of packed rows scores both answers of every pair.

    Args:
        scores: (targets,) log-probabilities.

    Returns:
        (rows * segments_per_row,): 2p is the chosen and 2p + 1 the rejected answer of pair p; 0 where there is none.
    """
    sums = scores.new_zeros(len(batch.input_ids) * segments_per_row)
    return sums.index_add(0, batch.segments, scores)


@dataclass(frozen=True)
class Objective:
    """A loss over one file of packed rows.

    Attributes:
        data: the rows.
        reference: for DPO, (rows of the file, segments_per_row) summed log-probabilities of every answer before the first
            step; 0 for rows that are never used, and for losses without reference.
        config: for DPO, which loss on pairs.
    """

    data: PackedRows
    reference: Tensor | None = None
    config: TrainingConfig | None = None

    def loss(self, batch: Batch, scores: Tensor) -> Tensor:
        """Returns the loss summed over a batch's terms, ()."""
        if self.reference is None or not len(batch.pairs):  # a blank batch: an empty sum that still has its graph
            return next_token_loss(scores)
        assert self.config is not None
        reference = self.reference[list(batch.rows)].view(-1, 2).to(scores.device)[batch.pairs]
        lengths = self._pairs(batch, torch.ones_like(scores)).clamp(min=1)
        return pair_losses(Answers(self._pairs(batch, scores), reference, lengths), self.config).sum()

    def ranked_right(self, batch: Batch, scores: Tensor) -> int:
        """Counts the pairs whose chosen answer the model finds likelier than the rejected one.

        This is the ranking accuracy of Chen et al. 2024 (Preference Learning Algorithms Do Not Learn Preference Rankings).
        Unlike the sign of DPO's margin, it also says something of a model before training.
        """
        if self.reference is None:
            return 0
        policy = self._pairs(batch, scores)
        return int((policy[:, 0] > policy[:, 1]).sum())

    def _pairs(self, batch: Batch, scores: Tensor) -> Tensor:
        return answer_scores(batch, scores, self.data.segments_per_row).view(-1, 2)[batch.pairs]
