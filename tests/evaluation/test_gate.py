"""The gate's verdict is a pure function: every outcome, on made-up scores."""

from typing import Any

import numpy as np
import pytest

from evaluation.config import GatePolicy
from evaluation.gate import judge
from evaluation.samples import Measured


def measured(scores: list[float], weights: list[float] | None = None, per_group: int = 1) -> Measured:
    count = len(scores)
    return Measured(
        ids=tuple(f"{number:04d}" for number in range(count)),
        scores=np.array(scores),
        weights=np.array(weights or [1.0] * count),
        clusters=np.arange(count) // per_group,
    )


def right(share: float, count: int = 200) -> Measured:
    return measured([1.0] * round(share * count) + [0.0] * (count - round(share * count)))


def policy(*rules: dict[str, Any], **options: Any) -> GatePolicy:
    return GatePolicy.model_validate({"metrics": list(rules), **options})


EXACT = {"metric": "a.exact", "direction": "higher", "margin": 0.05}
BITS = {"metric": "b.bits", "direction": "lower", "margin": 0.1}


@pytest.mark.parametrize(
    ("candidate", "champion", "verdict"),
    [
        (0.60, 0.60, "pass"),  # the same answers
        (0.70, 0.60, "pass"),
        (0.59, 0.60, "pass"),  # a little worse, provably less than the margin
        (0.56, 0.60, "inconclusive"),  # worse by less than the margin, which is not proven
        (0.53, 0.60, "inconclusive"),  # worse by more than the margin, which is not proven either
        (0.40, 0.60, "fail"),
    ],
)
def test_against_champion(candidate: float, champion: float, verdict: str) -> None:
    found = judge(policy(EXACT), {"a.exact": right(candidate)}, {"a.exact": right(champion)}, "m@1")
    assert found.verdict == verdict
    assert len(found.reasons) == 1
    assert "a.exact" in found.reasons[0]
    check = found.checks[0]
    assert check.value == pytest.approx(candidate - champion)
    assert check.threshold == -0.05
    assert check.low is not None
    assert check.high is not None
    assert check.low <= check.value <= check.high


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.60, "pass"), (0.52, "inconclusive"), (0.48, "inconclusive"), (0.4, "fail")]
)
def test_floor(share: float, verdict: str) -> None:
    assert judge(policy({**EXACT, "floor": 0.5}), {"a.exact": right(share)}, None).verdict == verdict


def test_lower_is_better() -> None:
    generator = np.random.default_rng(0)
    hard = generator.gamma(4.0, 0.5, 60)
    champion = measured(list(hard))
    for shift, verdict in ((-0.3, "pass"), (0.0, "pass"), (0.1, "inconclusive"), (0.3, "fail")):
        mine = measured(list(hard + shift + generator.normal(0, 0.05, 60)))
        found = judge(policy(BITS), {"b.bits": mine}, {"b.bits": champion}, "m@1")
        assert found.verdict == verdict, found.reasons
        assert found.checks[0].value == pytest.approx(-shift, abs=0.02)  # an improvement is positive
    ceiling = {**BITS, "floor": 2.4}
    assert judge(policy(ceiling), {"b.bits": measured([1.9, 2.1] * 30)}, None).verdict == "pass"
    assert judge(policy(ceiling), {"b.bits": measured([2.9, 3.1] * 30)}, None).verdict == "fail"


def test_every_check_must_pass_and_any_may_fail() -> None:
    rules = policy({**EXACT, "floor": 0.3}, BITS)
    bits = {"b.bits": measured([2.0, 2.1] * 40)}
    champion = {"a.exact": right(0.6), **bits}
    good = judge(rules, {"a.exact": right(0.62), **bits}, champion, "m@1")
    assert (good.verdict, len(good.checks), len(good.reasons)) == ("pass", 3, 3)
    bad = judge(rules, {"a.exact": right(0.62), "b.bits": measured([3.0, 3.1] * 40)}, champion, "m@1")
    assert bad.verdict == "fail"
    assert [check.outcome for check in bad.checks] == ["pass", "pass", "fail"]
    assert bad.reasons == [bad.checks[2].reason]


def test_not_a_number_never_passes() -> None:
    broken = measured([1.0] * 199 + [float("nan")])
    candidate = judge(policy({**EXACT, "floor": 0.0}), {"a.exact": broken}, {"a.exact": right(0.5)}, "m@1")
    assert candidate.verdict == "fail"
    assert "not a number on 1 of 200 items" in candidate.reasons[0]
    champion = judge(policy(EXACT), {"a.exact": right(1.0)}, {"a.exact": broken}, "m@1")
    assert champion.verdict == "inconclusive"


def test_few_independent_items_decide_nothing() -> None:
    groups = measured([1.0] * 200, per_group=10)
    worse = measured([0.0] * 200, per_group=10)
    for mine in (groups, worse):
        found = judge(policy(EXACT), {"a.exact": mine}, {"a.exact": groups}, "m@1")
        assert found.verdict == "inconclusive"
        assert "only 20 independent items, the policy asks for 30" in found.reasons[0]
    single = measured([2.0, 2.1], [1.0, 3.0], per_group=2)  # one group has no spread at all
    assert judge(policy(BITS), {"b.bits": single}, {"b.bits": single}).checks[0].low is None


def test_nothing_to_check_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing would be checked"):
        judge(policy(EXACT), {"a.exact": right(1.0)}, None)


def test_wrong_verdicts_stay_below_alpha() -> None:
    """The whole gate with two metrics: the first is worse by its margin, the second equal. Passing would be wrong."""
    generator = np.random.default_rng(3)
    rules = policy({**EXACT, "margin": 0.1}, {**EXACT, "metric": "c.exact", "margin": 0.1}, resamples=1000, alpha=0.05)
    wrong = {"pass": 0, "fail": 0}
    for _ in range(300):
        champion = {name: measured(list((generator.random(150) < 0.7).astype(float))) for name in ("a.exact", "c.exact")}
        lost = generator.random(150) < 0.1 / 0.7  # of the items that the champion has right
        worse = measured(list(np.where(lost, 0.0, champion["a.exact"].scores)))
        wrong["pass"] += judge(rules, {**champion, "a.exact": worse}, champion).verdict == "pass"
        wrong["fail"] += judge(rules, champion, champion).verdict == "fail"
    assert wrong["pass"] / 300 <= 0.09  # 5 % is seen so often once in a thousand seeds
    assert wrong["fail"] == 0
