"""The gate's verdict, a pure function of scores and policy. Inconclusive never promotes.

Every rule makes up to two checks: is the floor reached, and is the candidate not worse than the champion by more than the
margin (non-inferiority on the same items; ICH E9, section 3.3.2)? A check passes where that is proven, fails where
the opposite is proven, and is inconclusive in between. The gate passes where all checks pass, so its chance of passing a
model that any check should stop is at most `alpha`, however many checks there are (intersection-union test, Berger 1982).
It fails where any check fails, so each check's proof of failure is held to `alpha` over their number (Bonferroni).
"""

from collections.abc import Mapping
from math import isfinite
from typing import Literal

from evaluation.compare import Estimate, Levels, estimate_difference, estimate_score
from evaluation.config import Direction, GatePolicy, MetricRule
from evaluation.samples import Measured
from lineage.section import Section

Outcome = Literal["pass", "fail", "inconclusive"]


class Check(Section):
    """One question to one metric, and its answer.

    Attributes:
        kind: `floor`: the candidate's score against `threshold`; `champion`: the improvement over the champion against
            `threshold`, which is minus the margin. An improvement is positive where the candidate is better, whichever
            way the metric points.
        value: the score or improvement; null where it is not a number.
        low, high: its one-sided bounds, in the same unit; null with `value`.
        candidate, champion: the two scores; `champion` is null for a floor.
        items, clusters: how many items were compared, and how many of them are independent.
    """

    metric: str
    kind: Literal["floor", "champion"]
    direction: Direction
    outcome: Outcome
    reason: str
    threshold: float
    value: float | None
    low: float | None
    high: float | None
    candidate: float | None
    champion: float | None
    items: int
    clusters: int


class Verdict(Section):
    """What the gate decided and why. `reasons` are those of the checks that decided; of all of them where it passes."""

    verdict: Outcome
    reasons: list[str]
    against: str
    checks: list[Check]


def judge(
    policy: GatePolicy, candidate: Mapping[str, Measured], champion: Mapping[str, Measured] | None, against: str = ""
) -> Verdict:
    """Judges a candidate.

    Args:
        policy: the rules; each metric must be in `candidate` and, where there is one, in `champion`.
        candidate, champion: the measured items by metric; both models on the same items in the same order.
        against: the champion's name, for the reader.

    Raises:
        ValueError: there is no champion and no rule has a floor: nothing would be checked.
    """
    floors = [rule for rule in policy.metrics if rule.floor is not None]
    count = len(floors) + (len(policy.metrics) if champion is not None else 0)
    if count == 0:
        raise ValueError("no rule has a floor and there is no champion: nothing would be checked")
    levels = Levels(policy.alpha, policy.alpha / count, policy.resamples, policy.seed)
    checks = []
    for rule in policy.metrics:
        mine = candidate[rule.metric]
        if rule.floor is not None:
            checks.append(_check_floor(rule, rule.floor, mine, policy, levels))
        if champion is not None:
            checks.append(_check_champion(rule, mine, champion[rule.metric], policy, levels))
    outcomes = {check.outcome for check in checks}
    verdict: Outcome = "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"
    reasons = [check.reason for check in checks if check.outcome == verdict]
    return Verdict(verdict=verdict, reasons=reasons, against=against, checks=checks)


def _check_floor(rule: MetricRule, floor: float, mine: Measured, policy: GatePolicy, levels: Levels) -> Check:
    """Checks a score against its floor or ceiling. Scores keep their own sign; the bounds swap where lower is better."""
    if not _is_number(mine):
        return _make_check(rule, "floor", "fail", _not_a_number("the candidate", mine), floor, None, mine, None)
    if rule.direction == "lower":
        levels = Levels(levels.alpha_high, levels.alpha_low, levels.resamples, levels.seed)
    found = estimate_score(mine.scores, mine.weights, mine.clusters, levels)
    higher = rule.direction == "higher"
    reached = found.low >= floor if higher else found.high <= floor
    missed = found.high < floor if higher else found.low > floor
    word = "floor" if higher else "ceiling"
    outcome, said = _decide(reached, missed, found, policy)
    reason = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}] against the {word} {floor:.3f}: {said}"
    return _make_check(rule, "floor", outcome, reason, floor, found, mine, None)


def _check_champion(rule: MetricRule, mine: Measured, theirs: Measured, policy: GatePolicy, levels: Levels) -> Check:
    """Checks the improvement over the champion against minus the margin."""
    for who, measured in (("the candidate", mine), ("the champion", theirs)):
        if not _is_number(measured):
            outcome: Outcome = "fail" if measured is mine else "inconclusive"
            reason = _not_a_number(who, measured)
            return _make_check(rule, "champion", outcome, reason, -rule.margin, None, mine, theirs)
    better, worse = (mine, theirs) if rule.direction == "higher" else (theirs, mine)
    found = estimate_difference(better.scores, worse.scores, mine.weights, mine.clusters, levels)
    outcome, said = _decide(found.low > -rule.margin, found.high < -rule.margin, found, policy)
    figures = f"{mine.value:.3f} against the champion's {theirs.value:.3f}, improvement {found.value:+.3f}"
    reason = f"{figures} [{found.low:+.3f}, {found.high:+.3f}], at most {rule.margin:.3f} worse is allowed: {said}"
    return _make_check(rule, "champion", outcome, reason, -rule.margin, found, mine, theirs)


def _decide(proven: bool, refuted: bool, found: Estimate, policy: GatePolicy) -> tuple[Outcome, str]:
    if found.clusters < policy.minimum_items:
        return "inconclusive", f"only {found.clusters} independent items, the policy asks for {policy.minimum_items}"
    if proven:
        return "pass", "proven"
    if refuted:
        return "fail", "refuted"
    return "inconclusive", f"not decided by {found.items} items"


def _is_number(measured: Measured) -> bool:
    import numpy as np

    return bool(np.isfinite(measured.scores).all())


def _not_a_number(who: str, measured: Measured) -> str:
    import numpy as np

    count = int((~np.isfinite(measured.scores)).sum())
    return f"{who}'s score is not a number on {count} of {len(measured.scores)} items"


def _make_check(
    rule: MetricRule,
    kind: Literal["floor", "champion"],
    outcome: Outcome,
    reason: str,
    threshold: float,
    found: Estimate | None,
    mine: Measured,
    theirs: Measured | None,
) -> Check:
    return Check(
        metric=rule.metric,
        kind=kind,
        direction=rule.direction,
        outcome=outcome,
        reason=f"{rule.metric}: {reason}",
        threshold=threshold,
        value=found.value if found else None,
        low=found.low if found and isfinite(found.low) else None,  # one cluster alone has no bounds
        high=found.high if found and isfinite(found.high) else None,
        candidate=mine.value if _is_number(mine) else None,
        champion=theirs.value if theirs is not None and _is_number(theirs) else None,
        items=len(mine.ids),
        clusters=int(mine.clusters.max()) + 1,
    )
