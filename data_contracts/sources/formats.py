"""From a file to its records: the one reader for what its format is."""

from collections.abc import Iterator
from pathlib import Path

from data_contracts.config import Source
from data_contracts.sources.json_records import read_json, read_json_lines
from data_contracts.sources.listing import suffix_of
from data_contracts.sources.places import SourceFile, check_unchanged, open_raw
from data_contracts.sources.records import Fault, Record
from data_contracts.sources.streams import open_stream, read_errors
from data_contracts.sources.tables import read_csv, read_parquet
from data_contracts.sources.texts import read_text


def read_records(source: Source, file: SourceFile) -> Iterator[Record | Fault]:
    """Yields the records of one file in bounded memory, and faults where a record cannot be read.

    Raises:
        BadInput: the file cannot be read or not to its end, or it is not the file that was hashed.
    """
    where = file.location
    if file.layout == "hub":
        from data_contracts.sources.hugging_face import read_hub

        yield from read_hub(source, file.identity, "path")
    elif file.layout == "saved":
        from data_contracts.sources.hugging_face import read_saved

        with read_errors(file):
            check_unchanged(file)
            yield from read_saved(Path(where), source.split)
            check_unchanged(file)
    elif file.layout == "parquet":
        with read_errors(file), open_raw(file, seekable=True) as raw:
            yield from read_parquet(raw, where)
            check_unchanged(file)
    else:
        with open_stream(file) as stream:
            if file.layout == "jsonl":
                yield from read_json_lines(stream, where)
            elif file.layout == "json":
                yield from read_json(stream, where)
            elif file.layout == "csv":
                yield from read_csv(stream, where, "\t" if suffix_of(where) == ".tsv" else ",")
            else:
                yield from read_text(stream, where, source.documents)
