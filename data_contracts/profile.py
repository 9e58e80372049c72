"""What a data version's rows are like, in figures: counts, sources, lengths and, for a comparison, words and digests.

Read in one pass, a row at a time. What grows with the rows is 16 bytes each for the digests, and only where they are asked
for.
"""

import hashlib
import json
import re
import struct
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_contracts.config import KINDS, RowKind
from data_contracts.jsonl import stream_jsonl
from data_contracts.rows import Row, row_model
from data_contracts.split import PARTS, Part
from lineage.errors import BadInput
from lineage.files import canonical_json

MOST_WORDS = 400_000  # different words that are counted at a time; the rarer half is forgotten above it
PACKED_FIGURES = ("documents", "tokens", "target_tokens")
_WORD = re.compile(r"\w+")


@dataclass
class Vocabulary:
    """How often each word occurs; of very many different words the rarest are forgotten, their number is not.

    Attributes:
        counts: occurrences by word, lower-cased.
        total: occurrences of all words.
    """

    counts: Counter[str] = field(default_factory=Counter)
    total: int = 0

    def add(self, text: str) -> None:
        """Counts the words of a text."""
        words = _WORD.findall(text.lower())
        self.total += len(words)
        self.counts.update(words)
        if len(self.counts) > MOST_WORDS:
            self.counts = Counter(dict(self.counts.most_common(MOST_WORDS // 2)))


@dataclass
class Digests:
    """64 bits of hash of each row's id and of its content, in the order of the rows."""

    ids: "array[int]" = field(default_factory=lambda: array("Q"))
    contents: "array[int]" = field(default_factory=lambda: array("Q"))

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row."""
        identity, content = digest_row(row)
        self.ids.append(identity)
        self.contents.append(content)


@dataclass
class Profile:
    """The kept rows of one kind.

    Attributes:
        rows: by part.
        sources: rows by the source that they name.
        lengths: rows by their length in characters, all texts of a row together.
        vocabulary, digests: empty unless they were asked for; digests by part.
    """

    rows: Counter[Part] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    digests: dict[Part, Digests] = field(default_factory=lambda: {part: Digests() for part in PARTS})

    def add(self, row: Row, part: Part, *, deeply: bool = False) -> None:
        """Counts a row.

        Args:
            deeply: its words and digests too.
        """
        texts = row.texts()
        self.rows[part] += 1
        self.sources[row.source] += 1
        self.lengths[sum(map(len, texts))] += 1
        if deeply:
            for text in texts:
                self.vocabulary.add(text)
            self.digests[part].add(row.model_dump(mode="json"))

    @property
    def characters(self) -> int:
        """Characters of all rows."""
        return sum(length * rows for length, rows in self.lengths.items())

    def length_at(self, share: float) -> int:
        """Returns the length that this share of the rows does not exceed, 0.5 giving the median; 0 without rows."""
        rest = share * self.lengths.total()
        for length in sorted(self.lengths):
            rest -= self.lengths[length]
            if rest <= 0:
                return length
        return 0


def profile_version(folder: Path, *, deeply: bool = False) -> dict[RowKind, Profile]:
    """Reads the kept rows of a data version, and returns the kinds that it has.

    Raises:
        BadInput: the folder holds no data version, or rows that are none.
    """
    if not (folder / "funnel.json").is_file():
        raise BadInput(folder, "", "holds no data version (no funnel.json)", "give NAME@VERSION, or a data stage's folder")
    profiles: dict[RowKind, Profile] = {}
    for kind in KINDS:
        for part in PARTS:
            for row in kept_rows(folder, kind, part):
                profiles.setdefault(kind, Profile()).add(row, part, deeply=deeply)
    return profiles


def kept_rows(folder: Path, kind: RowKind, part: Part) -> Iterator[Row]:
    """Yields a part's rows; none where the version does not have the kind.

    Raises:
        BadInput: a line is no row of this kind.
    """
    path = folder / "rows" / kind / f"{part}.jsonl"
    if not path.is_file():
        return
    try:
        for value in stream_jsonl(path):
            yield row_model(kind, value).model_validate(value)
    except ValueError as error:  # of JSON, of UTF-8, or of the row's schema
        raise BadInput(
            path, "", f"is no file of {kind} rows ({str(error).splitlines()[0]})", "restore the version"
        ) from None


def digest_row(row: Mapping[str, Any]) -> tuple[int, int]:
    """Returns 64 bits of hash of a row's id, and of all the rest but its source."""
    content = {name: value for name, value in row.items() if name not in ("id", "source")}
    return digest_id(str(row["id"])), digest_id(canonical_json(content))


def digest_id(text: str) -> int:
    """Returns 64 bits of hash of an id, or of any text."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def packed_figures(folder: Path, kind: RowKind, part: Part) -> dict[str, int]:
    """Returns what a packed file says of itself: rows, documents, tokens, target_tokens; empty where there is none."""
    path = folder / "packed" / kind / f"{part}.safetensors"
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    figures = {name: int(header["__metadata__"][name]) for name in PACKED_FIGURES}
    return {"rows": int(header["input_ids"]["shape"][0]), **figures}
