"""The real thing: a Prefect server, prefect.yaml on it, a worker, and a nightly flow that its schedule starts.

It guards two pins: with fastapi >= 0.151 the server does not start, with sqlalchemy >= 2.1 schedules never fire, and
`pip check` finds both in order.
"""

import json
import os
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.deploy import NO_HEARTBEAT, deploy
from flows.processes import family
from flows.service_commands import COMMANDS
from flows.services import Services, running
from flows.settings import Settings
from tests.flows.programs import Command, eventually

FIRST_RUN_DEADLINE = 150.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

RUN_BY_SCHEDULE = """
import time
from prefect import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.schedules import CronSchedule
with get_client(sync_client=True) as client:
    nightly = client.read_deployment_by_name("nightly-eval/nightly")
    for schedule in nightly.schedules:
        client.delete_deployment_schedule(nightly.id, schedule.id)
    client.create_deployment_schedules(nightly.id, [(CronSchedule(cron="* * * * *"), True)])
    print("scheduled", flush=True)
    deadline = time.monotonic() + {deadline}
    done = []
    while not done and time.monotonic() < deadline:
        time.sleep(0.5)
        runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[nightly.id])))
        done = [run for run in runs if run.state.is_final()]
    print("done", done and (done[0].auto_scheduled, done[0].state.name, done[0].state.message), flush=True)
"""
DEPLOYMENTS = """
import json
from prefect import get_client
with get_client(sync_client=True) as client:
    found = {d.name: d for d in client.read_deployments()}
    rules = [rule.name for rule in client.read_automations()]
    print("deployed", json.dumps({n: [d.entrypoint, d.work_pool_name, d.parameters, [s.schedule.cron for s in d.schedules]]
                                  for n, d in sorted(found.items())} | {"rules": rules}), flush=True)
"""
UP = "import sys; from flows.cli import main; sys.argv = ['goldpath', 'up']; main()"


@pytest.fixture(scope="module")
def prefect_services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    settings = Settings(home=tmp_path_factory.mktemp("deployed"), prefect_api_url="", mlflow_tracking_uri="")
    with running(settings, "prefect", "worker") as services:
        deploy(settings)
        yield services


@pytest.fixture
def to_prefect(prefect_services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The autouse fixture that hides a user's server must not hide this one."""
    monkeypatch.setenv("PREFECT_API_URL", f"{prefect_services['prefect'].url}/api")


@pytest.mark.usefixtures("to_prefect")
def test_prefect_yaml_puts_up_its_deployments(prefect_services: Services, start_command: Callable[..., Command]) -> None:
    deploy(prefect_services.settings)  # once more changes nothing
    found = json.loads(start_command(DEPLOYMENTS).read_until("deployed").removeprefix("deployed "))
    assert found == {
        "build": ["flows/build_flow.py:build_flow", "goldpath", {"recipe": "pystdlib"}, []],
        "release": ["flows/release_flow.py:release_flow", "goldpath", {}, []],
        "nightly": ["flows/nightly_eval_flow.py:nightly_eval_flow", "goldpath", {"model": None}, ["30 2 * * *"]],
        "train-node": ["flows/nodes.py:train_node_flow", "goldpath-nodes", {}, []],
        "rules": [NO_HEARTBEAT],
    }


def test_the_page_asks_the_server_that_it_came_from(prefect_services: Services) -> None:
    with urllib.request.urlopen(prefect_services["prefect"].url + "/ui-settings", timeout=10) as answer:
        assert json.load(answer)["api_url"] == "/api"


@pytest.mark.usefixtures("to_prefect")
def test_a_schedule_fires_and_the_nightly_flow_completes(start_command: Callable[..., Command]) -> None:
    command = start_command(RUN_BY_SCHEDULE.replace("{deadline}", str(FIRST_RUN_DEADLINE)))
    command.read_until("scheduled")
    message = "no model has a champion yet: there is nothing to evaluate"
    assert command.read_until("done").strip() == f"done (True, 'Completed', '{message}')"


def test_up_starts_everything_and_ctrl_c_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_command: Callable[..., Command]
) -> None:
    monkeypatch.setenv("GOLDPATH_HOME", str(tmp_path))
    command = start_command(UP)
    for name in COMMANDS:
        command.read_until(f"{name} is live: http://127.0.0.1:")
    workers = family(f"worker@{tmp_path}")
    assert workers
    os.kill(workers[0].pid, signal.SIGKILL)
    command.read_until("worker ended by itself")
    command.read_until("worker is live again")
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(180) == 0
    assert eventually(lambda: not any(family(f"{name}@{tmp_path}") for name in COMMANDS), 1.0)
