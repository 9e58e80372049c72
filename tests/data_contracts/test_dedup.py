"""Duplicates: what is found is what a plain comparison of all pairs finds."""

import random
import re

import pytest
from tiny_corpus import WORDS, sentence

from data_contracts.dedup import SHINGLE, find_exact, find_near
from data_contracts.rows import Conversation, Document


def document(identity: str, text: str) -> Document:
    return Document(id=identity, text=text, source="test")


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def similarity(left: str, right: str) -> float:
    one, other = shingles(left), shingles(right)
    return len(one & other) / len(one | other)


def test_exact_duplicates_ignore_names_and_keep_the_first() -> None:
    rows = [document("a", "same"), document("b", "other"), document("c", "same")]
    found = find_exact(rows)
    assert list(found) == [2]
    assert found[2].text == "same content as a"


def test_conversations_that_differ_in_a_role_are_no_duplicates() -> None:
    texts = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    swapped = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
    rows = [Conversation.model_validate({"id": i, "messages": m, "source": "t"}) for i, m in (("a", texts), ("b", swapped))]
    assert find_exact(rows) == {}


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_near_duplicates_are_those_of_an_all_pairs_oracle(threshold: float) -> None:
    chance = random.Random(7)
    documents = []
    for i in range(60):
        words = sentence(f"base {i % 12}", 120).split()
        for _ in range(chance.choice((0, 1, 2, 6, 20))):
            words[chance.randrange(len(words))] = chance.choice(WORDS)
        documents.append(document(str(i), " ".join(words)))
    kept, expected = [], set()
    for position, candidate in enumerate(documents):
        nearest = max((similarity(candidate.text, other.text) for other in kept), default=0.0)
        if nearest >= threshold:
            expected.add(position)
        else:
            kept.append(candidate)
    assert set(find_near(documents, threshold)) == expected
    assert 10 < len(expected) < 50


def test_zero_leaves_near_duplicates() -> None:
    assert find_near([document("a", sentence("a", 50)), document("b", sentence("a", 50) + " more")], 0.0) == {}


def test_empty_and_tiny_documents_do_no_harm() -> None:
    found = find_near([document("a", "..."), document("b", "one"), document("c", "one"), document("d", "two words")], 0.8)
    assert list(found) == [2]
