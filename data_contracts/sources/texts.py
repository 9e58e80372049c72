"""Records of plain text: a document is a file, a paragraph between blank lines, or a line."""

import io
from collections.abc import Iterator

from data_contracts.config import Documents
from data_contracts.sources.json_records import BOM, bounded_lines
from data_contracts.sources.records import MAX_RECORD, Fault, Record, too_long

FIX = "save the file as UTF-8, or take it out"


def read_text(stream: io.BufferedReader, where: str, documents: Documents) -> Iterator[Record | Fault]:
    """Yields documents as records with a `text`; blank ones are none."""
    if documents == "file":
        whole = stream.read(MAX_RECORD + 1)
        if len(whole) > MAX_RECORD:
            yield too_long(1, "the document", whole)
        else:
            yield from _document(1, "the document", whole.removeprefix(BOM))
        return
    start, size, gathered = 1, 0, list[bytes]()
    for number, line in bounded_lines(stream, where):
        if isinstance(line, Fault):
            yield line
        elif documents == "line":
            yield from _document(number, f"line {number}", line.rstrip(b"\r\n"))
        elif line.strip():
            start = start if gathered else number
            size += len(line)
            if size <= MAX_RECORD or not gathered:
                gathered.append(line)
        elif gathered:
            yield from _paragraph(start, size, gathered)
            size, gathered = 0, []
    if gathered:
        yield from _paragraph(start, size, gathered)


def _paragraph(start: int, size: int, lines: list[bytes]) -> Iterator[Record | Fault]:
    if size > MAX_RECORD:
        yield too_long(start, f"line {start}", lines[0])
    else:
        yield from _document(start, f"line {start}", b"".join(lines))


def _document(number: int, place: str, data: bytes) -> Iterator[Record | Fault]:
    if not data.strip():
        return
    try:
        yield Record(number, place, {"text": data.decode()})
    except UnicodeDecodeError as error:
        yield Fault(number, place, f"byte {error.start} is not UTF-8", data.decode(errors="backslashreplace"), FIX)
