"""What is learnt from: cross entropy of targets, or losses on answers. Each is a sum; the loop divides by the step's count.

Dividing by the count over *all* processes and micro-batches makes the update the same however the step is divided.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training.batches import Batch, PackedRows
from training.preference import Answers, pair_losses, self_likelihoods
from training.unpaired import answer_losses

if TYPE_CHECKING:
    from training.config import TrainingConfig

Figures = dict[str, tuple[float, float]]  # name → sum and count of a mean over the validation rows


def next_token_loss(scores: Tensor) -> Tensor:
    """Returns the summed cross entropy, in nats, of targets with these log-probabilities (targets,).

    Pretraining and SFT are the same loss: they differ in which tokens are targets (Radford et al. 2018; for masking the
    prompt, Ouyang et al. 2022, section 3.5).
    """
    return -scores.sum()


def answer_scores(batch: Batch, scores: Tensor, segments_per_row: int) -> Tensor:
    """Sums target log-probabilities by document: one forward pass of packed rows scores every answer in them.

    Args:
        scores: (targets,) log-probabilities.

    Returns:
        (rows * segments_per_row,), 0 where there is none: of pairs, 2p is the chosen and 2p + 1 the rejected one of pair p.
    """
    sums = scores.new_zeros(len(batch.input_ids) * segments_per_row)
    return sums.index_add(0, batch.segments, scores)


@dataclass(frozen=True)
class Objective:
    """Cross entropy over one file of packed rows.

    Attributes:
        data: the rows.
    """

    data: PackedRows

    def loss(self, batch: Batch, scores: Tensor) -> Tensor:
        """Returns the loss summed over a batch's terms, each times its weight, ()."""
        return next_token_loss(scores if batch.weights is None else scores * batch.weights)

    def figures(self, batch: Batch, scores: Tensor) -> Figures:
        """Returns what a validation reports of a batch; every batch has the same names."""
        return {"validation_loss": (float(self.loss(batch, scores)), self.data.terms(batch))}


@dataclass(frozen=True)
class PreferenceObjective(Objective, ABC):
    """What losses on answers have in common.

    Attributes:
        config: which loss.
        reference: (rows of the file, segments_per_row) summed log-probabilities of every answer before the first step;
            0 for rows that are never used, and for losses without reference.
    """

    config: "TrainingConfig"
    reference: Tensor

    def loss(self, batch: Batch, scores: Tensor) -> Tensor:
        """Returns the loss summed over a batch's pairs or answers, each times its weight, ()."""
        if not len(batch.examples):
            return next_token_loss(scores)  # a blank batch: an empty sum that still has its graph
        losses = self.losses(batch, scores)
        return losses.sum() if batch.weights is None else (losses * batch.weights).sum()

    @abstractmethod
    def losses(self, batch: Batch, scores: Tensor) -> Tensor:
        """Returns the loss of every example of a batch, (examples,)."""

    def sums(self, batch: Batch, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the summed log-probabilities of all documents by the policy and by the reference, (documents,) each."""
        reference = self.reference[list(batch.rows)].flatten().to(scores.device, non_blocking=True)
        return answer_scores(batch, scores, self.data.segments_per_row), reference


@dataclass(frozen=True)
class PairObjective(PreferenceObjective):
    """A loss on pairs of a chosen and a rejected answer: DPO and its kin."""

    def losses(self, batch: Batch, scores: Tensor) -> Tensor:
        scores, *collisions = scores.view(-1, len(batch.targets))  # the second row, where there is one, is for WPO
        policy, reference = (sums.view(-1, 2)[batch.examples] for sums in self.sums(batch, scores))
        lengths = self._by_pair(batch, torch.ones_like(scores)).clamp(min=1)
        losses = pair_losses(Answers(policy, reference, lengths), self.config)
        if not collisions:
            return losses
        return losses * self_likelihoods(self._by_pair(batch, scores.detach() - collisions[0]) / lengths)

    def figures(self, batch: Batch, scores: Tensor) -> Figures:
        """Adds the share of pairs whose chosen answer the model finds likelier than the rejected one.

        This is the ranking accuracy of Chen et al. 2024 (Preference Learning Algorithms Do Not Learn Preference Rankings).
        Unlike the sign of DPO's margin, it also says something of a model before training.
        """
        policy = self._by_pair(batch, scores)
        right = int((policy[:, 0] > policy[:, 1]).sum())
        return super().figures(batch, scores) | {"preference_accuracy": (right, len(policy))}

    def _by_pair(self, batch: Batch, values: Tensor) -> Tensor:
        """Sums a value per target over each answer, (pairs, 2)."""
        return answer_scores(batch, values, self.data.segments_per_row).view(-1, 2)[batch.examples]


@dataclass(frozen=True)
class UnpairedObjective(PreferenceObjective):
    """KTO: a loss on single answers.

    Attributes:
        mismatched: the same rows with each prompt followed by another one's answer; None for a loss without zero point.
        zero_point: z of `training.unpaired`, measured on them for the rows that are learnt from at present.
    """

    mismatched: "UnpairedObjective | None" = None
    zero_point: float = 0.0

    def losses(self, batch: Batch, scores: Tensor) -> Tensor:
        assert batch.desirable is not None
        return answer_losses(self.ratios(batch, scores), batch.desirable, self.zero_point, self.config)

    def ratios(self, batch: Batch, scores: Tensor) -> Tensor:
        """Returns the log-ratio of every answer of a batch, (examples,)."""
        policy, reference = (sums[batch.examples] for sums in self.sums(batch, scores))
        return policy - reference

    def figures(self, batch: Batch, scores: Tensor) -> Figures:
        """Adds the mean rewards, beta times the log-ratio, of good and of bad answers."""
        found = super().figures(batch, scores)
        if not len(batch.examples):
            return found | {"reward_desirable": (0.0, 0), "reward_undesirable": (0.0, 0)}
        assert batch.desirable is not None
        rewards = self.config.kto_beta * self.ratios(batch, scores)
        for name, chosen in (("reward_desirable", batch.desirable), ("reward_undesirable", ~batch.desirable)):
            found[name] = (float(rewards[chosen].sum()), int(chosen.sum()))
        return found
