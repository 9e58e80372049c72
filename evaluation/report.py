"""The gate's report: `report.json` for programs, `report.html` for people. The page needs nothing outside itself."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation import charts
from evaluation.config import GatePolicy
from evaluation.evidence import CANDIDATE, CHAMPION, Evidence
from evaluation.gate import Verdict
from evaluation.samples import Sample
from evaluation.scores import Score
from lineage.files import write_atomic, write_json
from lineage.job import Job

TEMPLATE = Path(__file__).with_name("report.html")
NUM_REGRESSIONS = 12  # per metric, worst first


def write_report(
    out: Path, job: Job, policy: GatePolicy, verdict: Verdict, candidate: Evidence, champion: Evidence | None
) -> None:
    """Writes `report.json` and `report.html`. The other models of the candidate's evaluation are shown beside it."""
    by_metric = _by_metric(candidate, champion)
    report = {
        "name": job.name,
        "version": job.version,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **verdict.model_dump(mode="json"),
        "policy": policy.model_dump(mode="json"),
        "suite": candidate.scores.suite,
        "golden": candidate.scores.golden,
        "harness": candidate.scores.harness,
        "digests": _digests(candidate, champion),
        "scores": {
            metric: {label: score.model_dump(mode="json") for label, score in by_label.items()}
            for metric, by_label in by_metric.items()
        },
        "regressions": _regressions(candidate, champion) if champion else {},
    }
    write_json(out / "report.json", report)
    write_atomic(out / "report.html", _render(report, policy, verdict, by_metric))


def _digests(candidate: Evidence, champion: Evidence | None) -> dict[str, str]:
    digests = {label: model.digest for label, model in candidate.scores.models.items()}
    return digests | ({CHAMPION: champion.candidate.digest} if champion else {})


def _by_metric(candidate: Evidence, champion: Evidence | None) -> dict[str, dict[str, Score]]:
    """Returns the scores by metric, then by label: the candidate's evaluation in its order, then the champion."""
    models = candidate.scores.models | ({CHAMPION: champion.candidate} if champion else {})
    return {
        metric: {label: model.metrics[metric] for label, model in models.items() if metric in model.metrics}
        for metric in candidate.scores.directions
    }


def _regressions(candidate: Evidence, champion: Evidence) -> dict[str, list[dict[str, Any]]]:
    """Returns per metric the items on which the candidate lost most against the champion, worst first, side by side."""
    found: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    others = {(sample.full_name, sample.id): sample for sample in champion.samples}
    for mine in candidate.samples:
        theirs = others[mine.full_name, mine.id]
        if mine.score is None or theirs.score is None:
            continue
        sign = 1 if candidate.scores.directions[mine.full_name] == "higher" else -1
        loss = sign * (theirs.score - mine.score)
        if loss > 0:
            found.setdefault(mine.full_name, []).append((loss, _side_by_side(mine, theirs)))
    return {
        metric: [row for _, row in sorted(rows, key=lambda pair: -pair[0])[:NUM_REGRESSIONS]]
        for metric, rows in found.items()
    }


def _side_by_side(mine: Sample, theirs: Sample) -> dict[str, Any]:
    return {
        "id": mine.id,
        "prompt": mine.prompt,
        "expected": mine.expected,
        "tags": mine.tags,
        CANDIDATE: {"answer": mine.answer, "score": mine.score},
        CHAMPION: {"answer": theirs.answer, "score": theirs.score},
    }


def _render(report: dict[str, Any], policy: GatePolicy, verdict: Verdict, by_metric: dict[str, dict[str, Score]]) -> str:
    from jinja2 import Environment
    from markupsafe import Markup

    floors = {rule.metric: rule.floor for rule in policy.metrics}
    compared = [check for check in verdict.checks if check.kind == "champion"]
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    # The charts escape their own texts; everything else is escaped by the template.
    return page.render(
        **report,
        forest=Markup(charts.forest(compared)) if compared else None,
        bars={metric: Markup(charts.bars(scores, floors.get(metric))) for metric, scores in by_metric.items()},
        directions={check.metric: check.direction for check in verdict.checks},
    )
