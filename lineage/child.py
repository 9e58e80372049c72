"""Child processes that end with their parent, however it ends."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """Returns what a child runs first (`Popen(preexec_fn=…)`): Linux sends it a signal when the thread that starts it ends.

    Elsewhere it has no effect.
    """
    parent = os.getpid()

    def prepare() -> None:
        end_with_parent(number)
        if sys.platform == "linux" and os.getppid() != parent:  # it ended before the line above
            os._exit(1)

    return prepare


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Asks Linux to send this process a signal when the thread that started it ends: for a child that others start."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
