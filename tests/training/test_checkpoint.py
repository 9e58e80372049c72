"""Checkpoints: whole or absent, of this run or refused, and the random states come back."""

import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lineage.errors import BadInput, GoldpathError
from training.checkpoint import Checkpoints
from training.config import TrainingConfig
from training.engine import Engine, Piece, ReadRange
from training.hardware import Precision, quickest_precision
from training.manifest import Progress, find_checkpoints
from training.processes import Processes
from training.stage import settle_precision


class OneTensor(Engine):
    """The smallest real engine state: one tensor of ten elements, of which this process holds a range."""

    def __init__(self, start: int, stop: int, rank: int = 0, world: int = 1) -> None:
        self.processes = Processes(rank, world, torch.device("cpu"))
        self.config, self.precision = TrainingConfig(objective="sft", steps=1), "fp32"
        self.start, self.values = start, torch.arange(start, stop, dtype=torch.float32)

    def pieces(self) -> Iterator[Piece]:
        yield Piece("w", "weight", self.start, self.values)

    def restore(self, read: ReadRange, updates: int) -> None:
        self.values.copy_(read("w", "weight", self.start, self.start + len(self.values)))

    def score(self, batch: object) -> Tensor:
        raise NotImplementedError

    learn = clip = apply = forget = full_weights = score  # type: ignore[assignment]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """The checkpoints of a run of one process."""
    return Checkpoints(tmp_path / ".checkpoints", ["a" * 64], 2, Processes(0, 1, torch.device("cpu")))


def save(checkpoints: Checkpoints, engine: Engine, progress: Progress) -> None:
    """Writes a checkpoint and waits for it."""
    checkpoints.begin(engine, progress)
    checkpoints.commit()


@pytest.mark.parametrize("began", ["bf16", "fp32"])
def test_a_run_continues_in_the_precision_that_it_began_with(checkpoints: Checkpoints, began: Precision) -> None:
    auto = TrainingConfig(objective="sft", steps=1)
    assert settle_precision(auto, checkpoints.folder, checkpoints.processes).precision == quickest_precision("cpu")
    engine = OneTensor(0, 10)
    engine.precision = began
    save(checkpoints, engine, Progress(step=1))
    assert settle_precision(auto, checkpoints.folder, checkpoints.processes).precision == began
    asked = auto.model_copy(update={"precision": "bf16"})
    assert settle_precision(asked, checkpoints.folder, checkpoints.processes) == asked


def test_state_and_random_numbers_come_back(checkpoints: Checkpoints) -> None:
    save(checkpoints, OneTensor(0, 10), Progress(step=7, tokens=99))
    expected = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    engine = OneTensor(0, 10)
    engine.values.zero_()
    assert checkpoints.load_newest(engine) == Progress(step=7, tokens=99)
    assert engine.values.tolist() == list(range(10))
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == expected


@pytest.mark.parametrize("parts", [[(0, 10)], [(0, 3), (3, 8), (8, 10)]])
def test_any_division_reads_what_any_other_wrote(checkpoints: Checkpoints, parts: list[tuple[int, int]]) -> None:
    from contextlib import ExitStack

    from training.checkpoint import _copy_share, _range_reader

    checkpoints.folder.mkdir()
    for rank, (start, stop) in enumerate([(0, 4), (4, 4), (4, 10)]):  # the second process holds nothing of it
        _copy_share(checkpoints.folder, rank, OneTensor(start, stop))
    with ExitStack() as stack:
        names = [path.name for path in checkpoints.folder.iterdir()]
        read, sizes = _range_reader(checkpoints.folder, names, stack, torch.device("cpu"))
        assert sizes == {"weight/w": 10}
        for start, stop in parts:
            assert read("w", "weight", start, stop).tolist() == list(range(start, stop))
        with pytest.raises(GoldpathError, match="holds 1 of the 2 values"):
            read("w", "weight", 9, 11)


def test_another_fingerprint_is_refused(checkpoints: Checkpoints) -> None:
    save(checkpoints, OneTensor(0, 10), Progress(step=1))
    other = Checkpoints(checkpoints.folder, ["b" * 64], 2, checkpoints.processes)
    with pytest.raises(BadInput, match="belongs to another configuration"):
        other.load_newest(OneTensor(0, 10))


def test_no_whole_checkpoint_is_an_error_and_no_checkpoint_is_a_start(checkpoints: Checkpoints) -> None:
    assert checkpoints.load_newest(OneTensor(0, 10)) == Progress()
    save(checkpoints, OneTensor(0, 10), Progress(step=1))
    (checkpoints.folder / "step-000001" / "rank-00000.json").write_text("{}")
    with pytest.raises(GoldpathError, match=r"no checkpoint is whole. Fix: delete that folder"):
        checkpoints.load_newest(OneTensor(0, 10))


def test_a_write_that_was_cut_short_leaves_the_one_before(checkpoints: Checkpoints) -> None:
    save(checkpoints, OneTensor(0, 10), Progress(step=1))
    torn = checkpoints.folder / ".writing"
    torn.mkdir()
    (torn / "rank-00000.safetensors").write_bytes(b"half")
    assert checkpoints.load_newest(OneTensor(0, 10)).step == 1
    save(checkpoints, OneTensor(0, 10), Progress(step=2))
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-000001", "step-000002"]


def test_the_newest_is_found_by_number_and_not_by_spelling(checkpoints: Checkpoints) -> None:
    for step in (999_999, 1_000_000):
        save(checkpoints, OneTensor(0, 10), Progress(step=step))
    assert checkpoints.load_newest(OneTensor(0, 10)).step == 1_000_000


def test_training_goes_on_while_a_checkpoint_is_made_durable_and_its_state_is_the_one_of_its_beginning(
    checkpoints: Checkpoints,
) -> None:
    engine, slow = OneTensor(0, 10), threading.Event()
    checkpoints.begin(engine, Progress(step=1), lambda: slow.wait(60) and None)
    engine.values.add_(100)  # the next step
    assert checkpoints.is_writing
    assert list(find_checkpoints(checkpoints.folder, verify=True)) == []
    slow.set()
    checkpoints.commit()
    assert not checkpoints.is_writing
    assert checkpoints.load_newest(engine).step == 1
    assert engine.values.tolist() == list(range(10))


def test_a_damaged_later_checkpoint_does_not_push_out_the_whole_ones(checkpoints: Checkpoints) -> None:
    for step in (1, 2, 9):
        save(checkpoints, OneTensor(0, 10), Progress(step=step))
    (checkpoints.folder / "step-000009" / "rank-00000.json").write_text("{}")
    assert checkpoints.load_newest(OneTensor(0, 10)).step == 2
    save(checkpoints, OneTensor(0, 10), Progress(step=3))
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-000002", "step-000003"]


def test_where_the_disk_is_full_the_error_says_so_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", disk], check=False, capture_output=True
    ).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        checkpoints = Checkpoints(disk / ".checkpoints", ["a" * 64], 2, Processes(0, 1, torch.device("cpu")))
        save(checkpoints, OneTensor(0, 10), Progress(step=1))
        with pytest.raises(GoldpathError, match=r"step 2 could not be written.*[Nn]o space left.*Fix: make room"):
            save(checkpoints, OneTensor(0, 100_000), Progress(step=2))
        assert [(found.step, found.problem) for found in find_checkpoints(checkpoints.folder, verify=True)] == [(1, "")]
        assert not (checkpoints.folder / ".writing").exists()
    finally:
        subprocess.run(["umount", disk], check=True)
