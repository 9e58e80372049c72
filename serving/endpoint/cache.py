"""The engine's key-value cache: one row per running request, each as long as its own text, all in one tensor per layer.

The rows in use are always the first ones, so that a step reads views and copies nothing. A row that ends gives its place
to the last row.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

SMALLEST = 128  # columns of the first allocation; it then doubles, so that growing stays cheap


@dataclass
class Window:
    """Where one forward pass works: rows `first` up to `last`, and the column of each new token, shape (rows, new)."""

    first: int
    last: int
    columns: Tensor

    def __post_init__(self) -> None:
        self.rows = torch.arange(self.first, self.last).unsqueeze(1)
        self.longest = int(self.columns.max()) + 1

    def mask(self, added_in: torch.dtype | None = None) -> Tensor:
        """Returns which columns each new token may attend to: its own and all before. Shape (rows, 1, new, longest).

        Args:
            added_in: the type of the attention weights to which plain attention adds its mask (0, or the lowest number);
                None gives the booleans that fused attention takes.

        This is all the masking there is. What lies in later columns (padding of a shorter prompt, an earlier request's
        text) is never seen, and is overwritten when the row gets there.
        """
        seen = (torch.arange(self.longest) <= self.columns.unsqueeze(-1)).unsqueeze(1)
        if added_in is None:
            return seen
        return torch.zeros(seen.shape, dtype=added_in).masked_fill(~seen, torch.finfo(added_in).min)


class RowLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """One layer's keys and values, each of shape (rows, heads, columns, head_dim)."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.num_rows = rows
        self.window = Window(0, 0, torch.zeros(1, 1, dtype=torch.long))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the first columns, once the model has shown its heads."""
        self.keys = self._blank(key_states)
        self.values = self._blank(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stores the new tokens of the window's rows, shape (rows, heads, new, head_dim); returns all that they may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self.window
        while self.keys.shape[2] < window.longest:
            self.keys, self.values = (F.pad(old, (0, 0, 0, old.shape[2])) for old in (self.keys, self.values))
        self.keys[window.rows, :, window.columns] = key_states.transpose(1, 2)
        self.values[window.rows, :, window.columns] = value_states.transpose(1, 2)
        rows = slice(window.first, window.last)
        return self.keys[rows, :, : window.longest], self.values[rows, :, : window.longest]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns how many columns a mask spans, and from where."""
        return self.window.longest, 0

    def get_seq_length(self) -> int:
        """Returns the length of the window's longest row."""
        return self.window.longest

    def get_max_length(self) -> int:
        """Returns -1: the layer grows."""
        return -1

    def move(self, source: int, target: int) -> None:
        """Copies one row over another."""
        if self.is_initialized:
            self.keys[target] = self.keys[source]
            self.values[target] = self.values[source]

    def _blank(self, like: Tensor) -> Tensor:
        # Zeros, not empty memory: a masked column still takes part in a product, and 0 * NaN is NaN.
        return torch.zeros(self.num_rows, like.shape[1], SMALLEST, like.shape[3], dtype=like.dtype)


class RowCache(Cache):  # type: ignore[misc]
    """All layers' rows, as the models of transformers take it (`past_key_values`)."""

    def __init__(self, layers: int, rows: int) -> None:
        self.rows = [RowLayer(rows) for _ in range(layers)]
        super().__init__(layers=self.rows)

    def aim(self, window: Window) -> None:
        """Points the next forward pass at a window."""
        for layer in self.rows:
            layer.window = window

    def move(self, source: int, target: int) -> None:
        """Copies one row over another in every layer."""
        for layer in self.rows:
            layer.move(source, target)
