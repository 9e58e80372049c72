"""data → pretrain → SFT → DPO → evaluation → gate → candidate: the first half of the golden path, on one page."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from evaluation.golden import read_golden
from evaluation.suite import load_suite
from flows.console import say
from flows.gating import gate_against_champion
from flows.plan import steps_of
from flows.recipe import load_recipe
from flows.release import keep_policy, register_candidate
from flows.settings import load_settings
from flows.tasks import stage_task
from lineage.errors import BadInput
from serving.release.states import State as Stands

GATE = "gate"


@flow(name="build", flow_run_name="build-{recipe}", persist_result=False)
def build_flow(
    recipe: str, version: str | None = None, only: str | None = None, allow_changes: list[str] | None = None
) -> State[Any]:
    """Builds one version of a model and registers it as a candidate.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        version: takes the place of the recipe's version.
        only: run this stage alone; the stages before it must have finished. `gate` compares a version afresh with the
            champion of now, and registers the verdict.
        allow_changes: what may differ from the unfinished training that this run continues (`lineage.changes`).

    Returns:
        Completed, or Failed and named `GateFailed` where the verdict is not `pass`; the data is the same summary.
    """
    settings = load_settings()
    plan = load_recipe(recipe, version)
    steps = steps_of(plan, settings, allow_changes or [])
    stages = [*(step.stage for step in steps), GATE]
    if only is not None and only not in stages:
        raise BadInput("--only", only, "is no stage of this recipe", f"take one of {', '.join(stages)}")

    keep_policy(plan, settings)
    summary: dict[str, Any] = {"name": plan.name, "version": plan.version, "verdict": None, "stages": {}}
    for step in steps:
        if only in (None, step.stage):
            record = stage_task(step, settings)
            if step.stage == "data" and only is None:  # rather now than after hours of training
                read_golden(step.out, [task.golden for task in load_suite(plan.evaluation.suite).tasks])
            summary["stages"][step.stage] = {"seconds": record.seconds, "out": str(step.out), "metrics": record.metrics}
    if only not in (None, GATE):
        return Completed(message=f"{only} finished", data=summary)

    gate = gate_against_champion(plan, settings, afresh=only == GATE)
    candidate = register_candidate(plan, settings, gate)
    summary |= {
        "verdict": gate.verdict,
        "reasons": gate.reasons,
        "against": gate.champion,
        "digest": candidate.digest,
        "state": str(candidate.state),
    }
    summary["stages"]["gate"] = {"seconds": gate.record.seconds, "out": str(gate.folder), "metrics": gate.record.metrics}
    _show(summary)
    if gate.verdict != "pass":
        say("gate", f"{gate.verdict}: {plan.name}@{plan.version} cannot be approved; {gate.folder / 'report.html'}")
        for reason in gate.reasons:
            say("", reason)
        return Failed(name="GateFailed", message="; ".join(gate.reasons), data=summary)
    standing = "is registered and waits for approval" if candidate.state is Stands.GATED else f"is {candidate.state}"
    say("candidate", f"{plan.name}@{plan.version} {standing}")
    return Completed(message=f"{plan.name}@{plan.version} {standing}", data=summary)


def _show(summary: dict[str, Any]) -> None:
    """Leaves the outcome where people look: in the Prefect UI."""
    lines = [f"# {summary['name']}@{summary['version']}: gate **{summary['verdict']}**", ""]
    lines += [f"- {reason}" for reason in summary["reasons"]]
    lines += ["", f"Digest `{summary['digest']}`. Report: `{summary['stages']['gate']['out']}/report.html`"]
    create_markdown_artifact("\n".join(lines), key=f"{summary['name'].replace('_', '-')}-gate", description="Gate verdict")
