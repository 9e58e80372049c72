"""Golden items are found although their words were changed, and questions that only share their template are not."""

import json
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.data_planted import find_leaks, library_documents, rare_sentences
from data_contracts.decontaminate import GoldenIndex, count_words, find_contaminated, index_golden, match_golden
from data_contracts.near_match import WordCounts, find_near, index_prompts, least_edits
from data_contracts.rows import ClosedBookItem, Document, GoldenItem, Row
from data_contracts.words import split_words

GSM8K = os.environ.get("GSM8K_FILE", "")
TEMPLATES = (
    "Can you tell me which module of Python holds the name {}?",
    "What is the capital city of the country that is called {}?",
    "In which year was the famous painter {} born?",
    "Is the following review positive or negative? The product {} was good.",
)


def closed_book(questions: list[str]) -> dict[str, list[GoldenItem]]:
    return {"q": [ClosedBookItem(id=str(i), kind="closed_book", question=q, answer="x") for i, q in enumerate(questions)]}


def rows_of(texts: list[str]) -> list[Row]:
    return [Document(id=str(i), text=text, source="test") for i, text in enumerate(texts)]


def index(questions: list[str], texts: list[str]) -> GoldenIndex:
    golden = closed_book(questions)
    return index_golden(golden, counts=count_words(rows_of(texts), golden))


def table_of_edits(prompt: tuple[str, ...], passage: tuple[str, ...]) -> int:
    """The textbook's table, against which the bit-parallel one is checked."""
    rows = [[0] * (len(passage) + 1)]
    for i, word in enumerate(prompt, start=1):
        rows.append([i])
        for j, other in enumerate(passage, start=1):
            costs = [rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (word != other)]
            if i > 1 and j > 1 and (word, prompt[i - 2]) == (passage[j - 2], other):
                costs.append(rows[i - 2][j - 2] + 1)
            rows[i].append(min(costs))
    return min(rows[-1])


def test_edits_are_those_of_the_textbook() -> None:
    chance = random.Random(0)
    for _ in range(3000):
        prompt = tuple(chance.choices("abcd", k=chance.randint(1, 9)))
        passage = tuple(chance.choices("abcd", k=chance.randint(0, 12)))
        assert least_edits(prompt, passage) == table_of_edits(prompt, passage)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The *Café*,\nopen!", "the cafe OPEN"),
        ("co\u00adoperate na\u00efve", "cooperate nai\u0308ve"),
        ("\uff37\uff48\uff59 \u201cnot\u201d?", "why not"),
        ("\u3053\u3093\u306b\u3061\u306f\u3001\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c"),
    ],
)
def test_spellings_of_one_text_are_the_same_words(one: str, other: str) -> None:
    assert split_words(one) == split_words(other)


def test_scripts_without_spaces_are_read_by_character() -> None:
    assert split_words("\u4e16\u754c 2") == ("\u4e16", "\u754c", "2")


def test_counts_of_shards_add_up() -> None:
    texts = [f"which {word} is it where {word} stands" * 20 for word in ("lamp", "door", "lamp", "wall")]
    vocabulary = frozenset({"which", "lamp", "wall"})
    whole, left, right = WordCounts(), WordCounts(), WordCounts()
    for i, text in enumerate(texts):
        whole.count(split_words(text), vocabulary)
        (left, right)[i % 2].count(split_words(text), vocabulary)
    left += right
    assert left == whole
    assert set(whole.words) == vocabulary


@pytest.mark.parametrize("num_golden", [1, 5, 60])
@pytest.mark.parametrize("num_rows", [20, 200])
def test_questions_that_share_a_template_stay(num_golden: int, num_rows: int) -> None:
    golden = [template.format(f"alpha{i}") for template in TEMPLATES for i in range(num_golden)]
    texts = [f"Hello! {template.format(f'beta{i}')}" for template in TEMPLATES for i in range(num_rows)]
    assert find_contaminated(rows_of(texts), index(golden, texts)) == {}


def test_a_question_whose_telling_words_stay_is_found_in_a_template_too() -> None:
    golden = [template.format(f"alpha{i}") for template in TEMPLATES for i in range(5)]
    texts = [template.format(f"beta{i}") for template in TEMPLATES for i in range(50)]
    changed = "could you please tell me what module of Python holds the name ALPHA3"
    reason = match_golden(split_words(changed), index(golden, texts))
    assert reason is not None
    assert (reason.rule, "q/3" in reason.text) == ("near", True)


def test_a_row_far_longer_than_the_prompt_is_searched_everywhere() -> None:
    prompt = split_words("why does the copper lantern hum while seven grey herons cross the frozen harbour")
    prompts = index_prompts([("one", prompt)])
    far = tuple(f"w{i}" for i in range(5000))
    changed = (*prompt[:4], "lamp", *prompt[5:9], *prompt[10:])
    assert find_near((*far, *changed, *far), prompts) == ("one", 1 - 2 / len(prompt))
    scattered = tuple(word for pair in pairwise(prompt) for word in (*pair, *far[:30]))
    assert find_near(scattered, prompts) is None


@pytest.mark.parametrize("corpus", ["library", "gsm8k"])
@pytest.mark.parametrize(("changed", "least"), [(0.0, 0.99), (0.1, 0.95)])
def test_planted_leaks_are_found_and_nothing_else(corpus: str, changed: float, least: float) -> None:
    chance, documents = random.Random(7), library_documents()
    chance.shuffle(documents)
    half = len(documents) // 2
    golden, clean = rare_sentences(documents[:half], documents[half:], 150), documents[half:]
    if corpus == "gsm8k":
        if not GSM8K:
            pytest.skip("GSM8K_FILE names no file")
        questions = [json.loads(line)["question"] for line in Path(GSM8K).read_text(encoding="utf-8").splitlines()]
        golden, clean = questions[:150], [*questions[150:2000], *clean[:500]]
    recall, precision, _ = find_leaks(golden, clean, changed, chance)
    assert recall >= least
    assert precision >= 0.99
