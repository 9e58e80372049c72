"""Who uses a service: each command that does holds a shared lock on the service's lease file until it ends, however."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def open_lease(path: Path) -> IO[str]:
    """Opens a lease without holding it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def hold(lease: IO[str]) -> None:
    """Says that this process uses the service; the kernel says the opposite when the process ends or closes the file."""
    fcntl.flock(lease, fcntl.LOCK_SH)


def take_if_unused(lease: IO[str]) -> bool:
    """Tells whether no other process holds a lease; where that is so, this one holds it alone until it lets go."""
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def let_go(lease: IO[str]) -> None:
    """Gives a lease back."""
    fcntl.flock(lease, fcntl.LOCK_UN)


@contextmanager
def locked(file: IO[str]) -> Iterator[None]:
    """Holds a file's lock alone: one process at a time starts or ends services of a home."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
