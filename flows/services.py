"""The servers that Goldpath starts for itself: Prefect, MLflow, the gateway and a Prefect worker, on 127.0.0.1.

>>> with running(load_settings(), "prefect", "mlflow") as services:
...     services["prefect"].url
'http://127.0.0.1:40123'

A second command finds what the first one started and uses it. Each user of a service holds its lease; the last one to go
ends it, whoever started it. Where the last one was killed, the service's keeper does.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

import psutil

from flows.leases import hold, let_go, locked, open_lease, take_if_unused
from flows.processes import MARK, choose_port, end_family, signals_end_with_cleanup
from flows.service_commands import COMMANDS, environment_with
from flows.service_state import Service, log_of, log_tail, read_services, remember, responds
from flows.settings import Settings
from lineage.errors import BadInput, GoldpathError

START_DEADLINE = 120.0  # seconds; Prefect's first start migrates its database: 8 s on two quiet cores
HANG_DEADLINE = 30.0
LOOK_SECONDS = 0.05
Report = Callable[[str], None]


class Services:
    """The services that one command uses. Made by `running`.

    Attributes:
        used: every service in use by name, those of other starters included.
        started: the names that this command started.
    """

    def __init__(self, settings: Settings, report: Report) -> None:
        self.settings, self.report = settings, report
        self.used: dict[str, Service] = {}
        self.started: list[str] = []
        self._files = ExitStack()
        self._lock = self._files.enter_context((settings.home / "services.lock").open("a"))
        self._leases: dict[str, IO[str]] = {}

    def __getitem__(self, name: str) -> Service:
        return self.used[name]

    def start(self, names: tuple[str, ...]) -> "dict[str, subprocess.Popen[bytes]]":
        """Finds or starts each named service, and returns the processes of those that are still starting.

        Raises:
            GoldpathError: one does not answer, or one that another needs did not start.
            BadInput: a port that the settings ask for is in use.
        """
        starting: dict[str, subprocess.Popen[bytes]] = {}
        with locked(self._lock):
            for name in sorted(set(names), key=list(COMMANDS).index):
                if COMMANDS[name].needs in starting:  # a worker's server must answer before the worker starts
                    self.wait(starting, {COMMANDS[name].needs})
                found = self._find(name)
                if found is None or not found.external:
                    self._lease(name)  # before it starts, or its keeper would see no user
                if found is None:
                    starting[name] = self._start(name)
                else:
                    self.used[name] = found
        return starting

    def revive(self, name: str) -> None:
        """Starts a service again that died, on its old port."""
        self.wait(self.start((name,)))

    def end(self, spare_used: bool) -> None:
        """Ends the services in reverse order, all but those that other commands use.

        Args:
            spare_used: False ends what this command started although others use it.
        """
        for name, service in reversed(self.used.items()):
            ours = name in self.started
            if not service.external and not self._stop(service, spare_used or not ours) and (ours or not spare_used):
                self.report(f"{name} goes on: another command uses it, and ends it")
        self._files.close()

    def _find(self, name: str) -> Service | None:
        prefect = self.settings.prefect_api_url.rstrip("/").removesuffix("/api")
        if elsewhere := {"prefect": prefect, "mlflow": self.settings.mlflow_tracking_uri}.get(name):
            return Service(name, None, 0.0, 0, elsewhere)
        known = read_services(self.settings).get(name)
        if known is None or not known.alive:
            return None
        age = time.time() - known.started
        deadline = time.monotonic() + max(HANG_DEADLINE, START_DEADLINE - age)  # it may be starting still
        while not responds(known):  # busy or hung; others may be using it, so it is not ours to end
            if not known.alive:
                return None
            if time.monotonic() > deadline:
                raise GoldpathError(f"{name} (pid {known.pid}) does not answer at {known.url}. Fix: kill {known.pid}")
            time.sleep(LOOK_SECONDS)
        return known

    def _start(self, name: str) -> "subprocess.Popen[bytes]":
        settings, command = self.settings, COMMANDS[name]
        known = read_services(settings).get(name)
        mark = f"{name}@{settings.home}"
        end_family(mark, known.pid if known else None)  # what a killed command or a killed service left behind
        wanted = getattr(settings, f"{name}_port", 0)
        port = choose_port(wanted, known.port if known else 0)
        if port is None:
            variable = f"GOLDPATH_{name.upper()}_PORT"
            raise BadInput("environment", variable, f"port {wanted} is in use", "end its user, or choose another port")
        log = log_of(settings, name)
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.is_file():
            log.replace(log.with_suffix(".previous.log"))
        extra = {variable: value.format(port=port) for variable, value in command.environment.items()}
        with log.open("wb") as file:
            keeper = [sys.executable, "-P", "-m", "flows.keeper", self._lock.name, self._leases[name].name]
            process = subprocess.Popen(
                [*keeper, sys.executable, *command.arguments(settings, port)],
                env=environment_with(settings, self.urls()) | extra | {MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches the starter, which then ends them in order
            )
        if name not in self.started:  # it is there already when a dead one is started again
            self.started.append(name)
        created = psutil.Process(process.pid).create_time()
        self.used[name] = Service(name, process.pid, created, port, f"http://127.0.0.1:{port}")
        remember(settings, self.used[name])
        return process

    def wait(self, starting: "dict[str, subprocess.Popen[bytes]]", names: set[str] | None = None) -> None:
        """Waits until the named ones (all, without names) of those that start answer, and takes them out of the dictionary.

        Raises:
            GoldpathError: one did not start; the message ends with its log's last lines.
        """
        wanted = set(starting) if names is None else names
        begin = time.monotonic()
        while waiting := wanted & set(starting):
            for name in waiting:
                process = starting[name]
                if process.poll() is not None:
                    self._give_up(name, f"ended with exit code {process.returncode} while it started")
                elif responds(self.used[name]):
                    self.report(f"{name} is up at {self.used[name].url} ({time.time() - self.used[name].started:.1f} s)")
                    del starting[name]
                elif time.monotonic() - begin > START_DEADLINE:
                    self._give_up(name, f"did not answer within {START_DEADLINE:.0f} s")
            time.sleep(LOOK_SECONDS)

    def _give_up(self, name: str, problem: str) -> None:
        log = log_of(self.settings, name)
        tail = log_tail(self.settings, name)
        raise GoldpathError(f"{name} {problem}. Fix: read {log}; `goldpath doctor` checks the installation\n{tail}")

    def _stop(self, service: Service, spare_used: bool) -> bool:
        """Ends a service unless another command uses it; tells whether it did."""
        lease = self._leases[service.name]
        with locked(self._lock):  # nobody begins to use it between the look and the end
            if not take_if_unused(lease) and spare_used:
                return False
            end_family(f"{service.name}@{self.settings.home}", service.pid)
            remember(self.settings, Service(service.name, None, 0.0, service.port, service.url))
            let_go(lease)
        return True

    def urls(self) -> dict[str, str]:
        """Returns the base URL of each service in use."""
        return {name: service.url for name, service in self.used.items()}

    def _lease(self, name: str) -> None:
        if name not in self._leases:
            self._leases[name] = self._files.enter_context(open_lease(self.settings.home / "leases" / name))
            hold(self._leases[name])


@contextmanager
def running(
    settings: Settings,
    *names: str,
    spare_used: bool = True,
    report: Report = lambda _: None,
    meanwhile: Callable[[], object] = lambda: None,
) -> Iterator[Services]:
    """Runs the named services (`prefect`, `mlflow`, `gateway`, `worker`) for as long as the block lasts.

    Those that already run are used, not started. Inside the block, this process's environment points Prefect, MLflow and
    child processes to them; Prefect's ephemeral server is switched off for good.

    Args:
        spare_used: on leaving, leave what other commands use to the last of them; False ends what this one started.
        report: gets one line per event.
        meanwhile: called while they start: what this process can do in the seconds that they take.

    Raises:
        GoldpathError, BadInput: a service did not start; see `Services.start` and `Services.wait`.
    """
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        services = Services(settings, report)
    except OSError as error:
        raise BadInput("environment", "GOLDPATH_HOME", f"{settings.home}: {error.strerror}", "choose another") from None
    before = dict(os.environ)
    with signals_end_with_cleanup():
        try:
            starting = services.start(names)
            _set_environment(environment_with(settings, services.urls()))
            meanwhile()
            services.wait(starting)
            yield services
        finally:
            _set_environment(before)
            services.end(spare_used)  # where this is interrupted, the keepers do the rest


def _set_environment(environment: dict[str, str]) -> None:
    """Replaces the environment; Prefect reads it once, at import, so a process that imported it must read it again."""
    os.environ.clear()
    os.environ.update(environment)
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
