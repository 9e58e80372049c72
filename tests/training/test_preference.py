"""Every loss on pairs against its formula, written out by hand for two pairs of answers."""

import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from training.choices import WITHOUT_REFERENCE
from training.config import TrainingConfig
from training.preference import LOSSES, Answers, pair_losses

# Per pair: log-probabilities of chosen and rejected answer by the policy, by the reference, and their lengths.
PAIRS = [((-3.0, -5.0), (-4.0, -4.5), (3, 2)), ((-2.0, -1.0), (-2.0, -3.0), (4, 5))]
SWAPPED = 0.01


def answers(requires_grad: bool = False) -> Answers:
    policy, reference, lengths = (torch.tensor([pair[part] for pair in PAIRS]) for part in range(3))
    return Answers(policy.requires_grad_(requires_grad), reference, lengths)


def configure(loss: str, **options: object) -> TrainingConfig:
    needed = {"dpo_label_smoothing": SWAPPED} if loss == "exo_pair" else {}
    values = {"objective": "dpo", "steps": 1, "dpo_loss": loss, "dpo_beta": 0.3, **needed, **options}
    return TrainingConfig.model_validate(values)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def odds(mean: float) -> float:
    return math.exp(mean) / (1 - math.exp(mean))


# From the four numbers of a pair: c and r (log-ratios), and the policy's log-probabilities per token.
BY_HAND: dict[str, Callable[..., float]] = {
    "sigmoid": lambda c, r, _: -math.log(sigmoid(0.3 * (c - r))),
    "robust": lambda c, r, _: -math.log(sigmoid(0.3 * (c - r))),  # without swapped pairs
    "exo_pair": lambda c, r, _: sum(
        sigmoid(margin) * math.log(sigmoid(margin) / share)
        for margin, share in ((0.3 * (c - r), 1 - SWAPPED), (0.3 * (r - c), SWAPPED))
    ),
    "nca_pair": lambda c, r, _: -math.log(sigmoid(0.3 * c) * math.sqrt(sigmoid(-0.3 * c) * sigmoid(-0.3 * r))),
    "bco_pair": lambda c, r, _: -math.log(sigmoid(0.3 * c) * sigmoid(-0.3 * r)),
    "sppo_hard": lambda c, r, _: (c - 1 / 0.6) ** 2 + (r + 1 / 0.6) ** 2,
    "discopop": lambda c, r, _: (
        -(1 - sigmoid(6 * (c - r))) * math.log(sigmoid(0.3 * (c - r))) + sigmoid(6 * (c - r)) * math.exp(-0.3 * (c - r))
    ),
    "hinge": lambda c, r, _: max(0.0, 1 - 0.3 * (c - r)),
    "apo_zero": lambda c, r, _: 1 - sigmoid(0.3 * c) + sigmoid(0.3 * r),
    "apo_down": lambda c, r, _: sigmoid(0.3 * c) + 1 - sigmoid(0.3 * (c - r)),
    "simpo": lambda _c, _r, means: -math.log(sigmoid(0.3 * (means[0] - means[1]))),
    "orpo": lambda _c, _r, means: -means[0] - 0.3 * math.log(sigmoid(math.log(odds(means[0]) / odds(means[1])))),
}


@pytest.mark.parametrize("loss", BY_HAND)
def test_a_loss_is_its_formula(loss: str) -> None:
    expected = []
    for policy, reference, lengths in PAIRS:
        c, r = (p - q for p, q in zip(policy, reference, strict=True))
        expected.append(BY_HAND[loss](c, r, [p / n for p, n in zip(policy, lengths, strict=True)]))
    assert pair_losses(answers(), configure(loss)).tolist() == pytest.approx(expected, rel=1e-5)


def test_ipo_regresses_the_margin_per_token() -> None:
    expected = [((1 / 3 - (-0.5) / 2) - 1 / 0.6) ** 2, ((0 / 4 - 2 / 5) - 1 / 0.6) ** 2]
    assert pair_losses(answers(), configure("ipo")).tolist() == pytest.approx(expected, rel=1e-5)


def test_every_loss_is_tested_here() -> None:
    assert set(BY_HAND) | {"ipo"} == set(LOSSES)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_prefers_the_chosen_answer(loss: str) -> None:
    pairs = answers(requires_grad=True)
    pair_losses(pairs, configure(loss)).sum().backward()
    gradient = pairs.policy.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert ((gradient[:, 0] - gradient[:, 1]) < 0).all()  # a small step widens every margin


@pytest.mark.parametrize("loss", sorted(WITHOUT_REFERENCE))
def test_a_loss_without_reference_ignores_it(loss: str) -> None:
    pairs = answers()
    other = Answers(pairs.policy, pairs.reference * 7, pairs.lengths)
    assert torch.equal(pair_losses(pairs, configure(loss)), pair_losses(other, configure(loss)))


def test_label_smoothing_mixes_in_the_swapped_pair() -> None:
    c, r = (-3.0 + 4.0), (-5.0 + 4.5)
    right, wrong = -math.log(sigmoid(0.3 * (c - r))), -math.log(sigmoid(-0.3 * (c - r)))
    conservative = pair_losses(answers(), configure("sigmoid", dpo_label_smoothing=0.2))
    assert float(conservative[0]) == pytest.approx(0.8 * right + 0.2 * wrong, rel=1e-5)
    robust = pair_losses(answers(), configure("robust", dpo_label_smoothing=0.2))
    assert float(robust[0]) == pytest.approx((0.8 * right - 0.2 * wrong) / 0.6, rel=1e-5)


def test_a_margin_per_token_divides_by_the_length() -> None:
    c, r = (-3.0 + 4.0) / 3, (-5.0 + 4.5) / 2
    losses = pair_losses(answers(), configure("sigmoid", dpo_per_token=True))
    assert float(losses[0]) == pytest.approx(-math.log(sigmoid(0.3 * (c - r))), rel=1e-5)


def test_cross_entropy_of_the_chosen_answer_is_added_per_token() -> None:
    plain, mixed = (pair_losses(answers(), configure("sigmoid", dpo_nll=weight)) for weight in (0.0, 0.5))
    assert (mixed - plain).tolist() == pytest.approx([0.5 * 3 / 3, 0.5 * 2 / 4])


def test_an_answer_that_is_certain_keeps_the_odds_finite() -> None:
    certain = Answers(torch.tensor([[0.0, -1.0]], requires_grad=True), torch.zeros(1, 2), torch.ones(1, 2))
    loss = pair_losses(certain, configure("orpo")).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert certain.policy.grad is not None
    assert torch.isfinite(certain.policy.grad).all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dpo_loss": "hinge", "dpo_label_smoothing": 0.1}, "hinge"),
        ({"dpo_loss": "sigmoid", "dpo_margin": 0.5}, "dpo_margin"),
        ({"dpo_loss": "kto"}, "dpo_loss"),
        ({"dpo_loss": "exo_pair", "dpo_label_smoothing": 0.0}, "needs dpo_label_smoothing"),
        ({"z_loss": 1e-4}, "z_loss"),
        ({"dpo_label_smoothing": 0.5}, "dpo_label_smoothing"),
    ],
)
def test_settings_that_a_loss_does_not_take_are_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        configure(str(options.pop("dpo_loss", "sigmoid")), **options)
