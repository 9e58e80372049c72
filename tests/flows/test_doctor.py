"""The doctor finds what is wrong and names the command that mends it; a healthy home has no complaint about itself."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows import doctor
from flows.doctor import Check, read_constraints
from flows.processes import MARK, family
from flows.services import running
from flows.settings import Settings
from serving.release.ledger import Ledger
from tests.flows.programs import ROOT, eventually


def findings(check: "doctor.Callable[[Settings], doctor.Iterable[Check]]", settings: Settings) -> dict[str, Check]:
    return {finding.name: finding for finding in check(settings)}


def test_this_installation_is_the_tested_one(home_settings: Settings) -> None:
    for check in (doctor.check_python, doctor.check_packages, doctor.check_server_pins, doctor.check_torch):
        assert {finding.state for finding in check(home_settings)} == {"ok"}


@pytest.mark.parametrize(
    ("package", "found", "harm"),
    [("fastapi", "0.151.0", "does not start"), ("sqlalchemy", "2.1.0", "never fire"), ("fastapi", "1.0", "does not start")],
)
def test_versions_that_break_the_servers_fail(
    home_settings: Settings, monkeypatch: pytest.MonkeyPatch, package: str, found: str, harm: str
) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda name: found if name == package else "0.1")
    finding = findings(doctor.check_server_pins, home_settings)[package]
    assert finding.state == "fail"
    assert harm in finding.finding
    assert finding.fix.startswith(f"pip install '{package}<")


def test_missing_and_other_packages_are_told_apart(home_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": None, "pydantic": "1.0"}
    real = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: versions[name] if name in versions else real(name))
    states = {finding.state: finding for finding in doctor.check_packages(home_settings)}
    assert (states["fail"].finding, states["fail"].fix) == ("missing: torch", "make install")
    assert states["warn"].finding.startswith("pydantic 1.0 (tested:")


def test_constraints_are_read(tmp_path: Path) -> None:
    path = tmp_path / "constraints.txt"
    path.write_text("# a comment\nalpha==1.0\nbeta==2.0 ; python_version < '4'  # why\n\ngamma>=3\n")
    assert read_constraints(path) == {"alpha": "1.0", "beta": "2.0"}
    assert read_constraints(tmp_path / "none") == {}


def test_a_home_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    finding = findings(doctor.check_home, Settings(home=tmp_path / "file" / "home"))["home"]
    assert finding.state == "fail"
    assert "GOLDPATH_HOME" in finding.fix


def test_a_full_disk_fails(home_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = doctor.shutil.disk_usage("/")._replace(free=2**29)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert findings(doctor.check_home, home_settings)["disk"].state == "fail"


def test_a_port_of_somebody_else_fails(home_settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = home_settings.model_copy(update={"mlflow_port": taken.getsockname()[1]})
        found = findings(doctor.check_ports, settings)
    assert (found["mlflow port"].state, found["mlflow port"].fix) == ("fail", "unset GOLDPATH_MLFLOW_PORT")
    assert found["prefect port"].state == "ok"


def test_services_alive_dead_and_left_behind(home_settings: Settings) -> None:
    assert findings(doctor.check_services, home_settings) == {}
    with running(home_settings, "gateway") as services:
        gateway = services["gateway"]
        assert findings(doctor.check_services, home_settings)["gateway"].state == "ok"
        assert "orphans" not in findings(doctor.check_services, home_settings)
        assert gateway.pid is not None
        os.kill(gateway.pid, signal.SIGKILL)
        mark = {MARK: f"gateway@{home_settings.home}"}
        assert eventually(lambda: not family(mark[MARK]))  # the kill of its keeper ends it
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=os.environ | mark) as orphan:
            found = findings(doctor.check_services, home_settings)
            orphan.kill()
        assert found["gateway"].state == "warn"
        assert f"pid {gateway.pid} is gone" in found["gateway"].finding
        assert found["orphans"].fix == f"kill {orphan.pid}"
    assert findings(doctor.check_services, home_settings)["gateway"].finding == "stopped"


def test_a_ledger_that_is_no_database_fails(home_settings: Settings) -> None:
    assert findings(doctor.check_ledger, home_settings)["ledger"].finding == "none yet"
    home_settings.home.mkdir()
    Ledger(home_settings.ledger).close()
    assert findings(doctor.check_ledger, home_settings)["ledger"].finding == "0 entries, chain is whole"
    (home_settings.home / "ledger.db").write_text("this is no database " * 100)
    assert findings(doctor.check_ledger, home_settings)["ledger"].state == "fail"


@pytest.mark.slow
def test_the_command_prints_json_and_its_exit_code_tells(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "doctor", "--json"]
    environment = os.environ | {"GOLDPATH_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    checks = json.loads(done.stdout)
    assert [check for check in checks if check["state"] == "fail"] == []
    assert done.returncode == 0
    assert {"python", "prefect boots", "mlflow boots", "gateway boots", "ledger", "dvc"} <= {c["name"] for c in checks}
    assert all(check["fix"] for check in checks if check["state"] != "ok")

    (tmp_path / "file").write_text("x")
    environment["GOLDPATH_HOME"] = str(tmp_path / "file" / "home")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert [check["name"] for check in json.loads(done.stdout) if check["state"] == "fail"] == ["home"]
