"""Comparing versions: rows add up, and the statistics are those of their sources."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from tiny_corpus import WORDS

from data_contracts.compare import compare_lengths, compare_rows, compare_shares, compare_vocabularies, population_stability
from data_contracts.profile import MOST_WORDS, Profile, Vocabulary
from data_contracts.rows import Document
from data_contracts.split import Part


def profile(train: dict[str, str], validation: dict[str, str] | None = None) -> Profile:
    """The profile of documents by id."""
    made = Profile()
    parts: list[tuple[Part, dict[str, str]]] = [("train", train), ("validation", validation or {})]
    for part, rows in parts:
        for identity, text in rows.items():
            made.add(Document(id=identity, text=text, source="s"), part, deeply=True)
    return made


def test_rows_are_matched_by_content_then_by_id() -> None:
    a = profile({"1": "one", "2": "two", "3": "three", "4": "four"})
    b = profile({"1": "one", "2": "TWO", "9": "three", "10": "ten"})
    found = compare_rows(a, b)
    assert (found.unchanged, found.renamed, found.changed, found.added, found.removed) == (2, 1, 1, 1, 1)


def test_a_line_at_the_top_of_a_file_is_one_added_row() -> None:
    texts = [f"line {i}" for i in range(50)]
    a = profile({f"f:{i}": text for i, text in enumerate(texts)})
    b = profile({f"f:{i}": text for i, text in enumerate(["new", *texts])})
    found = compare_rows(a, b)
    assert (found.unchanged, found.renamed, found.changed, found.added, found.removed) == (50, 50, 0, 1, 0)


def test_a_row_that_moves_from_training_to_validation_is_told() -> None:
    found = compare_rows(profile({"1": "one", "2": "two"}), profile({"2": "two"}, {"1": "one"}))
    assert (found.unchanged, found.validated_on_trained) == (2, 1)


rows = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 9), max_size=8)


@given(rows, rows)
def test_rows_add_up(left: dict[str, int], right: dict[str, int]) -> None:
    def distinct(rows: dict[str, int]) -> dict[str, str]:  # the stage leaves no two rows of one content
        return {identity: str(text) for text, identity in {text: identity for identity, text in rows.items()}.items()}

    a, b = distinct(left), distinct(right)
    found = compare_rows(profile(a), profile(b))
    assert found.unchanged + found.changed + found.removed == len(a)
    assert found.unchanged + found.changed + found.added == len(b)
    assert found.unchanged == len(set(a.values()) & set(b.values()))


def test_the_distance_of_lengths_is_scipy_s() -> None:
    random.seed(0)
    for n, m, shift in ((5, 9, 0), (200, 300, 0), (500, 400, 7)):
        a = [random.randint(1, 60) for _ in range(n)]
        b = [random.randint(1, 60) + shift for _ in range(m)]
        found, expected = compare_lengths(Counter(a), Counter(b)), ks_2samp(a, b, method="asymp")
        assert found["ks"] == pytest.approx(expected.statistic)
        assert found["p"] == pytest.approx(expected.pvalue)
    assert compare_lengths(Counter(), Counter([1])) == {"ks": None, "p": None}


def test_the_stability_index_is_its_formula() -> None:
    bins = {"x": (900, 500), "y": (100, 500)}
    found = sum(population_stability(bins).values())
    assert found == pytest.approx((0.5 - 0.9) * math.log(0.5 / 0.9) + (0.5 - 0.1) * math.log(0.5 / 0.1), rel=0.01)
    assert sum(population_stability({"x": (3, 3), "y": (5, 5)}).values()) == 0
    assert math.isfinite(sum(population_stability({"x": (0, 9), "y": (9, 0)}).values()))


def vocabulary(seed: int, words: list[str], number: int) -> Vocabulary:
    """Words drawn with falling frequency, as in texts."""
    weights = [1 / (rank + 1) for rank in range(len(words))]
    made = Vocabulary()
    made.add(" ".join(random.Random(seed).choices(words, weights, k=number)))
    return made


def test_two_samples_of_one_vocabulary_are_stable_and_their_index_is_the_noise() -> None:
    found = [
        compare_vocabularies(vocabulary(2 * i, WORDS, 20_000), vocabulary(2 * i + 1, WORDS, 20_000)) for i in range(20)
    ]
    assert {one["drift"] for one in found} == {"stable"}
    assert np.mean([one["psi"] for one in found]) == pytest.approx(np.mean([one["noise"] for one in found]), rel=0.3)


def test_another_vocabulary_is_shifted_and_names_the_words() -> None:
    found = compare_vocabularies(vocabulary(0, WORDS, 20_000), vocabulary(1, [*WORDS[5:], "zeppelin"], 20_000))
    assert found["drift"] == "shifted"
    assert {mover["word"] for mover in found["movers"][:6]} & set(WORDS[:5])
    assert 0 < found["unseen"] < 0.05


def test_too_little_text_is_not_compared() -> None:
    assert compare_vocabularies(vocabulary(0, WORDS, 50), vocabulary(1, WORDS, 50))["psi"] is None
    assert compare_vocabularies(Vocabulary(), Vocabulary())["unseen"] is None


def test_rare_words_are_forgotten_before_memory_grows_without_end() -> None:
    made = Vocabulary()
    for start in range(0, 2 * MOST_WORDS, 50_000):
        made.add(" ".join(f"w{i}" for i in range(start, start + 50_000)) + " often" * 10)
    assert len(made.counts) <= MOST_WORDS
    assert made.counts["often"] == 2 * MOST_WORDS // 50_000 * 10
    assert made.total == 2 * MOST_WORDS + made.counts["often"]


def test_sources_are_compared_by_their_shares() -> None:
    found = compare_shares(Counter(a=50, b=50), Counter(a=500, c=500))
    assert found["rows"] == {"a": [50, 500], "b": [50, 0], "c": [0, 500]}
    assert found["psi"] > 0.25
    assert compare_shares(Counter(), Counter(a=1))["psi"] is None


def test_lengths_by_share() -> None:
    made = profile({str(i): "x" * i for i in range(1, 101)})
    assert [made.length_at(share) for share in (0, 0.5, 0.95, 1)] == [1, 50, 95, 100]
    assert Profile().length_at(0.5) == 0
