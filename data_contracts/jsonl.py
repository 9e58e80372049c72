"""Rows as JSON lines: one row a line, UTF-8, fields in the order of the schema, so that equal rows are equal bytes."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lineage.files import write_atomic


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows atomically; no rows give an empty file."""
    write_atomic(path, "".join(to_line(row) for row in rows))


def to_line(row: Mapping[str, Any]) -> str:
    """Returns a row's line. A row with lone surrogates, which UTF-8 cannot hold, is written with escapes instead."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(row, allow_nan=False)
    return line + "\n"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Reads a file that this stage wrote; a foreign file is read by `sources`, which explains what is wrong with it."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def stream_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file that this stage wrote, one after the other."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)
