"""Training on several nodes: torchrun's first agent is here, a Prefect worker on each of the other nodes starts its own."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from prefect import flow, get_client
from prefect.deployments import run_deployment
from prefect.states import Cancelled, Cancelling

from flows.console import say
from flows.deploy import deploy
from flows.launch import TRAINING_STAGES, Meeting, run_stage
from flows.processes import choose_port
from flows.settings import Settings, load_settings
from lineage.job import Job
from training.resources import Resources

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

NAME = "train-node"
SECONDS_TO_END, LOOK_SECONDS = 60.0, 0.5


@flow(name=NAME, persist_result=False)
def train_node_flow(job: dict[str, Any], out: str, endpoint: str, run_id: str) -> None:
    """Trains one further node's share of a stage, until the stage ends.

    Args:
        job, out: the stage, as its first node has it; its folder is shared.
        endpoint, run_id: where the nodes meet (`flows.launch.Meeting`).
    """
    run_stage(Job.model_validate(job), Path(out), load_settings(), meeting=Meeting(endpoint, run_id, is_first=False))


@contextmanager
def other_nodes(job: Job, out: Path, settings: Settings) -> Iterator[Meeting | None]:
    """While it is entered, the other nodes of a stage train, or wait for its first one; None where there are no others.

    Each is a flow run that any worker of the pool takes which has nothing to do.
    """
    nodes = Resources.model_validate(job.resources).nodes if job.stage in TRAINING_STAGES else 1
    if nodes == 1:
        yield None
        return
    deploy(settings, NAME)
    meeting = Meeting(f"{settings.node_address}:{choose_port(0, 0)}", f"{job.name}-{job.version}-{uuid4().hex[:8]}")
    told = {"job": job.model_dump(mode="json"), "out": str(out), "endpoint": meeting.endpoint, "run_id": meeting.run_id}
    # It is a coroutine only where an event loop runs, and a task has none.
    runs = [cast("FlowRun", run_deployment(f"{NAME}/{NAME}", parameters=told, timeout=0)) for _ in range(nodes - 1)]
    say(job.stage, f"waits for {nodes - 1} more node(s) to meet at {meeting.endpoint}")
    patience = 0.0
    try:
        yield meeting
        patience = SECONDS_TO_END
    finally:
        with get_client(sync_client=True) as client:
            for run in runs:
                _end(client, run, patience)


def _end(client: "SyncPrefectClient", run: "FlowRun", patience: float) -> None:
    """Waits so many seconds for a flow run to end by itself, then ends it, also where no worker has taken it yet."""
    deadline = time.monotonic() + patience
    while (state := client.read_flow_run(run.id).state) is None or not state.is_final():
        if time.monotonic() > deadline:
            client.set_flow_run_state(run.id, Cancelled() if state and state.is_scheduled() else Cancelling())
            return
        time.sleep(LOOK_SECONDS)
