"""Reads every source into rows and golden items, and names a bad line by file, line and field."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_contracts.config import KINDS, DataConfig, RowKind, Source
from data_contracts.rows import GoldenItem, GoldenLine, Row, row_model
from lineage.errors import BadInput
from lineage.files import list_files, sha256_file
from lineage.section import parse


@dataclass(frozen=True)
class BadLine:
    """A line that is no row: of which kind it should have been, where it stands, what is wrong, and what it says."""

    kind: RowKind
    id: str
    source: str
    problem: str
    text: str


@dataclass
class Corpus:
    """Everything that the sources hold, in the order of the sources."""

    rows: dict[RowKind, list[Row]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    golden: dict[str, list[GoldenItem]] = field(default_factory=dict)
    bad_lines: list[BadLine] = field(default_factory=list)


def source_digests(config: DataConfig) -> dict[str, str]:
    """Returns a sha256 per thing that the stage reads from outside: sources, a tokenizer folder, a chat template.

    Cheap enough for a planner to call: 0.3 s for the standard library.

    Raises:
        BadInput: a file is missing or cannot be read.
    """
    digests = {}
    for i, source in enumerate(config.sources):
        if source.kind == "stdlib":
            from data_contracts.stdlib import stdlib_digest

            digests[f"sources[{i}]"] = stdlib_digest()
        else:
            digests[f"sources[{i}]"] = _hash(Path(source.path), f"data.sources[{i}].path")
    if config.tokenizer:
        folder = Path(config.tokenizer)
        if not folder.is_dir():
            raise BadInput(folder, "data.tokenizer", "is not a folder", "give a folder with a tokenizer.json")
        for path in list_files(folder, linked=True):
            if path.name.startswith(("tokenizer", "chat_template", "special_tokens", "vocab", "merges", "added_tokens")):
                digests[f"data.tokenizer/{path.relative_to(folder).as_posix()}"] = _hash(path, "data.tokenizer")
    if config.chat_template:
        digests["data.chat_template"] = _hash(Path(config.chat_template), "data.chat_template")
    return digests


def read_sources(config: DataConfig) -> Corpus:
    """Reads all sources.

    Raises:
        BadInput: a file is missing, a golden line is wrong, or a training line is wrong and `on_bad_line` is `stop`.
    """
    corpus = Corpus()
    for i, source in enumerate(config.sources):
        if source.kind == "stdlib":
            _read_stdlib(config, corpus)
        elif source.rows == "golden":
            _read_golden(source, _read_bytes(Path(source.path), f"data.sources[{i}].path"), corpus)
        else:
            _read_rows(source, _read_bytes(Path(source.path), f"data.sources[{i}].path"), config.on_bad_line, corpus)
    _refuse_repeated_golden_ids(corpus)
    return corpus


def _read_stdlib(config: DataConfig, corpus: Corpus) -> None:
    from data_contracts.stdlib import read_stdlib

    made = read_stdlib(
        seed=config.seed,
        num_facts=config.num_facts,
        num_closed_book=config.num_closed_book,
        document_bytes=config.document_bytes,
        index_rounds=config.index_rounds,
        questions_per_fact=config.questions_per_fact,
        pairs_per_fact=config.pairs_per_fact,
    )
    made_rows: dict[RowKind, list[dict[str, Any]]] = {
        "pretrain": made.pretrain,
        "sft": made.sft,
        "preference": made.preference,
    }
    for kind, rows in made_rows.items():
        corpus.rows[kind] += [row_model(kind, row).model_validate(row) for row in rows]
    for name, items in made.golden.items():
        corpus.golden.setdefault(name, []).extend(GoldenLine.model_validate(item).root for item in items)


def _read_rows(source: Source, content: bytes, on_bad_line: str, corpus: Corpus) -> None:
    path, kind = Path(source.path), source.rows
    assert kind is not None
    assert kind != "golden"
    for number, line in _lines(content):
        defaults = {"id": f"{path.stem}:{number}", "source": path.stem}
        try:
            value = defaults | _load_line(path, number, line)
            corpus.rows[kind].append(parse(row_model(kind, value), value, path, f"line {number}"))
        except BadInput as error:
            if on_bad_line == "stop":
                fix = f"{error.fix}, or set `on_bad_line: quarantine`"
                raise BadInput(error.where, error.field, error.problem, fix) from None
            problem = f"{error.field}: {error.problem}"
            text = line.decode(errors="backslashreplace")
            corpus.bad_lines.append(BadLine(kind, defaults["id"], defaults["source"], problem, text))


def _read_golden(source: Source, content: bytes, corpus: Corpus) -> None:
    path = Path(source.path)
    for number, line in _lines(content):
        value = {"id": f"{path.stem}:{number}"} | _load_line(path, number, line)
        item = parse(GoldenLine, value, path, f"line {number}").root
        corpus.golden.setdefault(source.golden_set or item.kind, []).append(item)


def _refuse_repeated_golden_ids(corpus: Corpus) -> None:
    for name, items in corpus.golden.items():
        seen: set[str] = set()
        for item in items:
            if item.id in seen:
                raise BadInput(f"golden set {name}", item.id, "two items have this id", "give every golden item its own id")
            seen.add(item.id)


def _load_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Decodes one line.

    Raises:
        BadInput: naming file, line and column.
    """
    fix = "correct or delete that line"
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadInput(path, f"line {number}", f"byte {error.start} is not UTF-8", fix) from None
    except json.JSONDecodeError as error:
        raise BadInput(path, f"line {number}", f"is not JSON: {error.msg} at column {error.colno}", fix) from None
    except RecursionError:
        raise BadInput(path, f"line {number}", "is nested too deeply", fix) from None
    except ValueError:
        raise BadInput(path, f"line {number}", "holds a number that is too long to read", fix) from None
    if not isinstance(value, dict):
        raise BadInput(path, f"line {number}", f"is {type(value).__name__}, not an object with fields", fix)
    return value


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields (number from 1, line) of every line that is not blank."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if stripped := line.strip():
            yield number, stripped


def _read_bytes(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, where, error) from None


def _hash(path: Path, where: str) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise _unreadable(path, where, error) from None


def _unreadable(path: Path, where: str, error: OSError) -> BadInput:
    return BadInput(path, where, f"cannot be read ({error.strerror})", "give the path of a file that you may read")
