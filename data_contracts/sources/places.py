"""Where a file of a source lies, on a disk or behind a URL: how it is named, hashed, opened, and seen to have changed."""

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from data_contracts.config import Format
from lineage.errors import BadInput
from lineage.files import canonical_json, list_files, sha256_file, sha256_text

Layout = Format | Literal["saved", "hub"]  # what a reader is chosen by; a saved data set is a folder
Stamp = tuple[int | str, ...]


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, before it is opened; small and picklable, so that another process may read it.

    Attributes:
        name: what the ids of its rows begin with.
        location: an absolute path, or a URL.
        layout: its format, whatever packs it.
        identity: of its content: a sha256, or what a store calls it (an ETag, a commit); "" before it is hashed.
        stamp: what changes with its content and is quick to ask for: size, time and inode, or the store's name for it.
    """

    name: str
    location: str
    layout: Layout
    identity: str = ""
    stamp: Stamp = ()

    @property
    def is_remote(self) -> bool:
        """Whether it lies behind a URL."""
        return is_url(self.location)


def is_url(location: str) -> bool:
    """Whether a location is a URL of some file system, and not a path."""
    scheme, found, _ = location.partition("://")
    return bool(found) and scheme.replace("+", "").replace("-", "").isalnum()


def identify(file: SourceFile) -> SourceFile:
    """Returns the file with its identity: of a local one its sha256; of a remote one what its store calls its bytes
    (`remote.describe`), else the sha256.

    Raises:
        BadInput: it cannot be read.
    """
    if file.layout == "hub":
        return file  # its commit is known from where it was found
    try:
        if file.is_remote:
            from data_contracts.sources.remote import describe, sha256_remote

            stamp, identity = describe(file.location)
            return replace(file, stamp=stamp, identity=identity or sha256_remote(file.location))
        stamp = _local_stamp(file)
        return replace(file, stamp=stamp, identity=_sha256_local(Path(file.location)))
    except OSError as error:
        raise BadInput(file.location, "", f"cannot be read ({error.strerror or error})", "give a file to read") from None


def check_unchanged(file: SourceFile) -> None:
    """Looks again at a file that was hashed before.

    Raises:
        BadInput: it is another one now.
    """
    if not file.stamp or file.layout == "hub":
        return
    if file.is_remote:
        from data_contracts.sources.remote import describe

        now = describe(file.location)[0]
    else:
        now = _local_stamp(file)
    if now != file.stamp:
        problem = "was changed after it was hashed, while this stage was at work"
        raise BadInput(file.location, "", problem, "let it rest, then run the same command again")


@contextmanager
def open_raw(file: SourceFile, *, seekable: bool = False) -> Iterator[BinaryIO]:
    """Opens a file's own bytes. A remote one without a name for its bytes is copied to a local one and compared with its
    sha256 first; so is one that cannot be sought where `seekable` is asked.

    Raises:
        BadInput: it is not the file that was hashed.
        OSError: it cannot be read.
    """
    if file.is_remote:
        from data_contracts.sources.remote import open_remote

        check_unchanged(file)
        with open_remote(file.location, file.identity, seekable=seekable) as stream:
            yield stream
        return
    _stamp(Path(file.location))  # to open a pipe would wait for a writer
    check_unchanged(file)
    with Path(file.location).open("rb") as stream:
        yield stream


def digest_of(files: tuple[SourceFile, ...]) -> str:
    """Returns the identity of a source: that of its file, or of the list of its files with theirs."""
    if len(files) == 1:
        return files[0].identity
    return sha256_text(canonical_json([[file.name, file.identity] for file in files]))


def _local_stamp(file: SourceFile) -> Stamp:
    """Size, modification time in nanoseconds and inode; of a folder, a hash of those of all files in it."""
    path = Path(file.location)
    if file.layout == "saved":
        stamps = [[str(part), *_stamp(part)] for part in list_files(path, linked=True)]
        return (sha256_text(canonical_json(stamps)),)
    return _stamp(path)


def _stamp(path: Path) -> Stamp:
    told = path.stat()
    if not stat.S_ISREG(told.st_mode):
        raise BadInput(path, "", "is no regular file", "give a file")
    return (told.st_size, told.st_mtime_ns, told.st_ino)


def _sha256_local(path: Path) -> str:
    if path.is_file():
        return sha256_file(path)
    parts = [[part.relative_to(path).as_posix(), sha256_file(part)] for part in list_files(path, linked=True)]
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()
