"""Files of sources, written in every form, for the tests that read them."""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_contracts.config import DataConfig, Source
from data_contracts.sources.feeds import find_files
from data_contracts.sources.formats import read_records
from data_contracts.sources.records import Fault, Record
from lineage.section import parse

ROWS = [{"question": f"What is {i}?", "answer": f"It is {i}, “ünïcode”,\nwith a second line."} for i in range(7)]
PACKINGS = ("", ".gz", ".zst")
Rows = Sequence[Mapping[str, Any]]


def pack(data: bytes, packing: str) -> bytes:
    """Returns bytes, packed as a suffix says."""
    if packing == ".gz":
        return gzip.compress(data)
    if packing == ".zst":
        import pyarrow as pa

        return bytes(pa.Codec("zstd").compress(data, asbytes=True))
    return data


def as_json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Returns rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: Rows, delimiter: str = ",") -> bytes:
    """Returns rows as CSV with a header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def write_parquet(path: Path, rows: Rows, **options: Any) -> Path:
    """Writes rows as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path, **options)
    return path


def source(path: Path | str, **said: Any) -> Source:
    """A source with the given fields."""
    return parse(Source, {"path": str(path), **said}, "test")


def config(path: Path | str, *, on_bad_line: str = "stop", **said: Any) -> DataConfig:
    """A configuration with one source."""
    return parse(DataConfig, {"sources": [{"path": str(path), **said}], "on_bad_line": on_bad_line}, "test")


def records(path: Path | str, **said: Any) -> list[Record | Fault]:
    """All records of a source, read as the stage reads them."""
    opened = source(path, **said)
    return [record for file in find_files(opened, "path") for record in read_records(opened, file)]


def values(path: Path | str, **said: Any) -> list[dict[str, Any]]:
    """The values of a source's records, none of which is a fault."""
    found = records(path, **said)
    assert [one for one in found if isinstance(one, Fault)] == []
    return [one.value for one in found if isinstance(one, Record)]


def faults(path: Path | str, **said: Any) -> list[Fault]:
    """The faults of a source."""
    return [one for one in records(path, **said) if isinstance(one, Fault)]
