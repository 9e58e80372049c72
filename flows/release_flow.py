"""approved candidate → canary → champion, or rolled back: the second half of the golden path."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.console import say
from flows.launch import run_stage
from flows.release import canary_step
from flows.settings import load_settings
from lineage.errors import ExitCode
from lineage.record import RECORD, read_record

OUTCOMES = {ExitCode.OK: "champion", ExitCode.AWAITING_APPROVAL: "awaiting approval", ExitCode.ROLLED_BACK: "rolled back"}


@flow(name="release", flow_run_name="release-{name}-{version}", persist_result=False)
def release_flow(name: str, version: str) -> State[Any]:
    """Takes an approved version through its canary on real traffic.

    Returns:
        Completed where it became champion, else Failed, named `RolledBack` or `AwaitingApproval`; the data is a summary.
    """
    settings = load_settings()
    step = canary_step(settings, name, version)
    say("canary", f"{name}@{version} meets real traffic")
    done = run_stage(step.job, step.out, settings, accepted=tuple(int(code) for code in OUTCOMES))
    code = ExitCode(done["exit_code"])
    metrics = read_record(step.out).metrics if (step.out / RECORD).is_file() else {}
    summary = {"name": name, "version": version, "outcome": OUTCOMES[code], "exit_code": int(code), "out": str(step.out)}
    summary |= {key: value for key, value in metrics.items() if key not in summary}
    say("release", f"{name}@{version}: {OUTCOMES[code]}")
    lines = [f"# {name}@{version}: {OUTCOMES[code]}", "", *(f"- {key}: {value}" for key, value in summary.items())]
    create_markdown_artifact("\n".join(lines), key=f"{name.replace('_', '-')}-release", description="Release outcome")
    if code is ExitCode.OK:
        return Completed(message=f"{name}@{version} is champion", data=summary)
    state_name = "RolledBack" if code is ExitCode.ROLLED_BACK else "AwaitingApproval"
    return Failed(name=state_name, message=f"{name}@{version}: {OUTCOMES[code]}", data=summary)
