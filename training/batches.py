"""Packed rows on disk, and which of them each step of each process learns from: a pure function of (seed, epoch, step)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lineage.errors import BadInput
from training.choices import ROW_KINDS, ObjectiveName

TENSORS = ("input_ids", "labels", "position_ids", "segment_ids")
SEGMENT_TENSORS = ("weights", "desirable")  # of some files: a figure per document
SOURCES, SOURCE_IDS = "sources", "source_ids"  # of files that name the rows that they were packed from
NO_TARGET = -100  # the label of a token that is read but not learnt
ROWS_AT_A_TIME = 1024  # that are counted, so that a large file is never in memory whole


@dataclass(frozen=True)
class Batch:
    """Some packed rows, ready for the model.

    Attributes:
        rows: their numbers in the file.
        input_ids, position_ids: (rows, seq_len) int64.
        predictors: (targets,) flat index into rows x seq_len of the token before each target.
        targets: (targets,) the token ids to predict.
        segments: (targets,) which document each target belongs to: row in batch * segments_per_row + segment id.
        examples: what a loss on answers has one term for, in the same numbering: of preference rows each pair `p` of
            documents 2p (chosen) and 2p+1 (rejected), of unpaired rows each document; else empty.
        weights: (terms,) fp32, how much each target or example counts; None where all count the same.
        desirable: (examples,) bool, of unpaired rows: whether the answer is a good one.
        tokens: how many tokens are no padding.
    """

    rows: tuple[int, ...]
    input_ids: Tensor
    position_ids: Tensor
    predictors: Tensor
    targets: Tensor
    segments: Tensor
    examples: Tensor
    weights: Tensor | None
    desirable: Tensor | None
    tokens: int

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch with its tensors on a device.

        To a GPU they go from pinned memory: from any other the CPU would have to wait until the GPU has come so far.
        """
        moved: dict[str, Any] = {
            field.name: (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)


class PackedRows:
    """A file of packed rows, memory-mapped: only the rows that are asked for are read.

    Attributes:
        folder: the data stage's folder.
        objective: what learns from the rows.
        path: the safetensors file.
        num_rows, seq_len: the shape of its tensors.
        judged: whether it says of each document if it is a good answer.
        segments_per_row: more than the highest segment id, in whole pairs.

    Raises:
        BadInput: the file is missing, is not what the data stage writes, holds another kind of rows, or no row.
    """

    def __init__(self, folder: Path, objective: ObjectiveName, split: str) -> None:
        self.folder, self.objective = folder, objective
        self.path = folder / "packed" / ROW_KINDS[objective] / f"{split}.safetensors"
        if not self.path.is_file():
            raise BadInput(
                self.path, "", f"is missing, and objective `{objective}` learns from it", "add such a source to `data:`"
            )
        try:
            with safe_open(self.path, framework="pt") as file:
                kind = (file.metadata() or {}).get("kind", "")
                self._tensors = {name: file.get_tensor(name) for name in TENSORS}
                known = [name for name in SEGMENT_TENSORS if name in file.keys()]  # noqa: SIM118  (no mapping)
                self._by_segment = {name: file.get_tensor(name) for name in known}
        except SafetensorError as error:
            raise BadInput(self.path, "", f"is not a file of packed rows ({error})", "run the data stage again") from None
        shapes = {tuple(tensor.shape) for tensor in self._tensors.values()}
        if len(shapes) > 1 or any(tensor.dtype != torch.int32 or tensor.ndim != 2 for tensor in self._tensors.values()):
            raise BadInput(self.path, "", "does not hold int32 tensors of one (rows, seq_len) shape", "pack it again")
        if kind and kind != ROW_KINDS[objective]:
            raise BadInput(self.path, "kind", f"is `{kind}`, not `{ROW_KINDS[objective]}`", "run the data stage again")
        self.num_rows, self.seq_len = shapes.pop()
        if not self.num_rows:
            raise BadInput(self.path, "", "holds no rows", f"give more data, or a larger {split} fraction")
        self.judged = "desirable" in self._by_segment
        # Documents that share a loss term: the two answers of a pair.
        self._per_example = {"dpo": 2, "kto": 1}.get(objective, 0)
        whole_file = bool(self._per_example or self._by_segment)  # for documents to pretrain on, that would read too much
        highest = int(self._tensors["segment_ids"].max()) if whole_file else self.seq_len - 1
        if any(len(table) != self.num_rows or table.shape[-1] <= highest for table in self._by_segment.values()):
            raise BadInput(self.path, "", "does not hold a weight or judgement for every document", "pack it again")
        self.segments_per_row = (highest + 2) // 2 * 2

    def require_learnable(self, vocabulary: int) -> None:
        """Refuses rows that no model of that many tokens can learn from.

        Raises:
            BadInput: a token that the tokenizer does not have, or no target at all.
        """
        tokens, labels = self._tensors["input_ids"], self._tensors["labels"]
        if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary or int(labels.max()) >= vocabulary:
            problem = f"holds tokens outside of the tokenizer's {vocabulary}"
            raise BadInput(self.path, "input_ids", problem, "run the data stage again with this tokenizer")
        if int(labels.max()) < 0:
            raise BadInput(self.path, "labels", "holds no token to learn", "look at the rows' answers")

    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns of each row, (rows,) int64: tokens without padding, targets, the sum of squared document lengths."""
        found = []
        for start in range(0, self.num_rows, ROWS_AT_A_TIME):
            read = {name: tensor[start : start + ROWS_AT_A_TIME] for name, tensor in self._tensors.items()}
            is_token = read["segment_ids"] >= 0
            squares = (2 * read["position_ids"].long() + 1) * is_token  # 1 + 3 + 5 + … = length^2
            found.append(torch.stack([is_token.sum(1), _target_mask(read).sum(1), squares.sum(1)]))
        tokens, targets, squares = torch.cat(found, dim=1)
        return tokens, targets, squares

    def batch(self, rows: Sequence[int]) -> Batch:
        """Reads rows, in this order. No rows give a batch of one blank row, for a process that has to keep pace."""
        index = torch.as_tensor(list(rows) or [0])
        read = {name: tensor[index].long() for name, tensor in self._tensors.items()}
        is_target = _target_mask(read) & bool(rows)
        numbers = torch.arange(len(index))[:, None] * self.segments_per_row
        segments = (read["segment_ids"] + numbers)[is_target]
        examples = (segments // self._per_example).unique() if self._per_example else segments[:0]
        terms = examples * self._per_example if self._per_example else segments
        return Batch(
            rows=tuple(int(row) for row in rows),
            input_ids=read["input_ids"],
            position_ids=read["position_ids"],
            predictors=is_target.flatten().nonzero()[:, 0] - 1,
            targets=read["labels"][is_target],
            segments=segments,
            examples=examples,
            weights=self._figures("weights", index, terms),
            desirable=self._figures("desirable", index, examples),
            tokens=int((read["segment_ids"] >= 0).sum()) if rows else 0,
        )

    def terms(self, batch: Batch) -> float:
        """Returns what the objective's mean is divided by: how many targets, pairs or answers a batch has, by weight."""
        if batch.weights is not None:
            return float(batch.weights.sum(dtype=torch.float64))
        return len(batch.examples) if self._per_example else len(batch.targets)

    @property
    def readable(self) -> Path:
        """The file with the rows before they were packed, which a person can read."""
        return self.folder / "rows" / self.path.parent.name / f"{self.path.stem}.jsonl"

    def sources(self, rows: Sequence[int]) -> list[str]:
        """Returns the ids of the data's rows that packed rows were made of, in order; none where the file does not say.

        They are read when something is wrong only: no step pays for them.
        """
        with safe_open(self.path, framework="pt") as file:
            if SOURCES not in file.keys():  # noqa: SIM118  (no mapping)
                return []
            ids = json.loads(file.get_tensor(SOURCE_IDS).numpy().tobytes())
            numbers = file.get_tensor(SOURCES)[list(rows)].flatten().tolist()
        return [ids[number] for number in dict.fromkeys(numbers) if number >= 0]

    def _figures(self, name: str, index: Tensor, documents: Tensor) -> Tensor | None:
        """Returns a figure of some documents of the rows at `index`, None where the file does not have it."""
        if name not in self._by_segment:
            return None
        rows, segments = index[documents // self.segments_per_row], documents % self.segments_per_row
        picked: Tensor = self._by_segment[name][rows, segments]
        return picked.bool() if name == "desirable" else picked


def rows_of_step(num_rows: int, rows_per_step: int, seed: int, step: int) -> list[int]:
    """Returns the rows that all processes together learn from at a step (the first is 0).

    Each epoch is a shuffle of all rows that follows from (seed, epoch) alone. So the position in the data is the step
    number, nothing needs to be saved to resume, and the order is the same for any number of processes.
    """
    positions = range(step * rows_per_step, (step + 1) * rows_per_step)
    return [int(_shuffle(num_rows, seed, position // num_rows)[position % num_rows]) for position in positions]


def share_of(rows: Sequence[int], rank: int, world: int, accumulation: int) -> list[Sequence[int]]:
    """Returns one process's micro-batches of a step: `accumulation` lists of len(rows) / world / accumulation rows."""
    size = len(rows) // (world * accumulation)
    return [rows[(turn * world + rank) * size :][:size] for turn in range(accumulation)]


@lru_cache(maxsize=4)
def _shuffle(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox([seed, epoch])).permutation(num_rows)


def _target_mask(rows: dict[str, Tensor]) -> Tensor:
    """Returns (rows, seq_len): labelled tokens with a predecessor in their own document. A first token has none."""
    mask = rows["labels"] != NO_TARGET
    mask[:, 1:] &= rows["segment_ids"][:, 1:] == rows["segment_ids"][:, :-1]
    mask[:, 0] = False
    return mask
