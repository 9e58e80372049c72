"""The servers that Goldpath starts for itself: Prefect, MLflow, the gateway and a Prefect worker, on 127.0.0.1.

>>> with running(load_settings(), "prefect", "mlflow") as services:
...     services["prefect"].url
'http://127.0.0.1:40123'

A second command finds what the first one started and uses it. Each user of a service holds a shared lock on it, so that
its starter knows when nobody needs it any more; the kernel drops the lock of a user that is killed.
"""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from flows.processes import MARK, choose_port, die_with_parent, end_family, signals_end_with_cleanup
from flows.service_commands import COMMANDS, environment_with
from flows.service_state import Service, log_of, log_tail, read_services, remember, responds
from flows.settings import Settings
from lineage.errors import BadInput, GoldpathError

START_DEADLINE = 120.0  # seconds; Prefect's first start migrates its database: 8 s on two quiet cores
HANG_DEADLINE = 30.0
Report = Callable[[str], None]


class Services:
    """The services that one command uses. Made by `running`.

    Attributes:
        used: every service in use by name, those of other starters included.
        started: the names that this command started and must end.
    """

    def __init__(self, settings: Settings, report: Report) -> None:
        self.settings, self.report = settings, report
        self.used: dict[str, Service] = {}
        self.started: list[str] = []
        self._leases = ExitStack()
        self._lease_of: dict[str, int] = {}

    def __getitem__(self, name: str) -> Service:
        return self.used[name]

    def bring_up(self, names: tuple[str, ...]) -> None:
        """Makes sure that each named service runs, and waits until all of them answer.

        Raises:
            GoldpathError: one did not start; the message ends with its log's last lines.
            BadInput: a port that the settings ask for is in use.
        """
        with _locked(self.settings.home / "services.lock"):
            starting: dict[str, subprocess.Popen[bytes]] = {}
            for name in sorted(set(names), key=list(COMMANDS).index):
                if COMMANDS[name].needs in starting:  # a worker's server must answer before the worker starts
                    self._wait(starting, {COMMANDS[name].needs})
                found = self._find(name)
                if found is None:
                    starting[name] = self._start(name)
                else:
                    self.used[name] = found
                self._lease(name)
            self._wait(starting, set(starting))

    def revive(self, name: str) -> None:
        """Starts a service again that died, on its old port."""
        self.bring_up((name,))

    def end(self, linger: bool) -> None:
        """Ends what this command started, in reverse order; with `linger`, each as soon as no other command uses it."""
        while self.started:
            name = self.started[-1]
            if self._stop(name, linger):
                self.started.pop()
            else:
                self.report(f"another command still uses {name}: waiting for it (Ctrl-C ends {name} now)")
                while not self._stop(name, linger):
                    time.sleep(0.2)
        self._leases.close()

    def _find(self, name: str) -> Service | None:
        prefect = self.settings.prefect_api_url.rstrip("/").removesuffix("/api")
        if elsewhere := {"prefect": prefect, "mlflow": self.settings.mlflow_tracking_uri}.get(name):
            return Service(name, None, 0.0, 0, elsewhere)
        known = read_services(self.settings).get(name)
        if known is None or not known.alive:
            return None
        deadline = time.monotonic() + HANG_DEADLINE
        while not responds(known):  # busy or hung; others may be using it, so it is not ours to end
            if not known.alive:
                return None
            if time.monotonic() > deadline:
                raise GoldpathError(f"{name} (pid {known.pid}) does not answer at {known.url}. Fix: kill {known.pid}")
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
            process = subprocess.Popen(
                [sys.executable, *command.arguments(settings, port)],
                env=environment_with(settings, self.urls()) | extra | {MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches the starter, which then ends them in order
                preexec_fn=die_with_parent,
            )
        if name not in self.started:  # it is there already when a dead one is started again
            self.started.append(name)
        created = psutil.Process(process.pid).create_time()
        self.used[name] = Service(name, process.pid, created, port, f"http://127.0.0.1:{port}")
        remember(settings, self.used[name])
        return process

    def _wait(self, starting: "dict[str, subprocess.Popen[bytes]]", names: set[str]) -> None:
        """Waits until the named services of those that start answer, and takes them out of the dictionary."""
        begin = time.monotonic()
        while waiting := names & set(starting):
            for name in waiting:
                process = starting[name]
                if process.poll() is not None:
                    self._give_up(name, f"ended with exit code {process.returncode} while it started")
                elif responds(self.used[name]):
                    self.report(f"{name} is up at {self.used[name].url} ({time.time() - self.used[name].started:.1f} s)")
                    del starting[name]
                elif time.monotonic() - begin > START_DEADLINE:
                    self._give_up(name, f"did not answer within {START_DEADLINE:.0f} s")
            time.sleep(0.05)

    def _give_up(self, name: str, problem: str) -> None:
        log = log_of(self.settings, name)
        tail = log_tail(self.settings, name)
        raise GoldpathError(f"{name} {problem}. Fix: read {log}; `goldpath doctor` checks the installation\n{tail}")

    def _stop(self, name: str, linger: bool) -> bool:
        """Ends a service unless another command uses it; tells whether it did."""
        lease = self._lease_of.get(name)
        with _locked(self.settings.home / "services.lock"):  # nobody begins to use it between the look and the end
            if linger and lease is not None:
                try:
                    fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    return False
            service = self.used[name]
            end_family(f"{name}@{self.settings.home}", service.pid)
            remember(self.settings, Service(name, None, 0.0, service.port, service.url))
            if lease is not None:
                fcntl.flock(lease, fcntl.LOCK_UN)
        return True

    def urls(self) -> dict[str, str]:
        """Returns the base URL of each service in use."""
        return {name: service.url for name, service in self.used.items()}

    def _lease(self, name: str) -> None:
        if name not in self._lease_of:
            path = self.settings.home / "leases" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            file = self._leases.enter_context(path.open("a"))
            fcntl.flock(file, fcntl.LOCK_SH)
            self._lease_of[name] = file.fileno()


@contextmanager
def running(settings: Settings, *names: str, linger: bool = True, report: Report = lambda _: None) -> Iterator[Services]:
    """Runs the named services (`prefect`, `mlflow`, `gateway`, `worker`) for as long as the block lasts.

    Those that already run are used, not started. Inside the block, this process's environment points Prefect, MLflow and
    child processes to them; Prefect's ephemeral server is switched off for good.

    Args:
        linger: on leaving, wait for other commands that use what this one started; False ends it at once.
        report: gets one line per event.

    Raises:
        GoldpathError, BadInput: a service did not start; see `Services.bring_up`.
    """
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput("environment", "GOLDPATH_HOME", f"{settings.home}: {error.strerror}", "choose another") from None
    services = Services(settings, report)
    before = dict(os.environ)
    with signals_end_with_cleanup():
        try:
            services.bring_up(names)
            _set_environment(environment_with(settings, services.urls()))
            yield services
        finally:
            _set_environment(before)
            try:
                services.end(linger)
            except KeyboardInterrupt:
                services.end(linger=False)
                raise


def _set_environment(environment: dict[str, str]) -> None:
    """Replaces the environment; Prefect reads it once, at import, so a process that imported it must read it again."""
    os.environ.clear()
    os.environ.update(environment)
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock: one command at a time starts or ends services of a home."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
