"""The standard losses on pairs of a chosen and a rejected answer. Each is a pure function; `LOSSES` names them all.

`c` and `r` stand for the two log-ratios of a pair: how much likelier the policy finds the chosen and the rejected answer
than the reference does, in nats.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

if TYPE_CHECKING:
    from training.config import TrainingConfig


@dataclass(frozen=True)
class Answers:
    """The two answers of every pair; column 0 is the chosen one, column 1 the rejected one.

    Attributes:
        policy: (pairs, 2) summed log-probabilities.
        reference: (pairs, 2) the same by the model before the first step; zeros for a loss without reference.
        lengths: (pairs, 2) target tokens; at least 1.
    """

    policy: Tensor
    reference: Tensor
    lengths: Tensor

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        """`c` and `r`, (pairs,) each."""
        chosen, rejected = (self.policy - self.reference).unbind(1)
        return chosen, rejected

    @property
    def means(self) -> Tensor:
        """The policy's log-probabilities per token, (pairs, 2)."""
        return self.policy / self.lengths

    def per_token(self) -> "Answers":
        """Returns the same answers with every log-probability divided by its answer's length."""
        return Answers(self.means, self.reference / self.lengths, torch.ones_like(self.lengths))


Loss = Callable[[Answers, "TrainingConfig"], Tensor]


def pair_losses(answers: Answers, config: "TrainingConfig") -> Tensor:
    """Returns the loss of each pair, (pairs,), with the share of plain cross entropy that `dpo_nll` asks for.

    The cross entropy of the chosen answer, per token, keeps its likelihood up (Pang et al. 2024, Iterative Reasoning
    Preference Optimization, equation 2).
    """
    compared = answers.per_token() if config.dpo_per_token else answers
    losses = LOSSES[config.dpo_loss](compared, config)
    return losses - config.dpo_nll * answers.means[:, 0] if config.dpo_nll else losses


def self_likelihoods(means: Tensor) -> Tensor:
    """Returns how likely the policy itself would have given both answers of each pair, (pairs,): the weights of WPO.

    Pairs that another model wrote then count less, as if the policy had drawn them (Zhou et al. 2024, WPO, equation 2).

    Args:
        means: (pairs, 2) mean over each answer's tokens of log p(token) - log sum p^2.
    """
    return means.sum(1).exp()


def _sigmoid(answers: Answers, config: "TrainingConfig") -> Tensor:
    """DPO (Rafailov et al. 2023, equation 7); with label smoothing the conservative one (Mitchell 2023, cDPO)."""
    c, r = answers.ratios
    return _smoothed(config.dpo_beta * (c - r), config.dpo_label_smoothing)


def _robust(answers: Answers, config: "TrainingConfig") -> Tensor:
    """Unbiased where a share `dpo_label_smoothing` of the pairs is swapped (Chowdhury et al. 2024, equation 12)."""
    c, r = answers.ratios
    margin, swapped = config.dpo_beta * (c - r), config.dpo_label_smoothing
    return (-(1 - swapped) * logsigmoid(margin) + swapped * logsigmoid(-margin)) / (1 - 2 * swapped)


def _ipo(answers: Answers, config: "TrainingConfig") -> Tensor:
    """Regresses the margin per token to 1 / (2 beta) (Azar et al. 2023, equation 17; per token as its authors advised)."""
    c, r = answers.per_token().ratios
    return (c - r - 1 / (2 * config.dpo_beta)) ** 2


def _exo_pair(answers: Answers, config: "TrainingConfig") -> Tensor:
    """The reverse KL divergence to preferences that are right but for a share epsilon (Ji et al. 2024, equation 16)."""
    c, r = answers.ratios
    margin, swapped = config.dpo_beta * (c - r), config.dpo_label_smoothing
    right = torch.sigmoid(margin) * (logsigmoid(margin) - math.log1p(-swapped))
    return right + torch.sigmoid(-margin) * (logsigmoid(-margin) - math.log(swapped))


