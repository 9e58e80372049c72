"""Services start once, are found again, end with their starter, and never outlive it unseen.

The gateway stands for all of them where it does not matter which: it starts in half a second.
"""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.processes import family, is_alive
from flows.service_state import Service, read_services, remember, responds, state_of
from flows.services import running
from flows.settings import Settings
from flows.up import Watch
from lineage.errors import BadInput, GoldpathError
from tests.flows.programs import Command, eventually

USE_GATEWAY = """
import sys
from pathlib import Path
from flows.services import running
from flows.settings import Settings
with running(Settings(home=Path(sys.argv[1])), "gateway", report=print) as services:
    print("using", services["gateway"].pid)
    sys.stdin.readline()
    print("leaving")
"""
Start = Callable[..., Command]


def use_gateway(start_command: Start, settings: Settings) -> tuple[Command, int]:
    """A command that uses the gateway until it reads a line; returns it with the gateway's pid."""
    command = start_command(USE_GATEWAY, str(settings.home))
    return command, int(command.read_until("using").split()[1])


def nothing_is_left(settings: Settings, *names: str) -> bool:
    return not any(family(f"{name}@{settings.home}") for name in names or ("gateway",))


def test_a_service_lives_as_long_as_the_block(home_settings: Settings) -> None:
    environment = dict(os.environ)
    with running(home_settings, "gateway") as services:
        gateway = services["gateway"]
        assert state_of(gateway) == "live"
        assert read_services(home_settings) == {"gateway": gateway}
        assert os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] == "false"
        assert os.environ["GOLDPATH_HOME"] == str(home_settings.home)
    assert nothing_is_left(home_settings)
    assert state_of(read_services(home_settings)["gateway"]) == "stopped"
    assert dict(os.environ) == environment


def test_work_is_done_meanwhile_in_the_environment_of_the_services(home_settings: Settings) -> None:
    seen = []
    with running(home_settings, "gateway", meanwhile=lambda: seen.append(os.environ["GOLDPATH_HOME"])):
        assert seen == [str(home_settings.home)]

    def fail() -> None:
        raise GoldpathError("no import")

    with pytest.raises(GoldpathError, match="no import"), running(home_settings, "gateway", meanwhile=fail):
        pass
    assert nothing_is_left(home_settings)


def test_the_port_is_remembered(home_settings: Settings) -> None:
    with running(home_settings, "gateway") as services:
        first = services["gateway"].port
    with running(home_settings, "gateway") as services:
        assert services["gateway"].port == first


def test_a_second_command_uses_what_the_first_one_started(home_settings: Settings, start_command: Start) -> None:
    command, pid = use_gateway(start_command, home_settings)
    with running(home_settings, "gateway") as services:
        assert services["gateway"].pid == pid
        assert services.started == []
    assert is_alive(pid, psutil.Process(pid).create_time())
    command.say()
    assert command.process.wait(20) == 0
    assert nothing_is_left(home_settings)


@pytest.mark.parametrize("how", ["leaves", "is killed"])
def test_a_service_outlives_its_starter_while_another_command_uses_it(
    home_settings: Settings, start_command: Start, how: str
) -> None:
    first, pid = use_gateway(start_command, home_settings)
    second, _ = use_gateway(start_command, home_settings)
    if how == "leaves":
        first.say()
        first.read_until("gateway goes on")
        assert first.process.wait(20) == 0
    else:
        first.process.kill()
        first.process.wait(20)
    third, same = use_gateway(start_command, home_settings)  # one that comes now is served too
    assert same == pid
    third.say()
    assert third.process.wait(20) == 0
    assert responds(read_services(home_settings)["gateway"])
    second.say()
    assert second.process.wait(20) == 0
    assert nothing_is_left(home_settings)


def test_a_service_whose_every_user_was_killed_ends(home_settings: Settings, start_command: Start) -> None:
    first, _ = use_gateway(start_command, home_settings)
    second, _ = use_gateway(start_command, home_settings)
    for command in (first, second):
        command.process.kill()
        command.process.wait(20)
    assert eventually(lambda: nothing_is_left(home_settings))


def test_a_user_that_is_killed_holds_nothing_up(home_settings: Settings, start_command: Start) -> None:
    first, _ = use_gateway(start_command, home_settings)
    second, _ = use_gateway(start_command, home_settings)
    second.process.kill()
    second.process.wait(20)
    first.say()
    assert first.process.wait(20) == 0
    assert nothing_is_left(home_settings)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP)]
)
def test_a_signal_to_the_starter_ends_its_services(
    home_settings: Settings, start_command: Start, number: signal.Signals, code: int
) -> None:
    command, _ = use_gateway(start_command, home_settings)
    command.process.send_signal(number)
    assert command.process.wait(120) in (code, -number)
    assert nothing_is_left(home_settings)


def test_services_end_with_a_starter_that_is_killed(home_settings: Settings, start_command: Start) -> None:
    command, pid = use_gateway(start_command, home_settings)
    command.process.kill()
    assert eventually(lambda: nothing_is_left(home_settings))
    assert eventually(lambda: state_of(read_services(home_settings)["gateway"]) == "dead")
    with running(home_settings, "gateway") as services:  # what it left in services.json is no obstacle
        assert services["gateway"].pid != pid


