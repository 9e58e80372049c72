"""Runs a service for as long as any command uses it: `python -m flows.keeper LOCK LEASE COMMAND…`.

The keeper is the service's parent and outlives whoever started it. So a service that a killed command left behind ends,
and one that another command still uses does not. If the keeper itself is killed, Linux ends the service.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from flows.leases import let_go, locked, open_lease, take_if_unused
from lineage.child import die_with_parent

LOOK_SECONDS = 0.5
PATIENCE = 10.0  # seconds before SIGKILL


def main(lock: Path, lease: Path, command: list[str]) -> int:
    """Runs the command until it ends, is told to end, or has no user left; returns its exit code."""
    with lock.open("a") as starting, open_lease(lease) as use:
        service = subprocess.Popen(command, preexec_fn=die_with_parent())
        signal.signal(signal.SIGTERM, lambda *_: service.terminate())
        while service.poll() is None:
            if _unused(use):
                with locked(starting):  # nobody begins to use it between this look and the end
                    if _unused(use):
                        _end(service)
            with suppress(subprocess.TimeoutExpired):
                service.wait(timeout=LOOK_SECONDS)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)  # whatever the service left behind; the keeper leads the process group
    return service.returncode


def _unused(lease: IO[str]) -> bool:
    if unused := take_if_unused(lease):
        let_go(lease)
    return unused


def _end(service: "subprocess.Popen[bytes]") -> None:
    service.terminate()
    try:
        service.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        service.kill()
        service.wait()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
