"""Records of tables: CSV with a header, and Parquet, a few rows at a time."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from data_contracts.sources.json_records import bounded_lines
from data_contracts.sources.records import MAX_RECORD, Fault, Record, without_nulls
from lineage.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 256  # rows that are held at once
MAX_RATIO = 1000  # a Parquet column that claims to unpack to more than that
FIX = "correct or delete that row"


def read_csv(stream: io.BufferedReader, where: str, delimiter: str) -> Iterator[Record | Fault]:
    """Yields rows of a table whose first line names the columns. An empty cell is an absent field.

    Raises:
        BadInput: there is no header, it names a column twice, or a line has no end within the size of a record.
    """
    csv.field_size_limit(MAX_RECORD)  # of the process; its default, 128 KiB, is shorter than many documents
    undecodable: dict[int, str] = {}
    reader = csv.reader(_decoded_lines(stream, where, undecodable), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise BadInput(where, f"line {start}", f"is no CSV: {error}", "correct the header") from None
            yield Fault(start, f"line {start}", f"is no CSV: {error}", "", FIX)
            continue
        number = reader.line_num
        if header is None:
            header = _check_header(cells, where)
        elif bad := [line for line in range(start, number + 1) if line in undecodable]:
            yield Fault(start, f"line {bad[0]}", undecodable.pop(bad[0]), delimiter.join(cells), FIX)
        elif len(cells) == len(header):
            value = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
            yield Record(start, f"line {start}", value)
        elif cells:
            problem = f"has {len(cells)} cells, but the header {len(header)}"
            yield Fault(start, f"line {start}", problem, delimiter.join(cells), FIX)


def read_parquet(file: BinaryIO, where: str, rows: int = BATCH) -> Iterator[Record | Fault]:
    """Yields rows of a Parquet file, a page at a time whatever the size of its row groups.

    Raises:
        BadInput: it is no Parquet file, or a column claims to unpack to an absurd size.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as parquet:
            _check_sizes(parquet.metadata, where)
            number = 0
            for batch in parquet.iter_batches(batch_size=rows):
                yield from batch_records(batch, number)
                number += batch.num_rows
    except (pa.ArrowException, ValueError, OverflowError) as error:  # the latter two of names and dates that are none
        raise BadInput(where, "", f"is no whole Parquet file ({' '.join(str(error).split())})", "get it again") from None


def batch_records(batch: "pa.RecordBatch", passed: int) -> Iterator[Record | Fault]:
    """Yields the rows of a batch that comes after `passed` others; one with text that is no UTF-8 is a fault."""
    try:
        values = batch.to_pylist()
        yield from row_records(values, passed)
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield from row_records(batch.slice(i, 1).to_pylist(), passed + i)
            except UnicodeDecodeError as error:
                place = f"row {passed + i + 1}"
                yield Fault(passed + i + 1, place, f"holds text whose byte {error.start} is not UTF-8", "", FIX)


def row_records(values: Sequence[Mapping[str, Any]], passed: int) -> Iterator[Record]:
    """Yields rows as records, without their nulls.

    Raises:
        UnicodeDecodeError: one of them holds bytes that are no UTF-8; none was yielded then.
    """
    for number, value in enumerate([without_nulls(dict(value)) for value in values], start=passed + 1):
        yield Record(number, f"row {number}", value)


def _decoded_lines(stream: io.BufferedReader, where: str, undecodable: dict[int, str]) -> Iterator[str]:
    """Yields lines as text; notes those that are no UTF-8 by their number."""
    for number, line in bounded_lines(stream, where):
        if isinstance(line, Fault):
            raise BadInput(where, line.place, line.problem, "correct that line: nothing after it can be told apart")
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            undecodable[number] = f"byte {error.start} is not UTF-8"
            yield line.decode(errors="backslashreplace")


def _check_header(cells: Sequence[str], where: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or not all(header):
        problem = f"two columns are called `{twice[0]}`" if twice and twice[0] else "a column has no name"
        raise BadInput(where, "line 1", problem, "give every column its own name in the first line")
    return header


def _check_sizes(metadata: Any, where: str) -> None:
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            whole, packed = chunk.total_uncompressed_size, chunk.total_compressed_size
            if whole > MAX_RECORD and whole > MAX_RATIO * max(1, packed):
                problem = f"column `{chunk.path_in_schema}` unpacks to {whole / max(1, packed):,.0f} times its size"
                raise BadInput(where, f"row group {group}", problem, "write the file anew, if you trust it")
