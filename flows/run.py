"""What the commands that do work call: they bring up what the work needs, start the flow or the stage, and wait for it."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.console import say
from flows.launch import run_stage
from flows.plan import final_bundle, parse_address, source_inputs
from flows.services import running
from flows.tracking import prepare_experiment, tracking_uri
from lineage.bundle import MANIFEST, read_manifest
from lineage.errors import BadInput
from lineage.job import Job
from lineage.record import RECORD, read_record

if TYPE_CHECKING:
    from flows.settings import Settings


def run_build(
    settings: "Settings", recipe: str, version: str | None, only: str | None, allow_changes: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs the build flow in this process, against a real Prefect server, and returns its summary.

    Raises:
        GoldpathError: as the flow raised it: the stage, its message, and the command that replays it.
    """
    from flows.recipe import load_recipe

    name = load_recipe(recipe, version).name  # a typo is told at once, before any server starts

    def prepare() -> None:
        prepare_experiment(settings, name)
        import_module("flows.build_flow")
        # Registration needs it in the end. It is here before a server that starts now, and nobody waits for it elsewhere.
        pool.submit(import_module, "mlflow")

    with ThreadPoolExecutor(max_workers=1) as pool, flow_servers(settings, meanwhile=prepare):
        from flows.build_flow import build_flow

        return _outcome(build_flow(recipe, version, only, list(allow_changes), return_state=True))


def run_release(settings: "Settings", address: str) -> dict[str, Any]:
    """Runs the release flow in this process and returns its summary."""
    name, version = parse_address(address)
    from flows.release import require_registered

    require_registered(settings, name, version)
    with flow_servers(settings, "gateway", meanwhile=partial(import_module, "flows.release_flow")):
        from flows.release_flow import release_flow

        return _outcome(release_flow(name, version, return_state=True))


def run_evaluation(settings: "Settings", model: str, suite: str, golden: Path | None) -> dict[str, Any]:
    """Scores a version or a bundle folder on golden sets, and returns the scores. The same question is answered once."""
    bundle, address = find_bundle(settings, model)
    data = golden or _golden_beside(bundle)
    digest = read_manifest(bundle).digest.removeprefix("sha256:")
    name, _, version = address.partition("@")
    job = Job(
        name=name,
        version=version or digest[:12],
        stage="evaluate",
        config={"suite": suite},
        parents={"data": data, "candidate": bundle},
        reads={"data": ["golden/*"]},
    )
    identity = job.fingerprint(job.inputs() | source_inputs(job, settings))
    out = settings.home / "evaluations" / digest[:12] / f"{Path(suite).stem}-{identity[:12]}"
    run_stage(job, out, settings)
    record = read_record(out)
    say("evaluate", f"finished in {record.seconds:.1f} s: {out}")
    return {"model": model, "digest": f"sha256:{digest}", "suite": suite, "metrics": record.metrics, "out": str(out)}


def serve_bundle(settings: "Settings", model: str, port: int) -> int:
    """Becomes the endpoint of a bundle: the process that a person ends is the one that serves."""
    bundle, address = find_bundle(settings, model)
    name = ["--model", address.partition("@")[0]]
    command = [sys.executable, "-m", "serving", "endpoint", "--bundle", str(bundle), "--port", str(port), *name]
    sys.stdout.flush()
    os.execv(sys.executable, command)


def find_bundle(settings: "Settings", model: str) -> tuple[Path, str]:
    """Returns the bundle folder of `NAME@VERSION` or of a folder, and the name that the result goes by.

    Raises:
        BadInput: there is no bundle.
    """
    folder = Path(model)
    if not folder.is_dir() and "@" in model:
        return final_bundle(settings, *parse_address(model)), model
    for candidate in (folder, folder / "bundle"):
        if (candidate / MANIFEST).is_file():
            return candidate, folder.resolve().name
    raise BadInput(
        model, "", "is neither NAME@VERSION nor a bundle folder", "see `goldpath models`, or give a run's `bundle`"
    )


@contextmanager
def flow_servers(settings: "Settings", *more: str, meanwhile: Callable[[], object]) -> Iterator[None]:
    """Runs a Prefect server (and what else is named), and points MLflow clients to the live server or to its database.

    Goldpath's MLflow server and a client that opens its database directly see the same runs: a build does not have to
    wait for a server that only people who look need.

    Args:
        meanwhile: what this process does while they start: heavy imports take as long as Prefect's server does.
    """

    def prepare() -> None:
        # Prefect's UI gets every log line; the terminal has ours, and never a traceback. The servers' logs keep theirs.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        meanwhile()

    with running(settings, "prefect", *more, report=lambda line: say("services", line), meanwhile=prepare) as services:
        os.environ.setdefault("MLFLOW_TRACKING_URI", tracking_uri(settings))
        from prefect.logging.handlers import APILogHandler
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        # Nobody listens on a server that ends with this command, and the end of a flow waits up to 1 s for their thread.
        no_heartbeats = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if "prefect" in services.started else {}
        try:
            with temporary_settings(no_heartbeats):
                yield
        finally:
            APILogHandler().flush()  # before the server that the lines go to is stopped


def _outcome(state: Any) -> dict[str, Any]:
    """Returns a flow's summary; what the flow raised is raised here again, so that it keeps its exit code."""
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    summary: dict[str, Any] = result
    return summary


def _golden_beside(bundle: Path) -> Path:
    """Returns the data folder that a run's bundle was trained on."""
    record = bundle.parent / RECORD
    parent = read_record(bundle.parent).parents.get("data") if record.is_file() else None
    if parent is None:
        raise BadInput(
            bundle, "", "was not made by a run, so its golden sets are unknown", "name them with --golden FOLDER"
        )
    return Path(parent.path)
