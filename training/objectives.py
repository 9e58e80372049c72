"""The three objectives. Each is a sum over its terms (targets or pairs); the loop divides by the step's global count.

Dividing by the count over *all* processes and micro-batches makes the update the same however the step is divided.
"""

from dataclasses import dataclass

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
            step; 0 for rows that are never used.
        beta: for DPO, how strongly the policy is tied to that reference.
    """

    data: PackedRows
    reference: Tensor | None = None
    beta: float = 0.0

    def loss(self, batch: Batch, scores: Tensor) -> Tensor:
        """Returns the loss summed over a batch's terms, ()."""
        if self.reference is None or not len(batch.pairs):  # a blank batch: an empty sum that still has its graph
            return next_token_loss(scores)
        reference = self.reference[list(batch.rows)].view(-1, 2).to(scores.device)[batch.pairs]
        return preference_loss(self._pairs(batch, scores), reference, self.beta)

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
