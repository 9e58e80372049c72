"""`goldpath doctor`: what is wrong with this machine or this home, and the command that mends it."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from flows.console import say
from flows.processes import MARK, choose_port
from flows.service_commands import COMMANDS
from flows.service_state import log_tail, read_services, state_of
from flows.services import running
from flows.settings import Settings
from lineage.errors import BadInput, GoldpathError
from lineage.stamp import CODE_FOLDER, code_state

if TYPE_CHECKING:
    from rich.table import Table

GIB = 2**30
TESTED_PYTHON = (3, 11)
State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One finding: `warn` works but not as it should, `fail` will not work. `fix` is a command where there is one."""

    name: str
    state: State
    finding: str
    fix: str = ""


def run_checks(settings: Settings) -> list[dict[str, str]]:
    """Runs every check, also where an earlier one failed, and returns the findings as plain values."""
    found: list[Check] = []
    for check in CHECKS:
        say("doctor", check.__name__.removeprefix("check_").replace("_", " "))
        found += check(settings)
    return [asdict(finding) for finding in found]


def checks_table(checks: list[dict[str, str]]) -> "Table":
    """Shows the findings to people."""
    from rich.table import Table

    table = Table("check", "state", "finding", "fix")
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks:
        table.add_row(check["name"], f"[{colours[check['state']]}]{check['state']}[/]", check["finding"], check["fix"])
    return table


def check_python(_: Settings) -> Iterable[Check]:
    """The interpreter is one that Goldpath was tested with."""
    found = platform.python_version()
    tested = ".".join(map(str, TESTED_PYTHON))
    state: State = "ok" if sys.version_info[:2] == TESTED_PYTHON else "warn"
    yield Check("python", state, found, "" if state == "ok" else f"make clean install PYTHON=python{tested}")


def check_packages(_: Settings) -> Iterable[Check]:
    """Everything that Goldpath needs is there, in the versions that were tested together."""
    missing = [name for name in _requirements() if _installed(name) is None]
    if missing:
        yield Check("packages", "fail", f"missing: {', '.join(missing)}", "make install")
    pins = read_constraints(CODE_FOLDER / "constraints.txt")
    other = [
        f"{name} {found} (tested: {pin})" for name, pin in pins.items() if (found := _installed(name)) not in (None, pin)
    ]
    if other:
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        yield Check("packages", "warn", ", ".join(other[:5]) + more, "pip install -r constraints.txt")
    if not missing and not other:
        yield Check("packages", "ok", f"{len(pins)} pins, none differs")


def check_server_pins(_: Settings) -> Iterable[Check]:
    """Two libraries whose newer releases break the servers without pip noticing (measured 2026-11-20)."""
    for name, limit, harm in (
        ("fastapi", (0, 151), "the Prefect server does not start"),
        ("sqlalchemy", (2, 1), "Prefect's schedules silently never fire"),
    ):
        found = _installed(name) or "0"
        below = tuple(int(part) for part in found.split(".")[:2]) < limit
        fix = f"pip install '{name}<{limit[0]}.{limit[1]}'"
        yield Check(name, "ok" if below else "fail", found if below else f"{found}: {harm}", "" if below else fix)


def check_torch(_: Settings) -> Iterable[Check]:
    """PyTorch imports, and what it can compute on."""
    try:
        import torch
    except Exception as error:  # a broken binary raises almost anything
        yield Check("torch", "fail", f"cannot be imported: {error}", "make clean install")
        return
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Check("torch", "ok", f"{torch.__version__}, GPUs: {names}")
    else:
        yield Check("torch", "ok", f"{torch.__version__}, CPU only, {torch.get_num_threads()} threads")


def check_compiler(_: Settings) -> Iterable[Check]:
    """DeepSpeed compiles its CPU optimizer on first use."""
    found = shutil.which("gcc") or shutil.which("cc")
    yield (
        Check("compiler", "ok", found)
        if found
        else Check("compiler", "warn", "none: `engine: zero3` cannot run", "apt-get install build-essential")
    )


