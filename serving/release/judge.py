"""The canary's judge: a pure verdict from what both arms answered. Inconclusive never promotes, and no data is not good.

Each check asks two questions about the candidate, at a known error rate:

- Is it worse than the champion beyond chance, by more than its margin? Then `fail`, at any look. All looks and all checks
  together accuse an equal candidate with probability `alpha` at most (`spend` over looks, Bonferroni over checks).
- At the closing step: is it shown to be no worse than the margin allows? Only then `pass`, else `inconclusive`. All looks
  together let a candidate that is worse than the margin through with probability `alpha` at most. The closing step is
  the last one that both arms share: after it there is no concurrent champion to compare with, only its earlier answers.

The quality probe asks only the first question, and that its drop is within the margin: non-inferiority was shown by the
offline gate, on many more items than a canary has time for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from serving.config import CanaryPolicy
from serving.metrics import Observation
from serving.release.intervals import (
    difference_upper,
    fisher_greater,
    mcnemar_greater,
    percentile,
    requests_needed,
    spend,
    wilson,
)
from serving.release.verdict import ArmSummary, Decision, Finding, Judgement, Look, Probe

CHECKS = 4  # errors, bad answers, latency, probes: what alpha is divided by
CLIENT_LEFT = 499  # a client that gave up waiting is the arm's fault as far as anyone can know
SLOW_SHARE = 0.05  # what may lie above a p95


@dataclass(frozen=True)
class _Traffic:
    """One arm's observations as the checks need them: answered seconds, and counts."""

    requests: int
    failed: int
    bad: int
    seconds: list[float]

    @property
    def answered(self) -> int:
        return len(self.seconds)

    def summary(self) -> ArmSummary:
        p95 = round(percentile(self.seconds, 1 - SLOW_SHARE), 4) if self.seconds else None
        return ArmSummary(requests=self.requests, failed=self.failed, bad=self.bad, p95_seconds=p95)


def judge(
    candidate: Sequence[Observation],
    champion: Sequence[Observation] | None,
    probes: Mapping[str, Probe],
    policy: CanaryPolicy,
    look: Look,
) -> Judgement:
    """Judges a canary on all traffic since it began.

    Args:
        candidate, champion: what each arm answered; probes among them are left out. None for the champion: a first
            release, measured against the policy's absolute limits.
        probes: outcomes by item id.
    """
    trial, base = _count(candidate), None if champion is None else _count(champion)
    findings = [_enough(trial, base, policy, look)]
    if findings[0].decision == "pass":
        checks = (_errors, _bad_answers, _latency) if base else (_first_errors, _first_bad_answers, _first_latency)
        findings = [check(trial, base or trial, policy, look) for check in checks]
        findings.append(_probes(probes, policy, look) if base else _first_probes(probes, policy, look))
    decisions = {finding.decision for finding in findings}
    decision: Decision = "fail" if "fail" in decisions else "inconclusive" if "inconclusive" in decisions else "pass"
    nobody = _Traffic(0, 0, 0, [])
    return Judgement(decision=decision, findings=findings, candidate=trial.summary(), champion=(base or nobody).summary())


def closing_requests(policy: CanaryPolicy, first: bool) -> int:
    """Returns how many requests of the candidate the closing step's first look needs to be able to pass."""
    margins = [policy.error_margin, policy.bad_answer_margin, SLOW_SHARE]
    if first:
        margins = [policy.first_error_ceiling, policy.first_bad_answer_ceiling, SLOW_SHARE]
    return max(policy.minimum_requests, requests_needed(min(margins), spend(policy.alpha, 1)))


def _count(observations: Sequence[Observation]) -> _Traffic:
    """A client's own mistake (another 4xx) is neither a success nor a failure, so an arm that only refuses has no data."""
    real = [seen for seen in observations if not seen.probe]
    failed = [seen for seen in real if seen.error or seen.status in (0, CLIENT_LEFT) or seen.status >= 500]
    broken = [seen for seen in real if seen.status == 200 and not seen.error and not _plausible(seen.seconds)]
    answered = [seen for seen in real if seen.status == 200 and not seen.error and _plausible(seen.seconds)]
    return _Traffic(
        requests=len(failed) + len(broken) + len(answered),
        failed=len(failed) + len(broken),
        bad=sum(seen.empty or seen.malformed for seen in answered),
        seconds=[seen.seconds for seen in answered],
    )


