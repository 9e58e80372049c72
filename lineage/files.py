"""Files that are either whole or absent: hashing, canonical JSON, and writes that survive a kill."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    """Returns the sha256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Returns the sha256 of a text's UTF-8 bytes as 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """Returns the one JSON text of a value: sorted keys, no spaces, no NaN. Refuses what JSON cannot hold.

    Raises:
        TypeError: the value holds something that has no JSON form (a path, a set, an object).
        ValueError: the value holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file so that a reader sees the old bytes or the new ones, never half: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp gives 0600, which a server under another user could not read
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically. NaN is refused: no reader agrees on what it means."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_file(path: Path) -> None:
    """Makes a written file's bytes durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames inside a folder durable: on a POSIX file system a rename is only safe once its folder is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_files(folder: Path, linked: bool = False) -> list[Path]:
    """Returns every regular file below a folder, sorted by relative path; hidden files are left out.

    Args:
        linked: whether symbolic links to files count as the files that they lead to; else they are left out too.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and (linked or not path.is_symlink())
        and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
