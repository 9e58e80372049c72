"""Opens a file of a source as a stream of plain bytes: unpacked within limits, and unchanged since it was hashed."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from data_contracts.sources.places import SourceFile, check_unchanged, open_raw
from data_contracts.sources.records import MAX_RECORD
from lineage.errors import BadInput

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER = 2**20
MAX_RATIO = 250  # text packs 3 to 30 times; gzip's most is 1,032, zstd's has no end
MAX_UNPACKED = 2**40
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class _Reads(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Unpacked(io.RawIOBase):
    """The bytes that a packed file unpacks to, as long as they are not absurdly many."""

    def __init__(self, inner: _Reads, raw: "_Counted", where: str) -> None:
        self._inner, self._raw, self._where, self._size = inner, raw, where, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Reads at most a buffer's size, never more than it holds."""
        view = memoryview(buffer).cast("B")
        data = self._inner.read(len(view))
        view[: len(data)] = data
        self._size += len(data)
        ratio = self._size / max(1, self._raw.count)
        if self._size > MAX_UNPACKED or (self._size > 4 * MAX_RECORD and ratio > MAX_RATIO):
            problem = f"unpacks to {ratio:,.0f} times its size ({self._size >> 20:,} MiB and more)"
            raise BadInput(self._where, "", problem, "it may be a bomb; if you trust it, unpack it yourself")
        return len(data)


class _Counted:
    """A stream that knows how many bytes were read from it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.count, self.closed = stream, 0, False

    def read(self, size: int = -1) -> bytes:
        """Reads at most so many bytes."""
        data = self._stream.read(size)
        self.count += len(data)
        return data

    def close(self) -> None:
        """Says that it is closed, as Arrow asks; who opened the stream closes it."""
        self.closed = True


@contextmanager
def open_stream(file: SourceFile) -> Iterator[io.BufferedReader]:
    """Opens a file for reading from its start. What packs it is seen from its first bytes, not from its name.

    Raises:
        BadInput: it cannot be read, ends in the middle, unpacks to too much, or is not the file that was hashed.
    """
    with read_errors(file), open_raw(file) as raw:
        yield io.BufferedReader(_unpack(raw, file.location), BUFFER)
        check_unchanged(file)


@contextmanager
def read_errors(file: SourceFile) -> Iterator[None]:
    """Turns what goes wrong inside a file into one error that names it."""
    try:
        yield
    except EOFError:
        raise _truncated(file) from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(file.location, "", f"is damaged ({error})", "get it again") from None
    except OSError as error:
        if "Truncated" in str(error):  # pyarrow's word for a zstd frame without an end
            raise _truncated(file) from None
        raise _unreadable(file, error.strerror or str(error)) from None
    except BadInput:
        raise
    except Exception as error:  # a file system on the net raises errors of the library that it stands on
        if not file.is_remote:
            raise
        raise _unreadable(file, f"{type(error).__name__}: {error}") from None


def _unpack(raw: BinaryIO, where: str) -> Any:
    stream: Any = raw if hasattr(raw, "peek") else io.BufferedReader(_Raw(raw), BUFFER)
    magic = stream.peek(4)[:4]
    if not magic.startswith((GZIP, ZSTD)):
        return _Raw(stream)
    counted = _Counted(stream)
    if magic.startswith(GZIP):
        return _Unpacked(gzip.GzipFile(fileobj=counted, mode="rb"), counted, where)  # type: ignore[call-overload]
    import pyarrow as pa

    # The package zstandard takes a file that was cut off for a whole one; Arrow's reader does not.
    return _Unpacked(pa.CompressedInputStream(pa.PythonFile(counted, "r"), "zstd"), counted, where)


class _Raw(io.RawIOBase):
    """Any readable thing as a raw stream; it is not closed with it."""

    def __init__(self, inner: _Reads) -> None:
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Reads at most a buffer's size."""
        view = memoryview(buffer).cast("B")
        data = self._inner.read(len(view))
        view[: len(data)] = data
        return len(data)


def _truncated(file: SourceFile) -> BadInput:
    return BadInput(file.location, "", "ends in the middle: it is not whole", "get it again")


def _unreadable(file: SourceFile, reason: str) -> BadInput:
    reason = " ".join(reason.split())
    return BadInput(file.location, "", f"cannot be read ({reason})", "give a file that is whole and yours to read")
