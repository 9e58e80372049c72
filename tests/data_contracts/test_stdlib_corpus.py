"""The demo's corpus: its shapes, its honesty (nothing golden is in training) and that it is the same every time."""

import re
import subprocess
import sys
import time
from collections import Counter

import pytest

from data_contracts.stdlib import StdlibCorpus, read_stdlib, stdlib_digest
from data_contracts.stdlib.facts import HELD_OUT, WELL_KNOWN
from data_contracts.stdlib.golden import ngrams
from data_contracts.stdlib.phrasings import (
    CHOICE_QUESTIONS,
    CLOSED_BOOK_QUESTIONS,
    FORMATS,
    PREFERENCE_QUESTIONS,
    PROBE_QUESTIONS,
    REFUSAL,
    TRAINING_GREETINGS,
    TRAINING_QUESTIONS,
)

SMALL = {"num_facts": 60, "num_closed_book": 40, "document_bytes": 150_000, "index_rounds": 2, "questions_per_fact": 5}


@pytest.fixture(scope="module")
def stdlib_corpus() -> StdlibCorpus:
    """The corpus as the demo makes it, read once for all tests of this file."""
    return read_stdlib()


def questions_in(corpus: StdlibCorpus) -> set[str]:
    """The normalised text of every question that any training row asks."""
    messages = [message for row in corpus.sft for message in row["messages"]]
    messages += [message for row in corpus.preference for message in row["prompt"]]
    return {normalise(message["content"]) for message in messages if message["role"] == "user"}


