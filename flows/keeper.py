"""Ends a service that nobody uses any more: a small process beside each service, which outlives whoever started it.

`python -m flows.keeper LOCK LEASE MARK PID STARTED`; `flows.services` starts it. So a service that a killed command left
behind ends, and one that another command still uses does not.
"""

import sys
import time
from pathlib import Path

from flows.leases import let_go, locked, open_lease, take_if_unused
from flows.processes import end_family, is_alive

LOOK_SECONDS = 0.5


def main(lock: Path, lease: Path, mark: str, pid: int, started: float) -> None:
    """Waits until a service has no user or has ended, and ends what is left of it."""
    with lock.open("a") as starting, open_lease(lease) as use:
        while is_alive(pid, started):
            if take_if_unused(use):
                let_go(use)
                with locked(starting):  # nobody begins to use it between this look and the end
                    if take_if_unused(use):
                        end_family(mark, pid)
                        return
            time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
