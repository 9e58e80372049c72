"""Personal data is found at the promised recall, and clean rows are left alone: the benchmark's corpora, smaller."""

from collections.abc import Iterator

import pytest

pytest.importorskip("faker", reason="the `dev` extra brings it")

from benchmarks.corpora.clean_rows import gsm8k_rows, library_rows, number_rows
from benchmarks.corpora.planted_pii import planted_rows
from benchmarks.data import CLASSES, MAX_FALSE, MIN_RECALL, false_positives, recall
from data_contracts.config import PiiClass

SEED = 7  # not the benchmark's


@pytest.mark.parametrize("kind", CLASSES)
def test_each_class_is_found(kind: PiiClass) -> None:
    planted, missed = recall(planted_rows(kind, 400, SEED))
    assert 1 - missed.total() / planted.total() >= MIN_RECALL, missed


def test_the_same_seed_plants_the_same() -> None:
    assert list(planted_rows("phone", 20, SEED)) == list(planted_rows("phone", 20, SEED))


@pytest.mark.parametrize(
    "rows", [library_rows(1_000, SEED), gsm8k_rows(1_000), number_rows(2_000, SEED)], ids=["library", "gsm8k", "numbers"]
)
def test_clean_rows_are_left_alone(rows: Iterator[str]) -> None:
    texts = list(rows)
    assert false_positives(texts)["any"] <= MAX_FALSE * len(texts)
