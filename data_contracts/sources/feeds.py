"""Sources, ready to be read: their files, hashed, and what their rows are; and from a record to a row.

A feed and its files are small and picklable: any process may read any file of it, and gives the same rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from data_contracts.config import DataConfig, RowKind, Source
from data_contracts.messages import refuse_deep
from data_contracts.rows import GoldenItem, GoldenLine, Row, row_model
from data_contracts.sources.formats import read_records
from data_contracts.sources.forms import Guess, golden_kind, guess_kind, to_form
from data_contracts.sources.listing import list_source, source_name
from data_contracts.sources.mapping import map_columns
from data_contracts.sources.places import SourceFile, digest_of, identify
from data_contracts.sources.records import Fault, Record
from lineage.errors import BadInput
from lineage.section import parse

LOOKED_AT = 1000  # records of a source that are looked at to tell what its rows are


@dataclass(frozen=True)
class BadLine:
    """A line that is no row: of which kind it should have been, where it stands, what is wrong, and what it says."""

    kind: RowKind
    id: str
    source: str
    problem: str
    text: str


@dataclass(frozen=True)
class Feed:
    """A source, ready to be read.

    Attributes:
        field: where it stands in the configuration, for errors.
        name: what its rows say that they come from, unless they say it themselves.
        kind: what its rows are.
    """

    source: Source
    field: str
    name: str
    kind: Guess
    files: tuple[SourceFile, ...]


def open_feeds(config: DataConfig, expected: Mapping[str, str] | None = None) -> list[Feed]:
    """Lists and hashes the files of all sources but `stdlib`, and finds out what their rows are.

    Args:
        expected: the digests that the stage's identity was made of (`source_digests`); what differs by now is refused.

    Raises:
        BadInput: a source is missing, was changed, or does not say what its rows are.
    """
    feeds: list[Feed] = []
    for i, source in enumerate(config.sources):
        if source.kind == "stdlib":
            continue
        field = f"data.sources[{i}].path"
        files = find_files(source, field)
        if expected and expected.get(f"sources[{i}]") not in (None, digest_of(files)):
            problem = "was changed after it was hashed, while this stage was at work"
            raise BadInput(source.path, field, problem, "let it rest, then run the same command again")
        feed = Feed(source, field, source_name(source), source.rows or infer_kind(source, files, field), files)
        feeds.append(_named_apart(feed, feeds))
    return feeds


def find_files(source: Source, field: str) -> tuple[SourceFile, ...]:
    """Returns the files of a source in reading order, with their identities.

    Raises:
        BadInput: there are none, or one cannot be read.
    """
    return tuple(identify(file) for file in list_source(source, field))


def infer_kind(source: Source, files: tuple[SourceFile, ...], field: str) -> Guess:
    """Returns what a source's rows are, by the columns of its first record that tells.

    Raises:
        BadInput: none of its first records does.
    """
    found: Record | Fault | None = None
    for record in islice(_records(source, files), LOOKED_AT):
        if isinstance(record, Record):
            if guess := guess_kind(_formed(source, record)):
                return guess
            found = found if isinstance(found, Record) else record
        found = found or record
    if found is None:
        raise BadInput(source.path, field, "holds no rows", "give a source with rows")
    if isinstance(found, Fault):
        raise BadInput(source.path, found.place, found.problem, "correct it, or say `rows:`: no row tells what they are")
    problem = f"the columns do not say what the rows are ({', '.join(found.value) or 'there are none'})"
    fix = "say under `columns:` what fields are made of (`goldpath data inspect` shows how)"
    raise BadInput(source.path, field, problem, fix)


def read_feed(feed: Feed, on_bad_line: str = "stop") -> Iterator[Row | GoldenItem | BadLine]:
    """Yields what a source holds, file by file.

    Raises:
        BadInput: it holds nothing, or what `read_file` raises.
    """
    empty = True
    for file in feed.files:
        for row in read_file(feed, file, on_bad_line):
            empty = False
            yield row
    if empty:
        raise BadInput(feed.source.path, feed.field, "holds no rows", "give a source with rows")


def read_file(feed: Feed, file: SourceFile, on_bad_line: str = "stop") -> Iterator[Row | GoldenItem | BadLine]:
    """Yields the rows, or golden items, of one file, in bounded memory.

    Args:
        on_bad_line: `stop` raises at what is no row; `quarantine` yields it as a bad line. A bad golden item always raises.

    Raises:
        BadInput: naming file, line and field.
    """
    for record in read_records(feed.source, file):
        identity = f"{file.name}:{record.number}"
        try:
            yield make_row(feed, file, record, identity)
        except BadInput as error:
            if on_bad_line == "stop" or feed.kind == "golden":
                fix = error.fix if feed.kind == "golden" else f"{error.fix}, or set `on_bad_line: quarantine`"
                raise BadInput(error.where, error.field, error.problem, fix) from None
            text = record.excerpt if isinstance(record, Fault) else record.text()
            yield BadLine(feed.kind, identity, feed.name, f"{error.field}: {error.problem}", text)


def make_row(feed: Feed, file: SourceFile, record: Record | Fault, identity: str) -> Row | GoldenItem:
    """Makes a row of a record: mapped, brought into its one form, and checked against the schema of its kind.

    Raises:
        BadInput: naming file, place and field.
    """
    if isinstance(record, Fault):
        raise BadInput(file.location, record.place, record.problem, record.fix)
    try:
        refuse_deep(record.value)
        value = to_form(map_columns(record.value, feed.source.columns))
    except ValueError as error:
        raise BadInput(file.location, record.place, str(error), "correct that row, or `columns:`") from None
    try:
        if feed.kind == "golden":
            told = {"id": identity} | golden_kind(value) | value
            return parse(GoldenLine, told, file.location, record.place).root
        value = {"id": identity, "source": feed.name} | value
        return parse(row_model(feed.kind, value), value, file.location, record.place)
    except BadInput as error:
        raise _explained(error, feed.kind, guess_kind(value)) from None


def _explained(error: BadInput, kind: Guess, guess: Guess | None) -> BadInput:
    """Adds to an error what most often is behind it: rows of another kind, or columns that no row has."""
    problem = error.problem if guess in (None, kind) else f"{error.problem} (its columns are those of a {guess} row)"
    fix = error.fix
    if error.problem == "unknown key" and kind != "golden":
        fix += ", or say under `columns:` which ones are read"
    return BadInput(error.where, error.field, problem, fix)


def _records(source: Source, files: tuple[SourceFile, ...]) -> Iterator[Record | Fault]:
    for file in files:
        yield from read_records(source, file)


def _formed(source: Source, record: Record) -> Mapping[str, Any]:
    """Returns the record in its one form where it has one, else as it is."""
    try:
        return to_form(map_columns(record.value, source.columns))
    except ValueError:
        return record.value


def _named_apart(feed: Feed, before: list[Feed]) -> Feed:
    """Gives a feed another name than those before it whose rows are of the same kind: ids are made of names."""
    taken = {other.name for other in before if other.kind == feed.kind}
    name, number = feed.name, 1
    while name in taken:
        number += 1
        name = f"{feed.name}-{number}"
    if name == feed.name:
        return feed
    files = tuple(replace(file, name=name + file.name.removeprefix(feed.name)) for file in feed.files)
    return replace(feed, name=name, files=files)
