"""What packed rows are like, as far as it decides what a step takes: counted in a data version, or assumed before."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.choices import ObjectiveName

if TYPE_CHECKING:
    from training.batches import PackedRows

# Before the data is known: of conversations and answers about half of the tokens are prompts, read and not learnt.
TARGET_SHARE: dict[ObjectiveName, float] = {"pretrain": 1.0, "sft": 0.5, "dpo": 0.5, "kto": 0.5}
# And a row is one document, or one pair: no other division takes as much memory, as attention grows with their squares.
DOCUMENTS: dict[ObjectiveName, int] = {"pretrain": 1, "sft": 1, "dpo": 2, "kto": 1}
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowShape:
    """What each row of a file holds.

    Attributes:
        folder: the data version that was counted; None where the rows are assumed, all alike.
        seq_len: positions of a row.
        tokens, targets: (rows,) how many positions of each row are no padding, and how many are predicted.
        squares: (rows,) the sum of its documents' squared lengths, which attention grows with.
    """

    folder: Path | None
    seq_len: int
    tokens: Counts
    targets: Counts
    squares: Counts

    @property
    def is_counted(self) -> bool:
        """Whether the rows are those of a data version."""
        return self.folder is not None

    @property
    def target_share(self) -> float:
        """Predicted positions of all, padding included."""
        return float(self.targets.mean()) / self.seq_len

    def most_targets(self, rows: int) -> int:
        """Returns how many targets a micro-batch of so many rows has at most."""
        return _of_the_fullest(self.targets, rows)

    def longest_documents(self, rows: int) -> list[slice]:
        """Returns where documents of one length would lie in rows that take attention at most as much as any of these."""
        positions = rows * self.seq_len
        length = max(1, round(_of_the_fullest(self.squares, rows) / positions))
        return [slice(start, min(start + length, positions)) for start in range(0, positions, length)]


def assumed_rows(objective: ObjectiveName, seq_len: int) -> RowShape:
    """Returns what rows are taken to be while there is no data version."""
    documents = DOCUMENTS[objective]
    squares = documents * (seq_len // documents) ** 2
    figures = (seq_len, round(seq_len * TARGET_SHARE[objective]), squares)
    return RowShape(None, seq_len, *(np.array([figure]) for figure in figures))


def count_rows(data: "PackedRows") -> RowShape:
    """Counts the rows of a file."""
    tokens, targets, squares = data.counts()
    return RowShape(data.folder, data.seq_len, tokens.numpy(), targets.numpy(), squares.numpy())


def _of_the_fullest(counts: Counts, rows: int) -> int:
    fullest = np.sort(counts)[-rows:]
    return round(float(fullest.mean()) * rows)
