"""Aliases and routes follow the ledger, whatever somebody did to them; MLflow is real."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient
from release_house import NAME, House

from lineage.bundle import verify_bundle
from lineage.errors import GoldpathError, Tampered
from lineage.privacy import TELEMETRY_OFF
from serving.release.aliases import mirror_to_mlflow
from serving.release.ledger import Ledger
from serving.release.promote import rollback
from serving.release.reconcile import driving, project_routes, reconcile
from serving.release.states import Event, State
from serving.routes import Route, read_routes, set_route


def aliases(house: House) -> dict[str, str]:
    """Alias → our version, as MLflow has it."""
    client = MlflowClient(house.places.mlflow, house.places.mlflow)
    named = client.get_registered_model(NAME).aliases
    return {alias: client.get_model_version(NAME, str(number)).tags["goldpath.version"] for alias, number in named.items()}


def test_mlflow_gets_versions_tags_artifacts_and_aliases(house: House, tmp_path: Path) -> None:
    house.crown("1.0.0")
    house.crown("1.1.0")
    candidate = house.gated("1.2.0")
    assert reconcile(house.ledger, house.places, NAME)
    assert aliases(house) == {"candidate": "1.2.0", "champion": "1.1.0", "previous": "1.0.0"}
    client = MlflowClient(house.places.mlflow, house.places.mlflow)
    model = client.get_model_version_by_alias(NAME, "candidate")
    assert model.tags["goldpath.digest"] == candidate.digest
    assert model.tags["goldpath.data_version"] == "d41d8.dir"
    assert model.tags["goldpath.commit"] == "0123abc"
    assert model.tags["goldpath.gate"] == "pass"
    fetched = client.download_artifacts(model.run_id, "bundle", str(tmp_path))
    assert verify_bundle(Path(fetched), candidate.digest) == candidate.digest
    assert reconcile(house.ledger, house.places, NAME) == []


def test_reconcile_repairs_what_was_broken_and_says_so(house: House) -> None:
    house.crown("1.0.0")
    house.crown("1.1.0")
    reconcile(house.ledger, house.places, NAME)
    client = MlflowClient(house.places.mlflow, house.places.mlflow)
    old = client.get_model_version_by_alias(NAME, "previous")
    client.set_registered_model_alias(NAME, "champion", str(old.version))
    client.set_registered_model_alias(NAME, "candidate", str(old.version))
    client.set_model_version_tag(NAME, str(old.version), "goldpath.gate", "fail")
    good = read_routes(house.places.routes).routes[NAME]
    set_route(house.places.routes, Route(model=NAME, token=good.token, stable=None))
    repairs = reconcile(house.ledger, house.places, NAME)
    assert [text.split(":")[0] for text in repairs] == ["routes", "MLflow", "MLflow", "MLflow"]
    assert aliases(house) == {"champion": "1.1.0", "previous": "1.0.0"}
    assert read_routes(house.places.routes).routes[NAME] == good
    assert reconcile(house.ledger, house.places, NAME) == []


def test_routes_are_rebuilt_from_nothing(house: House) -> None:
    house.crown("1.0.0")
    assert project_routes(house.ledger, house.places, NAME) == [f"routes: {NAME}: stable 1.0.0"]
    house.places.routes.unlink()
    project_routes(house.ledger, house.places, NAME)
    route = read_routes(house.places.routes).routes[NAME]
    assert route.stable
    assert route.stable.bundle.parent == house.places.bundles
    assert route.token == house.ledger.history(NAME).head


def test_a_canary_that_nobody_drives_is_rolled_back_and_a_driven_one_is_not(house: House) -> None:
    house.crown("1.0.0")
    house.approved("1.1.0")
    history = house.ledger.history(NAME)
    house.ledger.append(Event.CANARY_STARTED, history.release("1.1.0"), "driver", {}, history.head)
    history = house.ledger.history(NAME)
    house.ledger.append(Event.CANARY_STEP, history.release("1.1.0"), "driver", {"weight": 25}, history.head)
    with driving(house.places, NAME):
        reconcile(house.ledger, house.places, NAME)
        assert read_routes(house.places.routes).routes[NAME].weight == 25
    repairs = reconcile(house.ledger, house.places, NAME)
    assert repairs[0].startswith("ledger: rolled back m@1.1.0")
    assert read_routes(house.places.routes).routes[NAME].canary is None
    assert house.ledger.history(NAME).release("1.1.0").state is State.ROLLED_BACK


def test_a_token_is_raised_even_where_the_route_stays(house: House) -> None:
    """So that a process that wrote an entry, slept, and wakes up after a rollback cannot put its canary back."""
    house.crown("1.0.0")
    project_routes(house.ledger, house.places, NAME)
    before = read_routes(house.places.routes).routes[NAME]
    house.registered("1.1.0")
    assert project_routes(house.ledger, house.places, NAME) == []
    assert read_routes(house.places.routes).routes[NAME].token == before.token + 1


def test_a_ledger_whose_end_was_cut_off_is_found(house: House, tmp_path: Path) -> None:
    house.crown("1.0.0")
    project_routes(house.ledger, house.places, NAME)
    shorter = Ledger(f"sqlite:///{tmp_path}/restored.db")
    with pytest.raises(Tampered, match="its end was cut off"):
        project_routes(shorter, house.places, NAME)


def test_rollback_brings_the_previous_champion_back_everywhere(house: House) -> None:
    house.crown("1.0.0")
    house.crown("1.1.0")
    reconcile(house.ledger, house.places, NAME)
    with pytest.raises(GoldpathError, match="needs a reason"):
        rollback(house.ledger, house.places, NAME, "carol", " ")
    outcome = rollback(house.ledger, house.places, NAME, "carol", "users complain")
    assert (outcome.verdict, outcome.champion, outcome.reason) == ("rolled_back", "1.0.0", "users complain")
    assert aliases(house) == {"champion": "1.0.0"}
    stable = read_routes(house.places.routes).routes[NAME].stable
    assert stable
    assert stable.version == "1.0.0"
    with pytest.raises(GoldpathError, match="only champion"):
        rollback(house.ledger, house.places, NAME, "carol", "again")


def test_rollback_refuses_a_tampered_predecessor(house: House) -> None:
    house.crown("1.0.0")
    house.crown("1.1.0")
    old = house.places.bundles / house.ledger.history(NAME).release("1.0.0").digest.removeprefix("sha256:")
    (old / "model.safetensors").chmod(0o644)
    (old / "model.safetensors").write_text("evil", encoding="utf-8")
    with pytest.raises(Tampered):
        rollback(house.ledger, house.places, NAME, "carol", "users complain")
    champion = house.ledger.champion(NAME)
    assert champion
    assert champion.version == "1.1.0"


def test_an_mlflow_that_is_away_is_said_at_once(make_house: Callable[..., House]) -> None:
    house = make_house(mlflow="http://127.0.0.1:9")
    house.registered("1.0.0")
    begun = time.monotonic()
    with pytest.raises(GoldpathError, match="no MLflow server answers"):
        mirror_to_mlflow(house.places, house.ledger.history(NAME))
    assert time.monotonic() - begun < 20


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "art")]
    environment = os.environ | TELEMETRY_OFF | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = tmp_path / "mlflow.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 90
    try:
        while not _answers(url):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield url
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
def test_a_real_mlflow_server_is_mirrored(mlflow_server: str, make_house: Callable[..., House], tmp_path: Path) -> None:
    house = make_house(mlflow=mlflow_server)
    house.crown("1.0.0")
    release = house.approved("1.1.0")
    reconcile(house.ledger, house.places, NAME)
    assert aliases(house) == {"candidate": "1.1.0", "champion": "1.0.0"}
    client = MlflowClient(mlflow_server, mlflow_server)
    model = client.get_model_version_by_alias(NAME, "candidate")
    target = tmp_path / "fetched"
    target.mkdir()
    assert verify_bundle(Path(client.download_artifacts(model.run_id, "bundle", str(target))), release.digest)
    assert reconcile(house.ledger, house.places, NAME) == []
