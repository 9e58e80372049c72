"""What a reader makes of a file: records, each with its place, and faults where there should have been one."""

import json
from dataclasses import dataclass
from typing import Any

MAX_RECORD = 16 * 2**20  # bytes of one record, compressed or not; what is longer is never read whole
EXCERPT = 1000  # characters kept of a record that is too long to be kept whole


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it stands in its file.

    Attributes:
        number: its line, row or element, from 1; ids are made of it.
        place: the same for a person, such as `line 3`.
        value: its columns.
    """

    number: int
    place: str
    value: dict[str, Any]

    def text(self) -> str:
        """The record as JSON, for the quarantine."""
        try:
            return json.dumps(self.value, ensure_ascii=False, default=str)
        except RecursionError:  # such a row is refused for it
            return f"an object with the fields {', '.join(self.value)}"


@dataclass(frozen=True, slots=True)
class Fault:
    """A place where a record should be and none can be read.

    Attributes:
        problem: what is wrong, in one phrase.
        excerpt: what stands there: all of it, or its beginning where it is too long.
    """

    number: int
    place: str
    problem: str
    excerpt: str
    fix: str = "correct or delete that line"


def too_long(number: int, place: str, head: bytes) -> Fault:
    """Returns the fault of a record that is longer than `MAX_RECORD`."""
    excerpt = head[:EXCERPT].decode(errors="backslashreplace") + " …"
    return Fault(number, place, f"is longer than {MAX_RECORD >> 20} MiB", excerpt, "divide or delete it")


def decode_object(data: bytes) -> dict[str, Any] | str:
    """Returns a JSON object, or what is wrong with its text."""
    try:
        value = json.loads(data.decode())
    except UnicodeDecodeError as error:
        return f"byte {error.start} is not UTF-8"
    except json.JSONDecodeError as error:
        return f"is not JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        return "is nested too deeply"
    except ValueError:
        return "holds a number that is too long to read"
    return value if isinstance(value, dict) else f"is {type(value).__name__}, not an object with fields"


def without_nulls(value: Any) -> Any:
    """Returns a value without its null fields: tables have every column in every row, and write null for an absent one.

    Raises:
        UnicodeDecodeError: bytes are no UTF-8.
    """
    if isinstance(value, dict):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [without_nulls(part) for part in value]
    return value.decode() if isinstance(value, bytes) else value
