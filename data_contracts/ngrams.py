"""Counts in how many texts each short run of tokens stands, in memory that does not grow with the texts."""

import re
import zlib
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
LONGEST = 3  # tokens
TOKEN = re.compile(r"\w+|[^\w\s]+")
_ODD = [0x9E3779B97F4A7C15 ** (i + 1) % 2**64 for i in range(LONGEST + 3)]
_POWERS = np.array(_ODD, dtype=np.uint64)


def split_tokens(text: str) -> list[str]:
    """Returns words and runs of punctuation, lower-cased: `<SUDO>` is three tokens, none hides in a word."""
    return TOKEN.findall(text.lower())


class Batch:
    """The runs of one to three tokens of some texts.

    Attributes:
        tokens: the tokens of all texts, one after the other.
        text: for every token, which text it is of.
        starts: where in `tokens` each text begins, and where the last one ends.
        runs: by length - 1, a hash per run (polynomial in the CRC-32 of its tokens), in order; one starts at every token.
        whole: by length - 1, whether the run is inside one text.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        split = [split_tokens(text) for text in texts]
        sizes = np.array([len(tokens) for tokens in split], dtype=np.int64)
        self.tokens = [token for tokens in split for token in tokens]
        self.text = np.repeat(np.arange(len(texts)), sizes)
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        hashes = np.fromiter(map(zlib.crc32, map(str.encode, self.tokens)), dtype=np.uint64, count=len(self.tokens))
        self.runs: list[Hashes] = []
        self.whole: list[NDArray[np.bool_]] = []
        for size in range(1, LONGEST + 1):
            last = np.minimum(np.arange(len(self.tokens)) + size - 1, max(0, len(self.tokens) - 1))
            total = np.full(len(self.tokens), size, dtype=np.uint64)
            for i in range(size):
                total += np.roll(hashes, -i) * _POWERS[i]
            self.runs.append(total)
            far_enough = np.arange(len(self.tokens)) + size <= len(self.tokens)
            self.whole.append(far_enough & (self.text[last] == self.text))

    def firsts(self, size: int, chosen: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
        """Returns where each text's distinct runs of that many tokens stand for the first time in it."""
        where = np.flatnonzero(self.whole[size - 1] if chosen is None else self.whole[size - 1] & chosen)
        keys = combine(self.runs[size - 1][where], self.text[where].astype(np.uint64))
        return np.sort(where[np.unique(keys, return_index=True)[1]])


class Sketch:
    """Counts by hash, never too low and seldom too high (count-min: Cormode and Muthukrishnan 2005).

    Args:
        width: cells of each of the two rows; of n counted runs, about n / width is what a count may be too high by.
    """

    def __init__(self, width: int = 2**22) -> None:
        self.cells = np.zeros((2, width), dtype=np.uint32)

    def add(self, hashes: Hashes) -> None:
        """Counts each hash once more."""
        for row, cells in zip(self.cells, self._places(hashes), strict=True):
            np.add.at(row, cells, 1)

    def count(self, hashes: Hashes) -> NDArray[np.int64]:
        """Returns how often each hash was counted."""
        first, second = (row[cells] for row, cells in zip(self.cells, self._places(hashes), strict=True))
        return np.minimum(first, second).astype(np.int64)

    def __iadd__(self, other: Self) -> Self:
        self.cells += other.cells
        return self

    def _places(self, hashes: Hashes) -> list[NDArray[np.intp]]:
        width = np.uint64(self.cells.shape[1])
        return [(((hashes * power) >> np.uint64(20)) % width).astype(np.intp) for power in _POWERS[-2:]]


def combine(left: Hashes, right: Hashes) -> Hashes:
    """Returns a hash of each pair of hashes."""
    mixed: Hashes = (left ^ (left >> np.uint64(29))) * _POWERS[1] + (right + np.uint64(1)) * _POWERS[2]
    mixed ^= mixed >> np.uint64(32)
    return mixed