def _plausible(seconds: float) -> bool:
    return isfinite(seconds) and seconds >= 0


def _enough(trial: _Traffic, base: _Traffic | None, policy: CanaryPolicy, look: Look) -> Finding:
    smallest = min(trial.requests, base.requests if base else trial.requests)
    if smallest < policy.minimum_requests:
        text = f"{trial.requests} requests of the candidate"
        text += f" and {base.requests} of the champion" if base else ""
        return Finding(check="traffic", decision="inconclusive", reason=f"{text}; each arm needs {policy.minimum_requests}")
    return Finding(check="traffic", decision="pass", reason="enough traffic")


def _harm_level(policy: CanaryPolicy, look: Look) -> float:
    return spend(policy.alpha, look.number) / CHECKS


def _errors(trial: _Traffic, base: _Traffic, policy: CanaryPolicy, look: Look) -> Finding:
    counts = (trial.failed, trial.requests, base.failed, base.requests)
    return _compare("errors", "failed requests", counts, policy.error_margin, policy, look)


def _bad_answers(trial: _Traffic, base: _Traffic, policy: CanaryPolicy, look: Look) -> Finding:
    counts = (trial.bad, trial.answered, base.bad, base.answered)
    return _compare("bad_answers", "empty or malformed answers", counts, policy.bad_answer_margin, policy, look)


def _compare(
    check: str, what: str, counts: tuple[int, int, int, int], margin: float, policy: CanaryPolicy, look: Look
) -> Finding:
    """Compares the shares hits/total of (candidate hits, candidate total, champion hits, champion total)."""
    hits, total, base_hits, base_total = counts
    if not total or not base_total:
        return Finding(check=check, decision="inconclusive", reason=f"{what}: an arm answered nothing")
    share, base = hits / total, base_hits / base_total
    p, level = fisher_greater(*counts), _harm_level(policy, look)
    text = f"{what}: {hits} of {total} against the champion's {base_hits} of {base_total}"
    statistic = {"fisher_p": p, "level": level}
    decision: Decision = "pass"
    if p <= level and share - base > margin:
        decision, text = "fail", f"{text}: more than {margin:.1%} worse, by chance with p = {p:.2g}"
    elif look.closing:
        upper = difference_upper(*counts, spend(policy.alpha, look.closing))
        statistic["difference_upper"] = upper
        if upper > margin:
            decision, text = "inconclusive", f"{text}: may be {upper:.1%} worse, {margin:.1%} is allowed"
    return Finding(check=check, decision=decision, candidate=share, champion=base, statistic=statistic, reason=text)


def _latency(trial: _Traffic, base: _Traffic, policy: CanaryPolicy, look: Look) -> Finding:
    """The candidate's p95 is within a limit exactly if at most 5 % of its answers are slower than the limit.

    So the quantile needs no test of its own: the share of answers slower than the limit is compared as any other share.
    """
    if not trial.seconds or not base.seconds:
        return Finding(check="latency", decision="inconclusive", reason="latency: an arm answered nothing")
    usual = percentile(base.seconds, 1 - SLOW_SHARE)
    limit = max(usual * policy.latency_ratio, usual + policy.latency_slack_seconds)
    slow, base_slow = (sum(seconds > limit for seconds in arm.seconds) for arm in (trial, base))
    p, level = fisher_greater(slow, trial.answered, base_slow, base.answered), _harm_level(policy, look)
    p95 = percentile(trial.seconds, 1 - SLOW_SHARE)
    text = f"latency: p95 {p95:.3f} s against the champion's {usual:.3f} s, limit {limit:.3f} s"
    statistic = {"fisher_p": p, "level": level, "limit_seconds": limit}
    decision: Decision = "pass"
    if p <= level and p95 > limit:
        decision, text = "fail", f"{text}: {slow} of {trial.answered} slower than the limit, by chance with p = {p:.2g}"
    elif look.closing:
        decision, text = _slow_share(slow, trial, policy, look, statistic, text)
    return Finding(check="latency", decision=decision, candidate=p95, champion=usual, statistic=statistic, reason=text)


