"""Ends a process that gets nowhere, and says where it hung: a hung collective would hold its GPUs until somebody looks."""

import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from lineage.errors import ExitCode, GoldpathError
from training.last_words import leave_word

LOOKS_PER_LIMIT = 20


class Watchdog:
    """While it is entered, somebody must call `beat` every `seconds`.

    Otherwise it writes the stack of every thread to a file, says so in one line and ends the process with exit code 75;
    torchrun then ends the other processes. A thread does it, because the main thread may hang inside a library.

    Args:
        seconds: the limit; 0 never barks.
        stacks: the file for the stacks.
    """

    def __init__(self, seconds: int, stacks: Path) -> None:
        self._seconds, self._stacks = seconds, stacks
        self._last, self._doing = time.monotonic(), "the start"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, doing: str) -> None:
        """Says that the process lives, and what it does next."""
        self._last, self._doing = time.monotonic(), doing

    def __enter__(self) -> Self:
        self.beat(self._doing)
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._seconds:
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._seconds / LOOKS_PER_LIMIT):
            if time.monotonic() - self._last > self._seconds:
                self._end()

    def _end(self) -> None:
        with suppress(OSError), self._stacks.open("w", encoding="utf-8") as file:  # a full disk is no reason to hang on
            faulthandler.dump_traceback(file)
        error = GoldpathError(
            f"nothing happened for {self._seconds} s in {self._doing}; {self._stacks} says where each thread hangs. "
            "Fix: run the same command again to continue from the last checkpoint; raise `resources.hang_seconds` if it "
            "was only slow"
        )
        print(f"error: {error}", file=sys.stderr, flush=True)
        leave_word(error, ExitCode.TRY_AGAIN)
        os._exit(ExitCode.TRY_AGAIN)  # a hung thread cannot be asked to clean up
