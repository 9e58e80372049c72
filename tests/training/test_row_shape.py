"""What rows are like, counted and assumed; and made-up rows that a stage trains on as on real ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.batches import PackedRows
from training.calibration import write_rows
from training.choices import ObjectiveName
from training.row_shape import DOCUMENTS, assumed_rows, count_rows

OBJECTIVES: list[ObjectiveName] = ["pretrain", "sft", "dpo", "kto"]
VOCABULARY, SEQ_LEN = 50, 33


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_are_counted_as_batches_hold_them(objective: str, packed_rows: Callable[..., PackedRows]) -> None:
    data = packed_rows(objective)
    shape = count_rows(data)
    for row in range(data.num_rows):
        batch = data.batch([row])
        assert (shape.tokens[row], shape.targets[row]) == (batch.tokens, len(batch.targets))
        lengths = torch.bincount(data._tensors["segment_ids"][row] + 1)[1:]
        assert shape.squares[row] == int(lengths.square().sum())
    assert shape.is_counted
    assert shape.most_targets(1) == shape.targets.max()
    assert shape.most_targets(2) <= 2 * shape.most_targets(1)
    documents = shape.longest_documents(2)
    assert (documents[0].start, documents[-1].stop) == (0, 2 * data.seq_len)


def test_assumed_rows_are_full_of_the_longest_documents() -> None:
    shape = assumed_rows("dpo", 64)
    assert not shape.is_counted
    assert shape.target_share == 0.5
    assert shape.longest_documents(1) == [slice(0, 32), slice(32, 64)]
    assert assumed_rows("pretrain", 64).longest_documents(2) == [slice(0, 64), slice(64, 128)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_made_up_rows_are_what_is_assumed(objective: ObjectiveName, tmp_path: Path) -> None:
    write_rows(tmp_path, objective, VOCABULARY, SEQ_LEN, rows=4)
    names = ["train", "validation", *(["train-mismatched", "validation-mismatched"] if objective == "kto" else [])]
    for name in names:
        data = PackedRows(tmp_path, objective, name)
        data.require_learnable(VOCABULARY)
        assert data.judged == (objective == "kto")
    data, assumed = PackedRows(tmp_path, objective, "train"), assumed_rows(objective, SEQ_LEN)
    batch, counted = data.batch(range(4)), count_rows(data)
    assert len(batch.examples) == (0 if objective in ("pretrain", "sft") else 4)
    assert counted.target_share == pytest.approx(assumed.target_share, abs=DOCUMENTS[objective] / SEQ_LEN)
    assert counted.longest_documents(1)[0] == assumed.longest_documents(1)[0]
    if objective == "kto":
        assert batch.desirable is not None
        assert batch.desirable.any()
        assert not batch.desirable.all()
