"""How often each training row is packed: what `epochs` of a source mean. Rows stay as they are; pieces are repeated."""

import hashlib
from collections.abc import Mapping, Sequence

from data_contracts.config import RowKind
from data_contracts.encode import Encoded, Piece
from data_contracts.rows import Row


def num_copies(epochs: float, row_id: str, seed: int) -> int:
    """Returns how often a row is packed: the whole epochs, and once more with the probability of what is left of them.

    It depends on nothing but the row's name and the seed, so that any process decides alike, whatever else it has seen.
    """
    whole = int(epochs)
    drawn = int.from_bytes(hashlib.sha256(f"epochs {seed} {row_id}".encode()).digest()[:8]) / 2**64
    return whole + (drawn < epochs - whole)


def count_copies(kind: RowKind, rows: Sequence[Row], epochs: Mapping[tuple[RowKind, str], float], seed: int) -> list[int]:
    """Returns how often each of some rows is packed.

    Args:
        epochs: by kind and id; 1 where it is not said.
    """
    return [num_copies(epochs.get((kind, row.id), 1.0), row.id, seed) for row in rows]


def repeat_pieces(encoded: Encoded, copies: Sequence[int]) -> list[Piece]:
    """Returns the pieces of all rows in as many passes as the most frequent one takes, each in the order of the rows."""
    return [
        piece
        for done in range(max(copies, default=0))
        for piece, row in zip(encoded.pieces, encoded.rows, strict=True)
        if copies[row] > done
    ]