def _nca_pair(answers: Answers, config: "TrainingConfig") -> Tensor:
    """Contrasts each answer with noise, so that the chosen one's likelihood stays up (Chen et al. 2024, NCA)."""
    c, r = (config.dpo_beta * ratio for ratio in answers.ratios)
    return -logsigmoid(c) - 0.5 * logsigmoid(-c) - 0.5 * logsigmoid(-r)


def _bco_pair(answers: Answers, config: "TrainingConfig") -> Tensor:
    """A classifier of good and bad answers whose logit is the reward (Jung et al. 2024, BCO), without its reward shift."""
    c, r = (config.dpo_beta * ratio for ratio in answers.ratios)
    return -logsigmoid(c) - logsigmoid(-r)


def _sppo_hard(answers: Answers, config: "TrainingConfig") -> Tensor:
    """Regresses both log-ratios to +- 1 / (2 beta) (Wu et al. 2024, SPPO, equation 4.7 with certain preferences)."""
    c, r = answers.ratios
    return (c - 0.5 / config.dpo_beta) ** 2 + (r + 0.5 / config.dpo_beta) ** 2


def _discopop(answers: Answers, config: "TrainingConfig") -> Tensor:
    """Blends the logistic and the exponential loss by the margin (Lu et al. 2024, DiscoPOP, equation 5)."""
    c, r = answers.ratios
    margin = config.dpo_beta * (c - r)
    blend = torch.sigmoid(margin / config.dpo_discopop_tau)
    return -(1 - blend) * logsigmoid(margin) + blend * torch.exp(-margin)


def _hinge(answers: Answers, config: "TrainingConfig") -> Tensor:
    """No more gradient once the margin is 1 (Zhao et al. 2023, SLiC-HF; Liu et al. 2024, RSO)."""
    c, r = answers.ratios
    return relu(1 - config.dpo_beta * (c - r))


def _apo_zero(answers: Answers, config: "TrainingConfig") -> Tensor:
    """Raises chosen and lowers rejected answers: for answers better than the model's own (D'Oosterlinck et al. 2024)."""
    c, r = answers.ratios
    return 1 - torch.sigmoid(config.dpo_beta * c) + torch.sigmoid(config.dpo_beta * r)


def _apo_down(answers: Answers, config: "TrainingConfig") -> Tensor:
    """Lowers both, rejected answers more: for answers worse than the model's own (D'Oosterlinck et al. 2024)."""
    c, r = answers.ratios
    return torch.sigmoid(config.dpo_beta * c) + 1 - torch.sigmoid(config.dpo_beta * (c - r))


def _simpo(answers: Answers, config: "TrainingConfig") -> Tensor:
    """Likelihoods per token, a target margin, no reference (Meng et al. 2024, equation 6)."""
    chosen, rejected = answers.means.unbind(1)
    return _smoothed(config.dpo_beta * (chosen - rejected) - config.dpo_margin, config.dpo_label_smoothing)


def _orpo(answers: Answers, config: "TrainingConfig") -> Tensor:
    """Cross entropy and the odds ratio of the likelihoods per token, no reference (Hong et al. 2024, equations 6 and 7)."""
    means = answers.means.clamp(max=-1e-6)  # an answer of probability 1 has no finite odds
    odds = means - torch.log(-torch.expm1(means))
    return -answers.means[:, 0] - config.dpo_beta * logsigmoid(odds[:, 0] - odds[:, 1])


def _smoothed(margin: Tensor, swapped: float) -> Tensor:
    return -(1 - swapped) * logsigmoid(margin) - swapped * logsigmoid(-margin)


LOSSES: dict[str, Loss] = {
    "sigmoid": _sigmoid,
    "ipo": _ipo,
    "hinge": _hinge,
    "robust": _robust,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "discopop": _discopop,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "simpo": _simpo,
    "orpo": _orpo,
}
