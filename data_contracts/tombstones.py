"""The erasures of a home: `erasures.jsonl`, one line for each, never changed, and `erasures.key` beside it.

The lines are chained: each holds the sha256 of the one before, so that a line that was changed or taken out is noticed. The
key is what the hashes in them were made with (`data_contracts.erasure`): whoever moves the home moves both files. Where the
key is lost, no row can be recognised any more, and the data stage refuses to run.
"""

import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from data_contracts.erasure import Erasures, Tombstone
from lineage.errors import BadInput, Tampered
from lineage.files import sync_folder
from lineage.section import Section

TOMBSTONES = "erasures.jsonl"
KEY = "erasures.key"
GENESIS = "0" * 64
KEY_BYTES = 32


class Entry(Section):
    """One line: a tombstone, and who wanted it when and why.

    Attributes:
        seq: from 1.
        at: UTC time, ISO 8601.
        key: tells whether a key is the one that the tombstone was made with.
        previous: sha256 of the line before, 64 hex digits.
    """

    seq: int
    at: str
    actor: str
    reason: str
    tombstone: Tombstone
    key: str
    previous: str


@dataclass(frozen=True)
class _File:
    """The file as it is: its entries, the sha256 of the last line, and how many bytes they take.

    What a kill left of a line behind them never happened, and is overwritten.
    """

    entries: list[Entry]
    head: str
    size: int


def load_erasures(home: Path) -> Erasures:
    """Returns the erasures of a home; none where nothing was ever erased.

    Raises:
        BadInput: the key is missing.
        Tampered: a line was changed, or the key is another one.
    """
    entries = _read(home).entries
    return Erasures([entry.tombstone for entry in entries], _read_key(home, entries)) if entries else Erasures()


def erasure_key(home: Path) -> bytes:
    """Returns the key to make tombstones with: the home's own, or a new one that is kept once a tombstone is.

    Raises:
        BadInput, Tampered: as `load_erasures`.
    """
    entries = _read(home).entries
    return _read_key(home, entries) if entries or (home / KEY).is_file() else secrets.token_bytes(KEY_BYTES)


def add_tombstone(home: Path, tombstone: Tombstone, key: bytes, actor: str, reason: str) -> bool:
    """Appends a tombstone, durably; returns whether it is new. The same one again is not written twice.

    Args:
        key: what the tombstone was made with, of `erasure_key`. The first one that is written stays the home's.

    Raises:
        BadInput: the home cannot be written.
        Tampered: a line was changed, or the home has another key.
    """
    try:
        with _locked(home):
            file = _read(home)
            if any(tombstone == entry.tombstone for entry in file.entries):
                return False
            _keep_key(home, key, file.entries)
            entry = Entry(
                seq=len(file.entries) + 1,
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                actor=actor,
                reason=reason,
                tombstone=tombstone,
                key=_key_check(key),
                previous=file.head,
            )
            _append(home / TOMBSTONES, file.size, entry.model_dump_json() + "\n")
            return True
    except OSError as error:
        raise BadInput(home, "", f"cannot be written ({error.strerror})", "make it writable, and erase again") from None


def _read(home: Path) -> _File:
    path = home / TOMBSTONES
    content = path.read_bytes() if path.is_file() else b""
    size = content.rfind(b"\n") + 1
    entries: list[Entry] = []
    head = GENESIS
    for number, line in enumerate(content[:size].split(b"\n")[:-1], start=1):
        try:
            entry = Entry.model_validate_json(line)
        except ValidationError:
            raise _tampered(path, number, "is no tombstone") from None
        if (entry.seq, entry.previous) != (number, head):
            raise _tampered(path, number, "does not follow the line before it")
        entries.append(entry)
        head = hashlib.sha256(line).hexdigest()
    return _File(entries, head, size)


def _tampered(path: Path, number: int, problem: str) -> Tampered:
    return Tampered(path, f"line {number}", problem, "restore the file from a backup: it is only ever appended to")


def _read_key(home: Path, entries: list[Entry]) -> bytes:
    path = home / KEY
    if not path.is_file():
        problem = f"is missing, so that nothing can be recognised by the tombstones in {TOMBSTONES}"
        raise BadInput(path, "", problem, "restore it from a backup; it belongs to that file")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES or any(entry.key != _key_check(key) for entry in entries):
        raise Tampered(path, "", f"is not the key that {TOMBSTONES} was made with", "restore it from a backup")
    return key


def _keep_key(home: Path, key: bytes, entries: list[Entry]) -> None:
    """Writes the home's key where it has none."""
    path = home / KEY
    if entries or path.is_file():
        if _read_key(home, entries) != key:
            raise Tampered(path, "", "is another key than a moment ago", "erase again")
        return
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key.hex())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(home)


def _key_check(key: bytes) -> str:
    return hmac.digest(key, b"key", "sha256").hex()[:16]


def _append(path: Path, size: int, line: str) -> None:
    with path.open("ab") as file:
        file.truncate(size)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Lets one process write at a time."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".erasures.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
