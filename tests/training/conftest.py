"""Fixtures of the training tests: one miniature data folder for all of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_training import VOCABULARY, Command, judged_answers, pack_row, write_packed, write_tokenizer, write_unpaired

from training.batches import PackedRows


@pytest.fixture(scope="session")
def packed_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data stage's folder: tokenizer and packed rows of every kind; each token follows from the one before."""
    folder = tmp_path_factory.mktemp("data")
    write_tokenizer(folder / "tokenizer", VOCABULARY)
    for seed, split in enumerate(("train", "validation")):
        generator = torch.Generator().manual_seed(seed)
        for kind in ("pretrain", "sft", "preference"):
            write_packed(folder, kind, split, [pack_row(kind, generator) for _ in range(10 if split == "train" else 5)])
        write_unpaired(folder, split, judged_answers(generator, 40 if split == "train" else 16))
    return folder


@pytest.fixture
def training_command(packed_data: Path, tmp_path: Path) -> Command:
    """The command over the miniature data, with its files in this test's folder."""
    return Command(packed_data, tmp_path)


@pytest.fixture
def packed_rows(packed_data: Path) -> Callable[[str, str], PackedRows]:
    """Opens packed rows by objective and split."""
    return lambda objective, split="train": PackedRows(packed_data, objective, split)
