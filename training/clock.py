"""Where the time of a step goes. It costs two clock readings a part; a GPU is waited for only when the loop logs anyway."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Part = Literal["data", "forward", "backward", "optimizer", "checkpoint", "validation"]
PARTS: tuple[Part, ...] = get_args(Part)
OTHER = "other"  # what no part names: logging, agreeing on signals, the interpreter
Mark = float | torch.cuda.Event


class StepClock:
    """Adds up the seconds of each part of the loop.

    >>> with clock("forward"):
    ...     scores = model(batch)

    On a GPU the marks are events in its queue, so that nothing waits: a part's seconds are those that pass on the GPU
    between its first and its last operation. `data` is then the time for which the GPU had nothing to do. They do not nest.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: list[tuple[Part, Mark, Mark]] = []
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, part: Part) -> Iterator[None]:
        """Counts what happens inside to a part; not where it raises."""
        begin = self._mark()
        yield
        self._spans.append((part, begin, self._mark()))

    def read(self) -> dict[str, float]:
        """Returns the seconds of every part since the last call, and of `other`: together the time that has passed."""
        seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for part, begin, end in self._spans:
            seconds[part] += _between(begin, end)
        self._spans.clear()
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        return {**seconds, OTHER: max(0.0, passed - sum(seconds.values()))}

    def _mark(self) -> Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _between(begin: Mark, end: Mark) -> float:
    """Returns the seconds between two marks of one kind."""
    if isinstance(begin, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000
    assert not isinstance(end, torch.cuda.Event)
    return end - begin
