"""For all tests."""

import signal
from collections.abc import Iterator

import pytest

from training.hardware import prepare_gpus

# Started in the background (`nohup make test &`), this process ignores both, and so would every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

prepare_gpus()  # before anything imports torch


@pytest.fixture(autouse=True)
def signals_stay_as_they_were() -> Iterator[None]:
    """A run in this very process remembers signals instead of ending; the next test must not find that."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
