"""Which rows a step learns from, how they are divided, and what is a target."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_training import SEQ_LEN

from lineage.errors import BadInput
from training.batches import NO_TARGET, PackedRows, rows_of_step, share_of


def test_every_epoch_has_every_row_once_in_another_order() -> None:
    order = [row for step in range(10) for row in rows_of_step(10, 2, seed=1, step=step)]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_a_step_may_cross_the_end_of_an_epoch_and_exceed_the_data() -> None:
    assert sorted(rows_of_step(3, 6, seed=0, step=0)) == [0, 0, 1, 1, 2, 2]
    assert len(rows_of_step(10, 4, seed=0, step=2)) == 4


def test_the_order_follows_from_the_seed_alone() -> None:
    first = [rows_of_step(100, 8, seed=5, step=step) for step in (0, 40)]
    assert first == [rows_of_step(100, 8, seed=5, step=step) for step in (0, 40)]
    assert first != [rows_of_step(100, 8, seed=6, step=step) for step in (0, 40)]


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 2)])
def test_shares_are_equal_and_cover_the_step(world: int, accumulation: int) -> None:
    rows = list(range(8))
    shares = [share_of(rows, rank, world, accumulation) for rank in range(world)]
    assert sorted(row for share in shares for part in share for row in part) == rows
    assert {len(part) for share in shares for part in share} == {8 // world // accumulation}


def test_targets_are_labelled_tokens_with_a_predecessor(packed_rows: Callable[..., PackedRows]) -> None:
    data = packed_rows("pretrain")
    batch = data.batch([2, 5])
    flat = batch.input_ids.flatten()
    assert torch.equal(flat[batch.predictors + 1], batch.targets)
    assert not (batch.position_ids.flatten()[batch.predictors + 1] == 0).any()  # no first token
    assert (batch.targets != NO_TARGET).all()
    documents = int((batch.position_ids[batch.input_ids == 1] == 0).sum())
    assert len(batch.targets) == batch.tokens - documents  # in pretraining every other token is a target


def test_pairs_are_counted_by_document(packed_rows: Callable[..., PackedRows]) -> None:
    data = packed_rows("dpo")
    batch = data.batch([0, 1])
    assert data.segments_per_row % 2 == 0
    assert set((batch.segments // 2).tolist()) == set(batch.examples.tolist())
    assert data.terms(batch) == len(batch.examples)
    assert batch.examples.max() >= data.segments_per_row // 2  # pairs of the second row are numbered after the first's


def write(folder: Path, **changes: torch.Tensor) -> Path:
    tensors = {
        name: torch.zeros(2, SEQ_LEN, dtype=torch.int32) for name in ("input_ids", "labels", "position_ids", "segment_ids")
    }
    path = folder / "packed" / "sft" / "train.safetensors"
    path.parent.mkdir(parents=True)
    save_file(tensors | changes, path, metadata={"kind": "sft"})
    return path


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"labels": torch.zeros(2, SEQ_LEN, dtype=torch.int64)}, "does not hold int32"),
        ({"labels": torch.zeros(1, SEQ_LEN, dtype=torch.int32)}, "does not hold int32"),
        ({"weights": torch.zeros(1, 1)}, "does not hold a weight or judgement for every document"),
        ({"weights": torch.zeros(2, 0)}, "does not hold a weight or judgement for every document"),
    ],
)
def test_wrong_tensors_are_refused(tmp_path: Path, changes: dict[str, torch.Tensor], problem: str) -> None:
    write(tmp_path, **changes)
    with pytest.raises(BadInput, match=problem):
        PackedRows(tmp_path, "sft", "train")


def test_missing_torn_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is missing, and objective `sft` learns from it"):
        PackedRows(tmp_path, "sft", "train")
    path = write(tmp_path)
    other = tmp_path / "packed" / "pretrain" / "train.safetensors"
    other.parent.mkdir()
    other.write_bytes(path.read_bytes())
    with pytest.raises(BadInput, match="is `sft`, not `pretrain`"):
        PackedRows(tmp_path, "pretrain", "train")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadInput, match="is not a file of packed rows"):
        PackedRows(tmp_path, "sft", "train")