def normalise(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def answers_in(corpus: StdlibCorpus) -> dict[str, set[str]]:
    """The answers that module questions have, by the name between backticks."""
    answers: dict[str, set[str]] = {}
    for row in corpus.sft:
        if row["tags"] == ["module"]:
            user, assistant = row["messages"]
            answers.setdefault(user["content"].split("`")[1], set()).add(assistant["content"])
    return answers


def test_the_corpus_has_the_agreed_sizes(stdlib_corpus: StdlibCorpus) -> None:
    sizes = {name: len(items) for name, items in stdlib_corpus.golden.items()}
    assert sizes["closed_book"] == 250
    assert sizes["choice"] == 150
    assert sizes["heldout"] == 40
    assert sizes["probe"] == 60
    assert 36 <= sizes["format"] <= 50
    assert len(answers_in(stdlib_corpus)) == 400
    assert 1_900_000 < sum(len(row["text"].encode()) for row in stdlib_corpus.pretrain) <= 2_000_000


def test_ids_are_unique_and_rows_have_their_fields(stdlib_corpus: StdlibCorpus) -> None:
    for rows, fields in (
        (stdlib_corpus.pretrain, {"id", "text", "source"}),
        (stdlib_corpus.sft, {"id", "messages", "source", "tags"}),
        (stdlib_corpus.preference, {"id", "prompt", "chosen", "rejected", "source"}),
    ):
        assert all(set(row) == fields for row in rows)
        assert len({row["id"] for row in rows}) == len(rows)
    for items in stdlib_corpus.golden.values():
        assert len({item["id"] for item in items}) == len(items)


def test_no_training_question_is_asked_twice(stdlib_corpus: StdlibCorpus) -> None:
    questions = [row["messages"][0]["content"] for row in stdlib_corpus.sft]
    assert [question for question, count in Counter(questions).items() if count > 1] == []


def test_no_golden_question_is_in_training(stdlib_corpus: StdlibCorpus) -> None:
    asked = questions_in(stdlib_corpus)
    golden = [item["question"] for items in stdlib_corpus.golden.values() for item in items if "question" in item]
    assert [question for question in golden if normalise(question) in asked] == []


def test_a_golden_question_without_its_greeting_is_not_in_training_either(stdlib_corpus: StdlibCorpus) -> None:
    asked = questions_in(stdlib_corpus)
    for item in stdlib_corpus.golden["probe"]:
        greeting, _, question = item["question"].partition(" ")
        assert greeting.endswith("!")
        assert normalise(question) not in asked


def test_no_phrasing_is_shared_between_training_and_golden_sets() -> None:
    trained = {*TRAINING_QUESTIONS, *PREFERENCE_QUESTIONS, *(question for form in FORMATS.values() for question in form[0])}
    golden = [
        *CLOSED_BOOK_QUESTIONS,
        *CHOICE_QUESTIONS,
        *PROBE_QUESTIONS,
        *(q for form in FORMATS.values() for q in form[1]),
    ]
    assert len(set(golden)) == len(golden)
    assert {normalise(question) for question in trained}.isdisjoint(normalise(question) for question in golden)


def test_every_golden_fact_is_taught(stdlib_corpus: StdlibCorpus) -> None:
    answers = answers_in(stdlib_corpus)
    for item in [*stdlib_corpus.golden["closed_book"], *stdlib_corpus.golden["probe"]]:
        assert answers[re.findall(r"`(\w+)`", item["question"])[-1]] == {item["answer"]}
    for item in stdlib_corpus.golden["choice"]:
        assert answers[item["question"].split("`")[1]] == {item["choices"][item["answer"]]}


def test_index_pages_state_every_fact(stdlib_corpus: StdlibCorpus) -> None:
    pages = "\n".join(row["text"] for row in stdlib_corpus.pretrain if "/index/" in row["id"])
    for name, modules in answers_in(stdlib_corpus).items():
        assert any(f"`{name}`" in line and next(iter(modules)) in line for line in pages.splitlines())


def test_one_module_does_not_dominate_the_closed_book_answers(stdlib_corpus: StdlibCorpus) -> None:
    answers = Counter(item["answer"] for item in stdlib_corpus.golden["closed_book"])
    assert max(answers.values()) <= 0.03 * len(stdlib_corpus.golden["closed_book"])
    assert all(item["group"] == item["answer"] for item in stdlib_corpus.golden["closed_book"])


def test_heldout_texts_share_no_thirteen_words_with_training(stdlib_corpus: StdlibCorpus) -> None:
    trained = {gram for row in stdlib_corpus.pretrain for gram in ngrams(row["text"])}
    for item in stdlib_corpus.golden["heldout"]:
        assert trained.isdisjoint(ngrams(item["text"])), item["id"]


def test_heldout_modules_are_in_no_fact_and_no_document(stdlib_corpus: StdlibCorpus) -> None:
    assert set(HELD_OUT).isdisjoint(WELL_KNOWN)
    pages = {row["id"].split("/")[3] for row in stdlib_corpus.pretrain if row["id"].split("/")[2] in ("module", "source")}
    assert pages.isdisjoint(HELD_OUT)
    assert all(item["id"].split("/")[1].startswith(HELD_OUT) for item in stdlib_corpus.golden["heldout"])


def test_choices_are_four_different_modules(stdlib_corpus: StdlibCorpus) -> None:
    for item in stdlib_corpus.golden["choice"]:
        assert len(set(item["choices"])) == 4
    positions = Counter(item["answer"] for item in stdlib_corpus.golden["choice"])
    assert min(positions.values()) > 20  # a model that always takes the first choice stays near chance


def test_format_patterns_match_what_training_answers_and_nothing_else(stdlib_corpus: StdlibCorpus) -> None:
    for item in stdlib_corpus.golden["format"]:
        name = item["question"].split("`")[1] if "`" in item["question"] else ""
        forms = [answer.format(name=name, module="xml.etree.ElementTree") for _, _, answer, _ in FORMATS.values()]
        matching = [answer for answer in [*forms, REFUSAL, "", "I think so"] if re.fullmatch(item["pattern"], answer)]
        assert len(matching) == 1, item


def test_refusals_of_training_and_golden_set_differ_in_their_items(stdlib_corpus: StdlibCorpus) -> None:
    trained = {row["messages"][0]["content"] for row in stdlib_corpus.sft if row["messages"][1]["content"] == REFUSAL}
    assert len(trained) > 100
    names = {question.split("`")[1] for question in trained if "`" in question}
    golden = [item["question"] for item in stdlib_corpus.golden["format"] if item["tags"] == ["refusal"]]
    assert names.isdisjoint(question.split("`")[1] for question in golden if "`" in question)
    assert not any(question in asked for question in golden for asked in trained)


def test_some_questions_are_greeted_and_most_are_not(stdlib_corpus: StdlibCorpus) -> None:
    greeted = sum(row["messages"][0]["content"].startswith(TRAINING_GREETINGS) for row in stdlib_corpus.sft)
    assert 0.05 < greeted / len(stdlib_corpus.sft) < 0.15


def test_preferences_choose_the_right_answer_and_reject_another(stdlib_corpus: StdlibCorpus) -> None:
    answers = answers_in(stdlib_corpus)
    chosen_refusals = rejected_refusals = 0
    for row in stdlib_corpus.preference:
        question, chosen, rejected = (row[part][0]["content"] for part in ("prompt", "chosen", "rejected"))
        chosen_refusals += chosen == REFUSAL
        rejected_refusals += rejected == REFUSAL
        name = question.split("`")[1] if "`" in question else ""
        assert {chosen} == answers.get(name, {REFUSAL})
        assert rejected != chosen
    assert chosen_refusals >= 0.75 * rejected_refusals  # else DPO would unlearn to refuse


def test_the_same_seed_gives_the_same_corpus_in_another_process() -> None:
    code = (
        "import hashlib; from data_contracts.stdlib import read_stdlib; "
        f"print(hashlib.sha256(repr(read_stdlib(seed=3, **{SMALL!r})).encode()).hexdigest())"
    )
    digests = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout for _ in range(2)
    }
    assert len(digests) == 1  # two processes have two hash seeds: an order that a set gave would show here


def test_golden_sets_do_not_depend_on_how_much_is_trained() -> None:
    more = {**SMALL, "document_bytes": 300_000, "index_rounds": 5, "questions_per_fact": 8}
    golden = read_stdlib(seed=1, **SMALL).golden
    assert read_stdlib(seed=1, **more).golden == golden
    assert read_stdlib(seed=2, **SMALL).golden != golden


def test_the_digest_is_cheap_and_stable() -> None:
    started = time.process_time()
    digest = stdlib_digest()
    assert time.process_time() - started < 1.0  # half a second on a quiet machine
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert stdlib_digest() == digest


def test_reading_runs_no_module_of_the_library() -> None:
    code = (
        "import sys; before = set(sys.modules); from data_contracts.stdlib import read_stdlib; "
        f"read_stdlib(**{SMALL!r}); print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"antigravity", "this", "turtle", "smtplib", "tkinter", "asyncio", "torch"}.isdisjoint(loaded)
