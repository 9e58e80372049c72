"""Every night: champion → golden sets → trend → alert. A champion that got worse ends the flow as failed."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed, Failed

from flows.launch import run_stage
from flows.settings import Settings, load_settings
from flows.trend import directions_of, find_regressions, read_trend, trend_rows
from lineage.errors import BadInput, GoldpathError
from lineage.job import Job
from lineage.record import read_record
from serving.release.ledger import Ledger
from serving.release.states import Release
from serving.release.store import verify_stored

SHOWN_NIGHTS = 14


@flow(name="nightly-eval", persist_result=False)
def nightly_eval_flow(model: str | None = None) -> State[Any]:
    """Evaluates champions against their golden sets and compares them with their release and their last nights.

    Args:
        model: the one model to look at; None looks at every model that has a champion.

    Returns:
        Completed, or Failed and named `Regressed`, with one reason per metric that got worse.
    """
    settings = load_settings()
    champions = find_champions(settings, model)
    if not champions:
        return Completed(message=f"{model or 'no model'} has a champion yet: there is nothing to evaluate")
    alarms: list[str] = []
    for champion in champions:
        try:
            out = evaluate(champion, settings)
            alarms += compare(champion, out, settings)
        except GoldpathError as error:  # one model that cannot be evaluated must not hide the others
            alarms.append(f"{champion.name}@{champion.version} could not be evaluated: {error}")
    if alarms:
        return Failed(name="Regressed", message="; ".join(alarms))
    return Completed(message=f"{', '.join(f'{c.name}@{c.version}' for c in champions)}: no regression")


def find_champions(settings: Settings, model: str | None) -> list[Release]:
    """Returns the champions of all models, or of the one that is named."""
    ledger = Ledger(settings.ledger)
    try:
        names = ledger.names()
        if model is not None and model not in names:
            raise BadInput("model", model, "is not in the ledger", f"name one of {', '.join(names) or '(none yet)'}")
        return [champion for name in names if model in (None, name) and (champion := ledger.champion(name))]
    finally:
        ledger.close()


def evaluate(champion: Release, settings: Settings) -> Path:
    """Runs the evaluation stage on the very bytes that are served, as the release was evaluated; returns its folder."""
    at_release = read_record(settings.runs / champion.name / champion.version / "evaluate")
    bundle = verify_stored(settings.bundles, champion.digest)
    job = Job(
        name=champion.name,
        version=champion.version,
        stage="evaluate",
        config=at_release.config,
        parents={"data": Path(at_release.parents["data"].path), "candidate": bundle},
        reads={"data": ["golden/*"]},
    )
    night = f"nightly-{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}"
    out = settings.runs / champion.name / night / "evaluate"
    run_stage(job, out, settings)
    return out


def compare(champion: Release, out: Path, settings: Settings) -> list[str]:
    """Shows the trend in the Prefect UI, raises the alarm where the champion got worse, and returns the reasons."""
    trend = read_trend(settings, champion.name, champion.version)
    reasons = find_regressions(trend, directions_of(settings, champion.name, champion.version))
    rows = trend_rows(trend[-SHOWN_NIGHTS:])
    key = f"{champion.name.replace('_', '-')}-nightly"
    create_table_artifact(rows, key=f"{key}-trend", description=f"{champion.name}: the last nights, oldest first")
    create_markdown_artifact(_report(champion, out, reasons), key=key, description="Nightly evaluation")
    for reason in reasons:
        get_run_logger().error("%s@%s regressed: %s", champion.name, champion.version, reason)
        emit_event(
            event="goldpath.champion.regressed",
            resource={"prefect.resource.id": f"goldpath.model.{champion.name}", "goldpath.digest": champion.digest},
            payload={"version": champion.version, "reason": reason, "scores": str(out / "scores.json")},
        )
    return [f"{champion.name}@{champion.version}: {reason}" for reason in reasons]


def _report(champion: Release, out: Path, reasons: list[str]) -> str:
    verdict = "**regressed**" if reasons else "no regression"
    lines = [f"# {champion.name}@{champion.version}: {verdict}", "", *[f"- {reason}" for reason in reasons]]
    next_step = f"Look at `{out / 'scores.json'}`"
    next_step += f"; `goldpath rollback {champion.name}` brings the previous champion back." if reasons else "."
    return "\n".join([*lines, "", f"Digest `{champion.digest}`. {next_step}"])
