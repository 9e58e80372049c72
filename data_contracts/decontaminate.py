"""Keeps golden items out of training data, and proves it.

Three methods, all on words (lower-cased, without punctuation), so that spacing, case and quotation marks hide nothing:

- *phrase*: a golden question stands, word for word, anywhere in a row's text: a greeting before it hides nothing either;
- *ngram*: a row and a golden text share a run of 13 words (Brown et al. 2020, "Language Models are Few-Shot Learners",
  appendix C). Golden texts of fewer words are compared as phrases;
- *near*: a golden text stands in a row with some of its words changed, but not those that tell it from others
  (`near_match.py`).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from data_contracts.config import KINDS
from data_contracts.jsonl import read_jsonl, write_jsonl
from data_contracts.near_match import NearIndex, WordCounts, find_near, index_prompts
from data_contracts.quarantine import Reason
from data_contracts.rows import GoldenItem, Row, golden_text, row_model
from data_contracts.words import Words, runs, split_words
from lineage.errors import BadInput, GoldpathError
from lineage.files import sha256_file, write_json

NGRAM = 13
ANCHOR = 3  # a phrase is looked up by its first words, and only then compared whole
METHODS = {
    "phrase": "a golden question, word for word, anywhere in a row (a phrase of one or two words: the whole text)",
    "ngram": f"a run of {NGRAM} words shared with a golden text",
    "near": "a golden text with up to a quarter of its words edited, but not those that tell it from others",
}
Protected = Mapping[
    str, Sequence[tuple[str, str]]
]  # files of other texts that must not be trained on: by path, (name, text)


@dataclass(frozen=True)
class GoldenIndex:
    """Golden items, ready to be looked for; values are item names.

    Attributes:
        phrases: golden texts by their first three words.
        short: those of one or two words, which stand in too many texts: they must be the whole text.
        ngrams: every run of 13 golden words.
        pairs: every pair of neighbours in them. Looking for pairs first is ten times as fast as looking for runs.
        near: what is found although it was changed.
    """

    phrases: Mapping[Words, Sequence[tuple[Words, str]]]
    short: Mapping[Words, str]
    ngrams: Mapping[Words, str]
    pairs: frozenset[tuple[str, str]]
    near: NearIndex


def freeze_golden(sets: Mapping[str, Sequence[GoldenItem]], folder: Path) -> None:
    """Writes the golden sets and their manifest. Called before any training row is looked at.

    Raises:
        BadInput: an item has no words, so that nothing could be compared with it.
    """
    manifest = {}
    for name, items in sorted(sets.items()):
        for item in items:
            if not split_words(golden_text(item)):
                raise BadInput(f"golden set {name}", item.id, "has no words", "write a question, or delete the item")
        path = folder / f"{name}.jsonl"
        write_jsonl(path, (item.model_dump(mode="json") for item in items))
        kind = items[0].kind
        manifest[name] = {"file": path.name, "sha256": sha256_file(path), "items": len(items), "kind": kind}
    write_json(folder / "manifest.json", {"sets": manifest})


def index_golden(
    sets: Mapping[str, Sequence[GoldenItem]], protected: Protected | None = None, counts: WordCounts | None = None
) -> GoldenIndex:
    """Makes golden items and the texts of other files findable.

    Args:
        counts: how common the golden words are in the rows, from `count_words`; it keeps short questions that share a
            template with training rows from being near matches.
    """
    phrases: dict[Words, list[tuple[Words, str]]] = {}
    short: dict[Words, str] = {}
    ngrams: dict[Words, str] = {}
    prompts: list[tuple[str, Words]] = []
    for label, text, is_document in _texts(sets, protected or {}):
        words = split_words(text)
        if len(words) < ANCHOR:
            short.setdefault(words, label)
        elif len(words) < NGRAM or not is_document:
            phrases.setdefault(words[:ANCHOR], []).append((words, label))
        for gram in runs(words, NGRAM):
            ngrams.setdefault(gram, label)
        prompts.append((label, words))
    pairs = frozenset(pair for gram in ngrams for pair in pairwise(gram))
    return GoldenIndex(phrases, short, ngrams, pairs, index_prompts(prompts, counts))


def count_words(
    rows: Iterable[Row], sets: Mapping[str, Sequence[GoldenItem]], protected: Protected | None = None
) -> WordCounts:
    """Counts how common the words of golden items are in rows. The counts of several shards are added with `+=`."""
    vocabulary = frozenset(word for _, text, _ in _texts(sets, protected or {}) for word in split_words(text))
    counts = WordCounts()
    for row in rows if vocabulary else ():
        for text in row.texts():
            counts.count(split_words(text), vocabulary)
    return counts


def find_contaminated(rows: Iterable[Row], golden: GoldenIndex) -> dict[int, Reason]:
    """Returns the position of every row that repeats a golden item, with the item's name."""
    found = {}
    for position, row in enumerate(rows):
        for text in row.texts():
            if reason := match_golden(split_words(text), golden):
                found[position] = reason
                break
    return found