@pytest.mark.parametrize("entry", ["a stranger", "not json"])
def test_a_stale_file_is_recovered(home_settings: Settings, entry: str) -> None:
    home_settings.home.mkdir()
    if entry == "not json":
        home_settings.services.write_text('{"gateway": {"pid": 1')
    else:  # the pid lives, but it belongs to another process than the one that was started
        remember(home_settings, Service("gateway", os.getpid(), 1.0, 1, "http://127.0.0.1:1"))
        assert state_of(read_services(home_settings)["gateway"]) == "dead"
    with running(home_settings, "gateway") as services:
        assert services.started == ["gateway"]
        assert services["gateway"].pid != os.getpid()
    assert psutil.pid_exists(os.getpid())


def test_a_service_that_is_killed_is_noticed_and_started_again(home_settings: Settings) -> None:
    with running(home_settings, "gateway") as services:
        watch = Watch(services)
        assert watch.look() == [f"gateway is live: {services['gateway'].url} (pid {services['gateway'].pid})"]
        before = services["gateway"]
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        assert eventually(lambda: state_of(before) == "dead")
        lines = watch.look()
        assert any("gateway ended by itself" in line for line in lines)
        assert watch.restarts == {"gateway": 1}
        assert services["gateway"].url == before.url
        assert responds(services["gateway"])
        assert watch.look() == []
    assert nothing_is_left(home_settings)


def test_a_service_that_hangs_is_named_and_left_to_its_users(
    home_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.services.HANG_DEADLINE", 1.0)
    monkeypatch.setattr("flows.services.START_DEADLINE", 20.0)  # a young service may still be starting: that long it has
    with running(home_settings, "gateway") as services:
        keeper = psutil.Process(services["gateway"].pid)
        (hung,) = keeper.children()
        hung.suspend()
        assert state_of(services["gateway"]) == "not responding"
        with pytest.raises(GoldpathError, match=f"does not answer .* kill {keeper.pid}"), running(home_settings, "gateway"):
            pass
        hung.resume()
        with running(home_settings, "gateway") as others:
            assert others["gateway"].pid == keeper.pid


def test_a_port_in_use_is_refused_and_nothing_is_left(home_settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = home_settings.model_copy(update={"gateway_port": taken.getsockname()[1]})
        with pytest.raises(BadInput, match=r"GOLDPATH_GATEWAY_PORT: port \d+ is in use"), running(wanted, "gateway"):
            pass
    assert nothing_is_left(home_settings)


def test_a_service_that_cannot_start_shows_its_log(home_settings: Settings) -> None:
    home_settings.mlflow_db.parent.mkdir(parents=True)
    home_settings.mlflow_db.write_text("this is no database " * 100)
    with pytest.raises(GoldpathError) as caught, running(home_settings, "gateway", "mlflow"):
        pass
    assert "mlflow ended with exit code" in str(caught.value)
    assert "file is not a database" in str(caught.value)
    assert nothing_is_left(home_settings, "gateway", "mlflow")


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="GOLDPATH_HOME"), running(Settings(home=tmp_path / "file" / "home"), "gateway"):
        pass


def test_servers_of_others_are_neither_started_nor_stopped(home_settings: Settings, tmp_path: Path) -> None:
    with running(home_settings, "gateway") as own:
        address = own["gateway"].url
        elsewhere = Settings(home=tmp_path / "other", mlflow_tracking_uri=address, prefect_api_url=f"{address}/api")
        with running(elsewhere, "prefect", "mlflow") as services:
            assert services.started == []
            assert services["prefect"].external
            assert services["prefect"].url == address
            assert os.environ["MLFLOW_TRACKING_URI"] == address
        assert responds(own["gateway"])


def test_mlflow_keeps_runs_and_models(home_settings: Settings, start_command: Start) -> None:
    program = """
import mlflow, sys
client = mlflow.MlflowClient()
run = client.create_run(client.create_experiment("e"))
client.log_metric(run.info.run_id, "loss", 1.5)
client.log_text(run.info.run_id, "text", "note.txt")
client.create_registered_model("m")
version = client.create_model_version("m", f"{run.info.artifact_uri}", run.info.run_id)
client.set_registered_model_alias("m", "champion", version.version)
print("alias", client.get_model_version_by_alias("m", "champion").version, client.get_run(run.info.run_id).data.metrics)
"""
    with running(home_settings, "mlflow") as services:
        mlflow = services["mlflow"]
        assert len(family(f"mlflow@{home_settings.home}")) == 3  # the server, its one worker, and the keeper
        command = start_command(program)
        assert command.read_until("alias") == "alias 1 {'loss': 1.5}\n"
    assert list((home_settings.mlflow_db.parent / "artifacts").rglob("note.txt"))
    assert not is_alive(mlflow.pid or 0, mlflow.started)


def test_prefect_never_falls_back_to_an_ephemeral_server(home_settings: Settings, start_command: Start) -> None:
    program = """
import flows
from prefect import flow
@flow
def empty() -> None: ...
try:
    empty()
except ValueError as error:
    print("refused:", error)
"""
    assert "API URL" in start_command(program).read_until("refused")


def test_services_json_is_readable_by_people(home_settings: Settings) -> None:
    with running(home_settings, "gateway") as services:
        gateway = services["gateway"]
        listed = json.loads(home_settings.services.read_text())
    expected = {"pid": gateway.pid, "started": gateway.started, "port": gateway.port, "url": gateway.url}
    assert listed == {"gateway": expected}
