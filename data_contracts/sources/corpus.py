"""Everything that the sources hold, and the digests that stand for it in the stage's identity."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from data_contracts.config import KINDS, DataConfig, RowKind
from data_contracts.rows import GoldenItem, GoldenLine, Row, row_model
from data_contracts.sources.feeds import BadLine, Feed, find_files, open_feeds, read_feed
from data_contracts.sources.places import digest_of
from data_contracts.toxicity import toxicity_file
from lineage.errors import BadInput
from lineage.files import list_files, sha256_file


@dataclass
class Corpus:
    """Everything that the sources hold, in the order of the sources.

    Attributes:
        epochs: how often rows are packed, by kind and id; once where it is not said.
    """

    rows: dict[RowKind, list[Row]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    golden: dict[str, list[GoldenItem]] = field(default_factory=dict)
    bad_lines: list[BadLine] = field(default_factory=list)
    epochs: dict[tuple[RowKind, str], float] = field(default_factory=dict)


def source_digests(config: DataConfig) -> dict[str, str]:
    """Returns a digest per thing that the stage reads from outside: sources, tokenizer, chat template, further files.

    A source's digest covers all its files: the sha256 of one, or that of the list of names and digests of several. Of
    remote files it is what the store calls their bytes, else their sha256; of a data set of the hub, its commit.
    Cheap enough for a planner to call: 0.3 s for the standard library, about 1 s for a gigabyte on disk.

    Raises:
        BadInput: a file is missing or cannot be read.
    """
    digests = {}
    for i, source in enumerate(config.sources):
        if source.kind == "stdlib":
            from data_contracts.stdlib import stdlib_digest

            digests[f"sources[{i}]"] = stdlib_digest()
        else:
            digests[f"sources[{i}]"] = digest_of(find_files(source, f"data.sources[{i}].path"))
    if config.tokenizer:
        folder = Path(config.tokenizer)
        if not folder.is_dir():
            raise BadInput(folder, "data.tokenizer", "is not a folder", "give a folder with a tokenizer.json")
        for path in list_files(folder, linked=True):
            if path.name.startswith(("tokenizer", "chat_template", "special_tokens", "vocab", "merges", "added_tokens")):
                digests[f"data.tokenizer/{path.relative_to(folder).as_posix()}"] = _hash(path, "data.tokenizer")
    if config.chat_template:
        digests["data.chat_template"] = _hash(Path(config.chat_template), "data.chat_template")
    for i, file in enumerate(config.decontaminate_against):
        digests[f"data.decontaminate_against[{i}]"] = _hash(Path(file), f"data.decontaminate_against[{i}]")
    if config.toxicity:
        digests["data.toxicity"] = _hash(toxicity_file(config.toxicity), "data.toxicity")
    return digests


def read_sources(config: DataConfig, expected: Mapping[str, str] | None = None) -> Corpus:
    """Reads all sources.

    Args:
        expected: what `source_digests` returned when the stage began.

    Raises:
        BadInput: a source is missing, empty, or was changed; a golden line is wrong; or a training line is wrong and
            `on_bad_line` is `stop`.
    """
    corpus = Corpus()
    feeds = iter(open_feeds(config, expected))
    for source in config.sources:
        if source.kind == "stdlib":
            _read_stdlib(config, source.epochs, corpus)
        else:
            _read(next(feeds), config.on_bad_line, corpus)
    _refuse_repeated_golden_ids(corpus)
    return corpus


def _read(feed: Feed, on_bad_line: str, corpus: Corpus) -> None:
    for item in read_feed(feed, on_bad_line):
        if isinstance(item, BadLine):
            corpus.bad_lines.append(item)
        elif feed.kind == "golden":
            golden = cast(GoldenItem, item)
            corpus.golden.setdefault(feed.source.golden_set or golden.kind, []).append(golden)
        else:
            corpus.rows[feed.kind].append(cast(Row, item))
            if feed.source.epochs != 1:
                corpus.epochs[feed.kind, item.id] = feed.source.epochs


def _read_stdlib(config: DataConfig, epochs: float, corpus: Corpus) -> None:
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
        if epochs != 1:
            corpus.epochs |= {(kind, row["id"]): epochs for row in rows}
    for name, items in made.golden.items():
        corpus.golden.setdefault(name, []).extend(GoldenLine.model_validate(item).root for item in items)


def _refuse_repeated_golden_ids(corpus: Corpus) -> None:
    for name, items in corpus.golden.items():
        seen: set[str] = set()
        for item in items:
            if item.id in seen:
                raise BadInput(f"golden set {name}", item.id, "two items have this id", "give every golden item its own id")
            seen.add(item.id)


def _hash(path: Path, where: str) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise BadInput(path, where, problem, "give the path of a file that you may read") from None