def match_golden(words: Words, golden: GoldenIndex) -> Reason | None:
    """Says which golden item a text repeats, and by which method it was found; None where it repeats none."""
    if label := golden.short.get(words):
        return Reason("phrase", f"repeats golden item {label}")
    for start in _where(golden.phrases, runs(words, ANCHOR)):
        for phrase, label in golden.phrases[words[start : start + ANCHOR]]:
            if words[start : start + len(phrase)] == phrase:
                return Reason("phrase", f"repeats golden item {label}")
    for start in _where(golden.pairs, pairwise(words), NGRAM - 1):
        if label := golden.ngrams.get(words[start : start + NGRAM]):
            return Reason("ngram", f"shares {NGRAM} words in a row with golden item {label}")
    if near := find_near(words, golden.near):
        return Reason("near", f"repeats {near[1]:.0%} of golden item {near[0]}, word for word")
    return None


def _where(wanted: Collection[Words], found: Iterable[Words], in_a_row: int = 1) -> Iterator[int]:
    """Yields every place from which on so many in a row are wanted; the interpreter's own loops do the work."""
    flags, run = bytes(map(wanted.__contains__, found)), b"\1" * in_a_row
    start = flags.find(run)
    while start >= 0:
        yield start
        start = flags.find(run, start + 1)


def write_proof(
    out: Path,
    sets: Mapping[str, Sequence[GoldenItem]],
    protected: Protected | None = None,
    counts: WordCounts | None = None,
) -> None:
    """Reads the final rows back from disk, looks for golden items again with all methods, and writes `proof.json`.

    Args:
        protected, counts: as for `index_golden`.

    Raises:
        GoldpathError: a golden item is in the final rows. The stage then ends without a record.
    """
    golden = index_golden(sets, protected, counts)
    rows_checked, found = {}, []
    for kind in KINDS:
        for part in ("train", "validation"):
            rows = [row_model(kind, row).model_validate(row) for row in read_jsonl(out / "rows" / kind / f"{part}.jsonl")]
            rows_checked[f"{kind}/{part}"] = len(rows)
            found += [(rows[position].id, reason) for position, reason in find_contaminated(rows, golden).items()]
    if found:
        identity, reason = found[0]
        raise GoldpathError(
            f"data: {len(found)} final rows repeat golden items; {identity} {reason.text}. "
            "Fix: report this as a defect of Goldpath, with the configuration"
        )
    proof = {
        "golden": {name: sha256_file(out / "golden" / f"{name}.jsonl") for name in sorted(sets)},
        "protected": [{"file": Path(path).name, "sha256": sha256_file(Path(path))} for path in sorted(protected or {})],
        "methods": METHODS,
        "rows_checked": rows_checked,
        "intersections": {method: sum(reason.rule == method for _, reason in found) for method in METHODS},
    }
    write_json(out / "proof.json", proof)


def _texts(sets: Mapping[str, Sequence[GoldenItem]], protected: Protected) -> Iterator[tuple[str, str, bool]]:
    """Yields (name, text, whether it is a document rather than a question)."""
    for name, items in sorted(sets.items()):
        for item in items:
            yield f"{name}/{item.id}", golden_text(item), item.kind == "heldout"
    for _, texts in sorted(protected.items()):
        for name, text in texts:
            yield name, text, False
