"""Requests to end: remembered until there is a consistent state to save, and heeded by all processes at the same point."""

import os
import signal
from contextlib import suppress

from training.processes import Processes


class Stopped(Exception):
    """The run was asked to end by a signal, and has saved its state."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"ended by {signal.Signals(number).name}; run the same command again to continue")


class StopRequest:
    """Remembers a request to end until the loop has a consistent state to save. A second Ctrl-C ends at once.

    SIGTERM is what Kubernetes, systemd and cloud agents send before they take a machine away; SIGUSR1 is what SLURM is told
    to send ahead of a time limit (`--signal=USR1@300`).

    Attributes:
        number: the signal that came, 0 for none.
    """

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def heed(self, processes: Processes) -> None:
        """Ends what goes on where any process was asked to end. All processes call it at the same point.

        Raises:
            Stopped: on all of them.
        """
        (number,) = processes.highest(self.number)
        if number:
            raise Stopped(number)

    def _remember(self, number: int, frame: object) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.number:
            # `print` fails in a handler that interrupts a `print` (reentrant call).
            with suppress(OSError):
                os.write(2, f"{signal.Signals(number).name}: saving a checkpoint, then ending\n".encode())
        self.number = number
