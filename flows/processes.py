"""Processes that Goldpath starts: told apart from strangers, ended with all that they started, never left behind."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import psutil

# Every descendant of a service inherits this variable, so that a service's orphans are found after a `kill -9`
# of the service itself, when the process tree is gone (Jenkins' ProcessTreeKiller works the same way).
MARK = "SERVICE_OF_GOLDPATH"
# And every process of a stage this one: how many seconds it may take to end, because it has something to save.
GRACE = "SECONDS_TO_END_OF_GOLDPATH"


def is_alive(pid: int, started: float) -> bool:
    """Tells whether the process that got this pid at this time (seconds since 1970) still runs; a reused pid is not it."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def family(mark: str) -> list[psutil.Process]:
    """Returns the living processes that carry a mark, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
    return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def end_family(mark: str, root: int | None, patience: float = 10.0) -> None:
    """Ends a service: asks its root process first, so that it can end its children in order, then whoever is left.

    Args:
        root: the service's own pid; None where only orphans may be left.
        patience: seconds before SIGKILL; a stage that the service runs may have more (`GRACE`).
    """
    members = family(mark)
    first = [process for process in members if process.pid == root]
    rest = [process for process in members if process.pid != root]
    for wave in (first, rest):
        for process in wave:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(wave, timeout=patience if wave else 0)
    saving = {process: grace for process in family(mark) if (grace := _grace_of(process)) > patience}
    if saving:
        psutil.wait_procs(list(saving), timeout=max(saving.values()))
        psutil.wait_procs(family(mark), timeout=patience)  # who waited for them
    for process in family(mark):  # the stubborn, and any that were born meanwhile
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            process.wait(timeout=patience)


def _grace_of(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error, OSError):
        return float(process.environ().get(GRACE, "0"))
    return 0.0


def choose_port(wanted: int, remembered: int) -> int | None:
    """Returns a free port of 127.0.0.1: the wanted one or nothing, else the remembered one, else any."""
    if wanted:
        return wanted if _is_free(wanted) else None
    if remembered and _is_free(remembered):
        return remembered
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def signals_end_with_cleanup() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into `SystemExit`, so that `finally` blocks run; only in a process's main thread.

    Only the first one: a second would break off the `finally` blocks, which may wait for a checkpoint.
    """

    def leave(number: int, _frame: object) -> None:
        for handled in previous:
            signal.signal(handled, signal.SIG_IGN)
        raise SystemExit(128 + number)

    previous: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # signal.signal refuses outside the main thread; its owner handles signals
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                previous[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Servers set the same option: a port in TIME_WAIT counts as free, one that is listened on does not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
