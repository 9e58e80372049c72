"""Prefect tasks. A task starts a stage and shows what came of it; the logic is in the stages. Retries live here only."""

from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact

from flows.console import say
from flows.launch import StageFailed, run_stage
from flows.nodes import other_nodes
from flows.plan import Decision, Step, decide, link_reused
from flows.settings import Settings
from lineage.record import Record, read_record

PERCENT_DONE = 100.0


def was_interrupted(_task: Any, _run: Any, state: Any) -> bool:
    """A stage that was ended from outside (out of memory, preemption) is worth another try; bad input never gets better."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.interrupted


@task(task_run_name="{step.stage}", retry_condition_fn=was_interrupted, persist_result=False)
def run_step(step: Step, settings: Settings) -> Record:
    """Runs one stage, or reuses it, and returns its verified record."""
    decision = decide(step, settings)
    if decision.action == "later":
        step.job.inputs()  # raises, naming the parent that did not finish
    if decision.action == "done":
        record = read_record(step.out)
        say(step.stage, "reused: finished before with this very configuration", record.metrics)
    elif decision.source is not None:
        link_reused(step, decision.source)
        record = read_record(step.out)
        say(step.stage, f"reused from {record.name}@{record.version}", record.metrics)
    else:
        record = _run(step, decision, settings)
    _show(step, record)
    return record


def stage_task(step: Step, settings: Settings) -> Record:
    """Runs `run_step` with the retries that the settings ask for; none by default, as a person at a terminal can decide."""
    record: Record = run_step.with_options(retries=settings.stage_retries)(step, settings)
    return record


def _run(step: Step, decision: Decision, settings: Settings) -> Record:
    progress = create_progress_artifact(0.0, description=f"{step.job.name}@{step.job.version} {step.stage}")
    assert isinstance(progress, UUID)  # a coroutine only where an event loop runs, and a task has none
    say(step.stage, "continues where it was stopped" if decision.action == "continue" else "runs")
    accepted = (0, 3) if step.job.stage == "gate" else (0,)
    with other_nodes(step.job, step.out, settings) as meeting:
        run_stage(step.job, step.out, settings, accepted, meeting)
    record = read_record(step.out)
    update_progress_artifact(progress, PERCENT_DONE)
    say(step.stage, f"finished in {record.seconds:.1f} s", record.metrics)
    return record


def _show(step: Step, record: Record) -> None:
    """Leaves the stage's figures in the Prefect UI."""
    key = f"{step.job.name}-{step.stage}".replace("_", "-").replace(".", "-").lower()
    rows = [{"figure": name, "value": value} for name, value in record.metrics.items()]
    create_table_artifact(rows, key=key, description=f"{step.job.name}@{step.job.version} {step.stage}: `{step.out}`")