def check_home(settings: Settings) -> Iterable[Check]:
    """The home can be written and its disk has room."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=settings.home, prefix=".doctor"):
            pass
    except OSError as error:
        yield Check(
            "home", "fail", f"{settings.home}: {error.strerror}", "export GOLDPATH_HOME=<a folder that you may write>"
        )
        return
    yield Check("home", "ok", str(settings.home))
    free = shutil.disk_usage(settings.home).free / GIB
    state: State = "fail" if free < 1 else "warn" if free < 5 else "ok"
    yield Check("disk", state, f"{free:.1f} GiB free", "" if state == "ok" else f"free space below {settings.home}")


def check_memory(_: Settings) -> Iterable[Check]:
    """Servers and a small training run fit."""
    free = psutil.virtual_memory().available / GIB
    state: State = "fail" if free < 2 else "warn" if free < 4 else "ok"
    yield Check("memory", state, f"{free:.1f} GiB available", "" if state == "ok" else "end other programs")


def check_code(_: Settings) -> Iterable[Check]:
    """The commit is known and clean: a dirty tree may run but may not register a model."""
    commit, dirty = code_state()
    if commit == "unknown":
        yield Check("code", "warn", "no git commit is known, so no model can be registered", "run from a git checkout")
    elif dirty:
        yield Check("code", "warn", f"{commit[:12]}, changed since: models cannot be registered", "git commit -a")
    else:
        yield Check("code", "ok", commit[:12])


def check_ports(settings: Settings) -> Iterable[Check]:
    """Ports that the settings ask for are free, or used by the service that they are for."""
    services = read_services(settings)
    for name in ("prefect", "mlflow", "gateway"):
        wanted = getattr(settings, f"{name}_port")
        own = name in services and services[name].alive and services[name].port == wanted
        if wanted and not own and choose_port(wanted, 0) is None:
            variable = f"GOLDPATH_{name.upper()}_PORT"
            yield Check(f"{name} port", "fail", f"{wanted} is in use by another program", f"unset {variable}")
        else:
            yield Check(f"{name} port", "ok", f"{wanted or 'chosen at start'}")


def check_services(settings: Settings) -> Iterable[Check]:
    """What `services.json` lists is alive, and nothing that Goldpath started was left behind."""
    services = read_services(settings)
    for name, service in services.items():
        state = state_of(service)
        if state == "dead":
            yield Check(name, "warn", f"pid {service.pid} is gone; the next command starts it again", "goldpath up")
        elif state == "not responding":
            yield Check(name, "fail", f"pid {service.pid} does not answer at {service.url}", f"kill {service.pid}")
        else:
            yield Check(name, "ok", f"{state}, {service.url}" if state == "live" else state)
    stray = [process.pid for process in _strays(settings, {s.pid for s in services.values() if s.alive})]
    if stray:
        pids = " ".join(map(str, stray))
        yield Check("orphans", "warn", f"left behind by a killed command: {pids}", f"kill {pids}")


def check_servers_boot(settings: Settings) -> Iterable[Check]:
    """Prefect, MLflow and the gateway start and answer, each in a home of its own that is thrown away."""
    if settings.prefect_api_url or settings.mlflow_tracking_uri:
        settings = settings.model_copy(update={"prefect_api_url": "", "mlflow_tracking_uri": ""})
    for name in ("prefect", "mlflow", "gateway"):
        with tempfile.TemporaryDirectory(prefix="goldpath-doctor-") as folder:
            trial = settings.model_copy(update={"home": Path(folder), f"{name}_port": 0})
            try:
                with running(trial, name):
                    yield Check(f"{name} boots", "ok", "starts and answers")
            except GoldpathError:
                last = log_tail(trial, name).rpartition("| ")[2]
                yield Check(f"{name} boots", "fail", f"does not start: {last}", "make clean install")


def check_ledger(settings: Settings) -> Iterable[Check]:
    """The ledger's hash chain is whole."""
    from sqlalchemy.exc import SQLAlchemyError

    from serving.release.ledger import Ledger

    if not settings.ledger_url and not (settings.home / "ledger.db").is_file():
        yield Check("ledger", "ok", "none yet")
        return
    try:
        ledger = Ledger(settings.ledger)
        try:
            yield Check("ledger", "ok", f"{ledger.verify()} entries, chain is whole")
        finally:
            ledger.close()
    except BadInput as error:
        yield Check("ledger", "fail", f"{error.where}: {error.field}: {error.problem}", error.fix)
    except SQLAlchemyError as error:
        problem = str(getattr(error, "orig", error))
        yield Check("ledger", "fail", f"{settings.ledger}: {problem}", "restore it from a backup")


def check_dvc(_: Settings) -> Iterable[Check]:
    """DVC runs, and this checkout has its pipeline."""
    done = subprocess.run([sys.executable, "-m", "dvc", "--version"], capture_output=True, text=True, check=False)
    if done.returncode:
        yield Check("dvc", "fail", done.stderr.strip().splitlines()[-1] if done.stderr else "does not run", "make install")
    elif not (CODE_FOLDER / "dvc.yaml").is_file():
        yield Check("dvc", "warn", f"{done.stdout.strip()}, no dvc.yaml in {CODE_FOLDER}", "git checkout dvc.yaml")
    else:
        yield Check("dvc", "ok", done.stdout.strip())


CHECKS: tuple[Callable[[Settings], Iterable[Check]], ...] = (
    check_python,
    check_packages,
    check_server_pins,
    check_torch,
    check_compiler,
    check_home,
    check_memory,
    check_code,
    check_ports,
    check_services,
    check_servers_boot,
    check_ledger,
    check_dvc,
)


def read_constraints(path: Path) -> dict[str, str]:
    """Returns the pinned version per package of a constraints file; {} where there is none (an installed wheel)."""
    if not path.is_file():
        return {}
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: pin.split(";")[0].strip() for name, sign, pin in (line.partition("==") for line in lines) if sign}


def _requirements() -> list[str]:
    from packaging.requirements import Requirement

    parsed = [Requirement(line) for line in requires("goldpath") or []]
    return [requirement.name for requirement in parsed if not requirement.marker or requirement.marker.evaluate()]


def _installed(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]  # `2.13.0+cpu` is 2.13.0
    except PackageNotFoundError:
        return None


def _strays(settings: Settings, known: set[int | None]) -> list[psutil.Process]:
    """Processes of this home's services whose service is not among the living ones."""
    marks = {f"{name}@{settings.home}" for name in COMMANDS}
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) not in marks or process.pid == os.getpid():
                continue
            ancestors: set[Any] = {process.pid, *(parent.pid for parent in process.parents())}
        except (psutil.Error, OSError):
            continue  # it ended meanwhile, or belongs to another user
        if not ancestors & known:
            found.append(process)
    return found
