"""Keeps golden items out of training data, and proves it.

Two methods, both on words (lower-cased, without punctuation), so that spacing, case and quotation marks hide nothing:

- *phrase*: a golden question stands, word for word, anywhere in a row's text: a greeting before it hides nothing either;
- *ngram*: a row and a golden text share a run of 13 words (Brown et al. 2020, "Language Models are Few-Shot Learners",
  appendix C). Golden texts of fewer words are compared as phrases.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_contracts.config import KINDS
from data_contracts.jsonl import read_jsonl, write_jsonl
from data_contracts.quarantine import Reason
from data_contracts.rows import GoldenItem, Row, golden_text, row_model
from lineage.errors import BadInput, GoldpathError
from lineage.files import sha256_file, write_json

NGRAM = 13
ANCHOR = 3  # a phrase is looked up by its first words, and only then compared whole
Words = tuple[str, ...]
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class GoldenIndex:
    """Golden items, ready to be looked for: phrases by their first words, and runs of 13 words; values are item names."""

    phrases: Mapping[Words, Sequence[tuple[Words, str]]]
    ngrams: Mapping[Words, str]


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


def index_golden(sets: Mapping[str, Sequence[GoldenItem]]) -> GoldenIndex:
    """Makes golden items findable."""
    phrases: dict[Words, list[tuple[Words, str]]] = {}
    ngrams: dict[Words, str] = {}
    for name, items in sorted(sets.items()):
        for item in items:
            words, label = split_words(golden_text(item)), f"{name}/{item.id}"
            if len(words) < NGRAM or item.kind != "heldout":
                phrases.setdefault(words[:ANCHOR], []).append((words, label))
            for gram in runs(words, NGRAM):
                ngrams.setdefault(gram, label)
    return GoldenIndex(phrases, ngrams)


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
    for anchor in range(1, ANCHOR + 1):
        for start, head in enumerate(runs(words, anchor)):
            for phrase, label in golden.phrases.get(head, ()):
                # One or two words ("Which module?") stand in too many texts: a phrase that short must be the whole text.
                whole = len(phrase) >= ANCHOR or len(words) == len(phrase)
                if whole and words[start : start + len(phrase)] == phrase:
                    return Reason("phrase", f"repeats golden item {label}")
    for gram in runs(words, NGRAM):
        if gram in golden.ngrams:
            return Reason("ngram", f"shares {NGRAM} words in a row with golden item {golden.ngrams[gram]}")
    return None


def write_proof(out: Path, sets: Mapping[str, Sequence[GoldenItem]]) -> None:
    """Reads the final rows back from disk, looks for golden items again, and writes `proof.json`.

    Raises:
        GoldpathError: a golden item is in the final rows. The stage then ends without a record.
    """
    golden = index_golden(sets)
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
        "methods": {
            "phrase": "a golden question, word for word, anywhere in a row (a phrase of one or two words: the whole text)",
            "ngram": f"a run of {NGRAM} words shared with a golden text",
        },
        "rows_checked": rows_checked,
        "intersections": {method: sum(reason.rule == method for _, reason in found) for method in ("phrase", "ngram")},
    }
    write_json(out / "proof.json", proof)


def split_words(text: str) -> Words:
    """Returns a text's words, lower-cased, without punctuation."""
    return tuple(_WORD.findall(text.casefold()))


def runs(words: Words, size: int) -> Iterable[Words]:
    """Yields every run of `size` words, in order; nothing for a shorter text."""
    return zip(*(words[i:] for i in range(size)), strict=False)