def _slow_share(
    slow: int, trial: _Traffic, policy: CanaryPolicy, look: Look, statistic: dict[str, float], text: str
) -> tuple[Decision, str]:
    upper = wilson(slow, trial.answered, spend(policy.alpha, look.closing))[1]
    statistic["slow_share_upper"] = upper
    if upper > SLOW_SHARE:
        return "inconclusive", f"{text}: up to {upper:.1%} may be slower than the limit, {SLOW_SHARE:.0%} are allowed"
    return "pass", text


def _probes(probes: Mapping[str, Probe], policy: CanaryPolicy, look: Look) -> Finding:
    pairs = [(probe.candidate, probe.champion) for probe in probes.values() if probe.champion is not None]
    if not pairs:
        return Finding(check="probes", decision="inconclusive", reason="probes: no question was answered by both arms")
    right, base = (sum(bool(pair[arm]) for pair in pairs) / len(pairs) for arm in (0, 1))
    lost, won = pairs.count((False, True)), pairs.count((True, False))
    p, level = mcnemar_greater(lost, won), _harm_level(policy, look)
    text = f"probes: {right:.0%} right against the champion's {base:.0%} of {len(pairs)} ({lost} lost, {won} won)"
    decision: Decision = "pass"
    if base - right > policy.probe_margin:
        if p <= level:
            decision, text = "fail", f"{text}: lost by chance with p = {p:.2g}"
        elif look.closing:
            decision, text = "inconclusive", f"{text}: a drop of {policy.probe_margin:.0%} is allowed"
    statistic = {"mcnemar_p": p, "level": level}
    return Finding(check="probes", decision=decision, candidate=right, champion=base, statistic=statistic, reason=text)


def _first_errors(trial: _Traffic, _: _Traffic, policy: CanaryPolicy, look: Look) -> Finding:
    return _below("errors", "failed requests", trial.failed, trial.requests, policy.first_error_ceiling, policy, look)


def _first_bad_answers(trial: _Traffic, _: _Traffic, policy: CanaryPolicy, look: Look) -> Finding:
    ceiling = policy.first_bad_answer_ceiling
    return _below("bad_answers", "empty or malformed answers", trial.bad, trial.answered, ceiling, policy, look)


def _first_latency(trial: _Traffic, _: _Traffic, policy: CanaryPolicy, look: Look) -> Finding:
    limit = policy.first_latency_seconds
    slow = sum(seconds > limit for seconds in trial.seconds)
    return _below("latency", f"answers slower than {limit:g} s", slow, trial.answered, SLOW_SHARE, policy, look)


def _below(check: str, what: str, hits: int, total: int, ceiling: float, policy: CanaryPolicy, look: Look) -> Finding:
    if not total:
        return Finding(check=check, decision="inconclusive", reason=f"{what}: nothing was answered")
    lower = wilson(hits, total, _harm_level(policy, look))[0]
    upper = wilson(hits, total, spend(policy.alpha, max(look.closing, 1)))[1]
    decision: Decision = "fail" if lower > ceiling else "pass" if upper <= ceiling else "inconclusive"
    text = f"{what}: {hits} of {total}; between {lower:.1%} and {upper:.1%}, at most {ceiling:.1%} are allowed"
    statistic = {"wilson_lower": lower, "wilson_upper": upper}
    return Finding(check=check, decision=decision, candidate=hits / total, statistic=statistic, reason=text)


def _first_probes(probes: Mapping[str, Probe], policy: CanaryPolicy, look: Look) -> Finding:
    if not probes:
        return Finding(check="probes", decision="inconclusive", reason="probes: none was asked")
    right = sum(probe.candidate for probe in probes.values())
    upper = wilson(right, len(probes), _harm_level(policy, look))[1]
    share, floor = right / len(probes), policy.first_probe_floor
    decision: Decision = "pass" if share >= floor else "fail" if upper < floor else "inconclusive"
    text = f"probes: {right} of {len(probes)} right, {floor:.0%} are needed"
    return Finding(check="probes", decision=decision, candidate=share, statistic={"wilson_upper": upper}, reason=text)
