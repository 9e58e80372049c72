"""Finds rows that repeat an earlier row: exactly, for every kind, and nearly, for documents.

Near-duplicates are a matter of documents only. Phrasings of one question, and answers to them, are near-duplicates of each
other by design, and removing them would remove what fine-tuning is to learn.
"""

import hashlib
import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_contracts.quarantine import Reason
from data_contracts.rows import Document, Row
from lineage.files import canonical_json

SHINGLE = 5  # words
PERMUTATIONS = 128
_WORD = re.compile(r"\w+")


def find_exact(rows: Sequence[Row]) -> dict[int, Reason]:
    """Returns the position of every row whose training content equals that of an earlier row."""
    first: dict[bytes, str] = {}
    found = {}
    for position, row in enumerate(rows):
        content = row.model_dump(mode="json", exclude={"id", "source", "tags", "weight"})
        key = hashlib.sha256(canonical_json(content).encode()).digest()
        if key in first:
            found[position] = Reason("exact", f"same content as {first[key]}")
        else:
            first[key] = row.id
    return found


def find_near(documents: Sequence[Document], threshold: float) -> dict[int, Reason]:
    """Returns the position of every document that is nearly an earlier one that stays.

    MinHash with locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998) proposes candidates, and the true Jaccard
    similarity of the two sets of shingles decides, so nothing is removed on an estimate.

    Args:
        threshold: the Jaccard similarity of two near-duplicates, above 0 and up to 1; 0 finds nothing.
    """
    if not threshold:
        return {}
    from datasketch import MinHash, MinHashLSH

    # A false candidate costs one comparison, a missed one a duplicate: so the bands are chosen to miss few.
    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.05, 0.95))
    sets = [hash_shingles(document.text) for document in documents]
    empty = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)
    found = {}
    for position, shingles in enumerate(sets):
        sketch = empty.copy()
        sketch.update_batch(shingles.tolist())
        alike = ((jaccard(shingles, sets[other]), -other) for other in index.query(sketch))
        similarity, minus_other = max(alike, default=(0.0, 0))
        if similarity >= threshold:
            found[position] = Reason("near", f"{similarity:.2f} alike to {documents[-minus_other].id}")
        else:
            index.insert(position, sketch, check_duplication=False)
    return found


def hash_shingles(text: str) -> NDArray[np.uint32]:
    """Returns the sorted distinct 32-bit hashes of a text's runs of five words, lower-cased; a shorter text is one run.

    A run's hash is a polynomial in the CRC-32 of its words, computed for all runs of the text at once.
    """
    words = np.array([zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())], dtype=np.uint64)
    size = min(SHINGLE, len(words))
    runs = np.lib.stride_tricks.sliding_window_view(words, size) if size else words.reshape(1, 0)
    powers = np.array([0x9E3779B97F4A7C15 ** (i + 1) % 2**64 for i in range(size)], dtype=np.uint64)
    mixed = (runs * powers).sum(axis=1, dtype=np.uint64)  # wraps modulo 2**64 on purpose
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def jaccard(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> float:
    """Returns the size of the intersection over that of the union, of two arrays of distinct hashes."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / max(1, len(left) + len(right) - common)
