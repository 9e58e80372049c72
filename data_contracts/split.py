"""Divides rows into training and validation, by a hash of the row's name."""

import hashlib
from collections.abc import Sequence
from typing import Literal

from data_contracts.rows import Row

Part = Literal["train", "validation"]
PARTS: tuple[Part, Part] = ("train", "validation")


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Returns (train, validation), each in an order that the seed shuffles.

    Args:
        fraction: the share of validation rows; above 0, it is at least one row of two or more.
    """
    shuffled = sorted(rows, key=lambda row: (hashlib.sha256(f"{seed} {row.id}".encode()).digest(), row.id))
    count = min(max(1, round(fraction * len(rows))), len(rows) - 1) if fraction and rows else 0
    return shuffled[count:], shuffled[:count]
