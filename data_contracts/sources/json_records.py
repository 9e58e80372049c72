"""Records of JSON: one a line, the elements of an array, or those of the one list in an object; the next alone is held."""

import codecs
import io
import json
from collections.abc import Iterator
from typing import Any

from data_contracts.sources.records import MAX_RECORD, Fault, Record, decode_object, too_long
from lineage.errors import BadInput

CHUNK = 2**20
BOM = codecs.BOM_UTF8
# An object with one of these is a row; in any other the list is looked for that holds the rows.
ROW_COLUMNS = frozenset({"text", "messages", "conversations", "prompt", "completion", "chosen", "rejected", "question"})
SPACE = " \t\r\n"


def bounded_lines(stream: io.BufferedIOBase, where: str) -> Iterator[tuple[int, bytes | Fault]]:
    """Yields (number from 1, line) with line ends; a line longer than a record may be is passed over, and is a fault.

    Raises:
        BadInput: the file is UTF-16.
    """
    number = 0
    while line := stream.readline(MAX_RECORD + 1):
        number += 1
        if number == 1:
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise BadInput(where, "", "is UTF-16", "save it as UTF-8")
            line = line.removeprefix(BOM)
        if len(line) <= MAX_RECORD:
            yield number, line
            continue
        fault, end = too_long(number, f"line {number}", line), line
        while end and not end.endswith(b"\n"):
            end = stream.readline(CHUNK)
        yield number, fault


def read_json_lines(stream: io.BufferedIOBase, where: str) -> Iterator[Record | Fault]:
    """Yields the objects of JSON lines. Blank lines count as lines, and are no records."""
    for number, line in bounded_lines(stream, where):
        if isinstance(line, Fault):
            yield line
        elif stripped := line.strip():
            value = decode_object(stripped)
            if isinstance(value, str):
                yield Fault(number, f"line {number}", value, stripped.decode(errors="backslashreplace"))
            else:
                yield Record(number, f"line {number}", value)


def read_json(stream: io.BufferedReader, where: str) -> Iterator[Record | Fault]:
    """Yields the objects of an array, of the one list in an object, or of objects one after the other.

    A file of JSON lines is read as such whatever it is called. In the others nothing can be found after a syntax error.

    Raises:
        BadInput: the text is no JSON, is not UTF-8, or holds several lists of objects.
    """
    first, _, rest = stream.peek(CHUNK).removeprefix(BOM).lstrip().partition(b"\n")
    if rest.strip() and isinstance(decode_object(first), dict):
        yield from read_json_lines(stream, where)
        return
    text = _Window(stream, where)
    values = _elements(text) if text.next() == "[" else _objects(text)
    number = 0
    try:
        for number, value in enumerate(values, start=1):
            if isinstance(value, dict):
                yield Record(number, f"record {number}", value)
            else:
                problem, excerpt = f"is {type(value).__name__}, not an object with fields", _shown(value)
                yield Fault(number, f"record {number}", problem, excerpt, "correct or delete it")
    except _TooLong:
        raise text.broken(f"record {number + 1} is longer than {MAX_RECORD >> 20} MiB") from None
    if text.next():
        raise text.broken(f"something follows the last of {number} records")


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "…"


def _objects(text: "_Window") -> Iterator[Any]:
    """Yields objects that stand one after the other; of one that is a frame around a list, the list's."""
    while text.next() == "{":
        try:
            value = text.value()
        except _TooLong:
            yield from _list_in_object(text)
            continue
        lists = [name for name, part in value.items() if isinstance(part, list) and part and isinstance(part[0], dict)]
        if not lists or not ROW_COLUMNS.isdisjoint(value):
            yield value
        elif len(lists) > 1:
            raise text.several_lists(*lists[:2])
        else:
            yield from value[lists[0]]


def _list_in_object(text: "_Window") -> Iterator[Any]:
    """Yields the elements of the one list of objects in an object that is too large to be held."""
    found = ""
    text.take("{")
    while text.next() != "}":
        name = str(text.value())
        text.take(":")
        if text.starts_list_of_objects():
            if name in ROW_COLUMNS:
                raise text.broken(f"its `{name}` is longer than {MAX_RECORD >> 20} MiB")
            if found:
                raise text.several_lists(found, name)
            found = name
            yield from _elements(text)
        else:
            text.value()
        if text.next() != "}":
            text.take(",")
    text.take("}")


def _elements(text: "_Window") -> Iterator[Any]:
    text.take("[")
    while text.next() != "]":
        yield text.value()
        if text.next() != "]":
            text.take(",")
    text.take("]")


class _TooLong(Exception):
    """A value does not fit into the window."""


class _Window:
    """A window on a stream's text, which grows until the next value is whole, and no further than a record may."""

    def __init__(self, stream: io.BufferedReader, where: str) -> None:
        self._stream, self._where = stream, where
        self._decoder, self._json = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
        self._text, self._at, self._passed, self._ended = "", 0, 0, False

    def next(self) -> str:
        """Returns the next character that is no white space, without taking it; "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        """Takes a character that must come next."""
        if (found := self.next()) != character:
            raise self.broken(f"`{character}` is expected, not {f'`{found}`' if found else 'the end'}")
        self._at += 1

    def starts_list_of_objects(self) -> bool:
        """Whether `[` and then `{` come next."""
        if self.next() != "[":
            return False
        ahead = 1
        while self._at + ahead < len(self._text) or self._more():
            rest = self._text[self._at + ahead :].lstrip(SPACE)
            if rest:
                return rest[0] == "{"
            ahead = len(self._text) - self._at
        return False

    def value(self) -> Any:
        """Takes the next value.

        Raises:
            BadInput: it is no JSON.
            _TooLong: it does not fit into the window; nothing was taken.
        """
        self.next()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # a number might go on
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self.broken(f"is not JSON: {error.msg}", error.pos) from None
            except RecursionError:
                raise self.broken("is nested too deeply") from None
            except ValueError:
                raise self.broken("holds a number that is too long to read") from None
            if len(self._text) - self._at > MAX_RECORD:
                raise _TooLong
            self._more(len(self._text) - self._at)

    def broken(self, problem: str, at: int | None = None) -> BadInput:
        """Returns the error of a text that is no JSON."""
        place = f"character {self._passed + (self._at if at is None else at) + 1}"
        return BadInput(self._where, place, problem, "correct the file; with one object a line, say `format: jsonl`")

    def several_lists(self, first: str, second: str) -> BadInput:
        """Returns the error of an object with several lists of objects."""
        problem = f"holds two lists of objects, `{first}` and `{second}`"
        return BadInput(self._where, "", problem, "leave the one with the rows, as an array or as JSON lines")

    def _more(self, least: int = 0) -> bool:
        """Forgets what was taken and reads on, at least as much as is held; says whether there was more."""
        if self._ended:
            return False
        data = self._stream.read(max(CHUNK, least))
        self._ended = not data
        try:
            new = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError:
            raise self.broken("is not UTF-8", len(self._text)) from None
        self._passed += self._at
        self._text, self._at = self._text[self._at :] + new, 0
        return not self._ended or bool(new)
