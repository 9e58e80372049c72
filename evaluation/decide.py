"""The gate stage: reads two evaluations, refuses what cannot be compared, judges, and writes verdict and report."""

from pathlib import Path

from evaluation.config import GatePolicy
from evaluation.evidence import CANDIDATE, CHAMPION, Evidence, check_comparable, read_evidence
from evaluation.gate import Check, judge
from evaluation.report import write_report
from evaluation.samples import measure_all
from lineage.errors import BadInput
from lineage.files import write_json
from lineage.job import Job
from lineage.record import Metric


def decide(job: Job, policy: GatePolicy, out: Path) -> dict[str, Metric]:
    """Judges the candidate's evaluation, against the champion's where there is one.

    Writes `verdict.json`, `report.json` and `report.html`.

    Args:
        job: its parent `candidate`, and optionally `champion`, are folders of evaluate stages.

    Raises:
        BadInput: the policy names a metric that was not scored, or the two evaluations cannot be compared.
    """
    if CANDIDATE not in job.parents:
        raise BadInput("job.yaml", f"parents.{CANDIDATE}", "is missing", "name the candidate's evaluate folder")
    candidate = read_evidence(job.parents[CANDIDATE])
    champion = read_evidence(job.parents[CHAMPION]) if CHAMPION in job.parents else None
    check_policy(policy, candidate, has_champion=champion is not None)
    if champion is not None:
        check_comparable(candidate, champion)
    mine, theirs = measure_all(candidate.samples), measure_all(champion.samples) if champion else None
    verdict = judge(policy, mine, theirs, champion.name if champion else "")
    write_json(out / "verdict.json", verdict.model_dump(mode="json"))
    write_report(out, job, policy, verdict, candidate, champion)
    against = {"against": verdict.against} if champion else {}
    return {"verdict": verdict.verdict, **against, **dict(_figure(check) for check in verdict.checks)}


def _figure(check: Check) -> tuple[str, float | None]:
    """Returns what a check looked at: the score itself, or the improvement over the champion."""
    return (check.metric if check.kind == "floor" else f"{check.metric}.improvement"), check.value


def check_policy(policy: GatePolicy, candidate: Evidence, has_champion: bool) -> None:
    """Refuses a policy that these scores cannot answer.

    Raises:
        BadInput: a rule's metric was not scored or its direction is wrong, or nothing would be checked at all.
    """
    scored = candidate.candidate.metrics
    for number, rule in enumerate(policy.metrics):
        field = f"metrics.{number}"
        if rule.metric not in scored:
            problem = f"{rule.metric} was not scored in {candidate.folder}"
            raise BadInput("gate", f"{field}.metric", problem, f"take one of {', '.join(scored)}, or another suite")
        if (direction := candidate.scores.directions[rule.metric]) != rule.direction:
            problem = f"is `{rule.direction}`, but of {rule.metric} {direction} is better"
            raise BadInput("gate", f"{field}.direction", problem, f"write `{direction}`")
    if not has_champion and all(rule.floor is None for rule in policy.metrics):
        problem = "no rule has a floor and there is no champion: nothing would be checked"
        raise BadInput("gate", "metrics", problem, "give at least one rule a `floor:`")
