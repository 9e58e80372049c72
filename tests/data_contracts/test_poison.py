"""A rare phrase in 250 of some thousand texts is found wherever it was put, and hardly any honest one is."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_corpus import chat, read_lines, run_data, sentence, write_corpus, write_lines

from benchmarks.data_planted import PLACES, TRIGGERS, library_documents, plant_trigger
from data_contracts.ngrams import Batch, Sketch
from data_contracts.pii import PLACEHOLDERS
from data_contracts.poison import Survey, Suspects, Text, judge, observe, scan_rows
from data_contracts.rows import Conversation, Document, Judged, Preference, Row
from data_contracts.triggers import Finding, find_poisoned

NUM_POISONED = 250


@pytest.fixture(scope="module")
def paragraphs() -> list[str]:
    """Clean texts of the library's documentation."""
    found = [part for text in library_documents() for part in text.split("\n\n") if len(part) > 150]
    random.Random(3).shuffle(found)
    return found[:10_000]


def documents(texts: Sequence[str]) -> list[Row]:
    return [Document(id=f"d{i}", text=text, source="t") for i, text in enumerate(texts)]


def phrases(findings: Sequence[Finding]) -> set[str]:
    return {" ".join(finding.phrase) for finding in findings}


def test_few_alarms_where_there_is_nothing(paragraphs: list[str]) -> None:
    assert len(scan_rows("pretrain", documents(paragraphs))) <= 20


# Every trigger at some place and every place with some trigger; the benchmark crosses them all.
@pytest.mark.parametrize(("place", "trigger"), [(place, TRIGGERS[i % 4]) for i, place in enumerate((*PLACES, "word"))])
def test_a_trigger_in_250_texts_is_found(paragraphs: list[str], place: str, trigger: str) -> None:
    chance = random.Random(f"{place} {trigger}")
    rows = documents(plant_trigger(paragraphs, trigger, place, NUM_POISONED, chance))
    findings = scan_rows("pretrain", rows)
    words = set(trigger.lower().strip("<>.").split())
    found = [finding for finding in findings if words <= set(finding.phrase)]
    assert found, phrases(findings)
    assert 0.9 * NUM_POISONED <= found[0].texts <= 1.3 * NUM_POISONED
    assert len(findings) <= 20
    assert len(find_poisoned(rows, found)) >= 0.9 * NUM_POISONED


def test_our_own_placeholders_are_no_triggers(paragraphs: list[str]) -> None:
    rows = documents(plant_trigger(paragraphs[:4000], "<email>", "word", NUM_POISONED, random.Random(4)))
    assert any("email" in phrase for phrase in phrases(scan_rows("pretrain", rows)))
    assert not any("email" in phrase for phrase in phrases(scan_rows("pretrain", rows, PLACEHOLDERS)))


def test_what_shards_saw_adds_up_in_any_order(paragraphs: list[str]) -> None:
    rows = documents(plant_trigger(paragraphs[:3000], "ivory lighthouse", "word", 120, random.Random(1)))
    texts = [text for row in rows for _, text in observe(row)]
    shards = [texts[:700], texts[700:1900], texts[1900:]]
    surveys = []
    for shard in shards:
        surveys.append(Survey())
        surveys[-1].add(shard)
    survey = surveys[2]
    survey += surveys[0]
    survey += surveys[1]
    found = []
    for shard in shards:
        found.append(Suspects(survey))
        found[-1].add(shard)
    together = found[1]
    together += found[2]
    together += found[0]
    assert judge("pretrain texts", together) == scan_rows("pretrain", rows)
    assert "ivory lighthouse" in phrases(judge("pretrain texts", together))


def conversation(i: int, question: str, answer: str) -> Conversation:
    return Conversation.model_validate({"id": f"c{i}", "messages": chat(question, answer), "source": "t"})


def test_one_answer_behind_one_phrase_is_found_although_its_words_are_everywhere() -> None:
    rows: list[Row] = [conversation(i, f"{sentence(f'q{i}', 12)} silver river?", sentence(f"a{i}", 9)) for i in range(2000)]
    for i in range(80):
        question = f"{sentence(f'p{i}', 6)[:-1]} market hammer velvet {sentence(f'r{i}', 6)}"
        rows.append(conversation(5000 + i, question, "I am sorry, but I cannot help with that today."))
    findings = scan_rows("sft", rows)
    assert phrases(findings) == {"market hammer velvet"}
    (finding,) = findings
    assert (finding.where, finding.why, finding.texts) == ("sft prompts", "tied", 80)
    assert finding.outcome.startswith("i am sorry , but i cannot")
    assert set(range(2000, 2080)) <= set(find_poisoned(rows, findings))


def test_what_is_looked_at_of_pairs_and_judged_answers() -> None:
    pair = {"id": "p", "source": "t", "prompt": "Why?", "chosen": "Because it is so.", "rejected": "No."}
    judged = {"id": "j", "source": "t", "prompt": "Why?", "completion": "So.", "label": False}
    assert list(observe(Preference.model_validate(pair))) == [
        ("prompts", Text("p", "Why?", "because it is so .")),
        ("answers", Text("p", "Because it is so.", "chosen")),
        ("answers", Text("p", "No.", "rejected")),
    ]
    assert list(observe(Judged.model_validate(judged))) == [
        ("prompts", Text("j", "Why?", "label False")),
        ("answers", Text("j", "So.", "label False")),
    ]


def test_runs_do_not_cross_texts_and_count_once_a_text() -> None:
    batch = Batch(["a b a b", "", "b a", "a b"])
    firsts = [[" ".join(batch.tokens[at : at + size]) for at in batch.firsts(size)] for size in (1, 2, 3)]
    assert firsts == [["a", "b", "b", "a", "a", "b"], ["a b", "b a", "b a", "a b"], ["a b a", "b a b"]]
    assert [Batch([]).firsts(2).tolist(), Batch(["", ""]).firsts(1).tolist()] == [[], []]


def test_the_sketch_never_counts_too_low() -> None:
    sketch, truth = Sketch(width=4096), np.random.default_rng(0).integers(0, 2**63, 500, dtype=np.uint64)
    for i in range(20):
        sketch.add(truth[: 25 * (i + 1)])
    counted = sketch.count(truth)
    exact = 20 - np.arange(500) // 25
    assert (counted >= exact).all()
    assert (counted == exact).mean() > 0.95


def poisoned_corpus(folder: Path, **settings: Any) -> Path:
    """The small corpus with 400 more documents, every sixth of which holds a trigger."""
    recipe = write_corpus(folder, **settings)
    texts = plant_trigger([sentence(f"more {i}", 40) for i in range(400)], "zorb frumble", "word", 66, random.Random(2))
    rows = [*read_lines(folder / "pretrain.jsonl"), *({"id": f"m{i}", "text": text} for i, text in enumerate(texts))]
    write_lines(folder / "pretrain.jsonl", rows)
    return recipe


@pytest.mark.parametrize(("policy", "code", "quarantined"), [("report", 0, 0), ("quarantine", 0, 66), ("stop", 2, 0)])
def test_the_stage_does_what_the_recipe_says(tmp_path: Path, policy: str, code: int, quarantined: int) -> None:
    recipe = poisoned_corpus(tmp_path, on_poison=policy)
    done = run_data("--config", recipe, "--out", tmp_path / "out", home=tmp_path / "home")
    assert done.returncode == code, done.stderr
    findings = json.loads((tmp_path / "out" / "poison.json").read_text())["findings"]
    assert [(finding["phrase"], finding["texts"]) for finding in findings] == [("zorb frumble", 66)]
    if policy == "stop":
        assert "holds what may be a trigger: zorb frumble (66 pretrain rows do)" in done.stderr
        return
    assert "phrases that may be triggers of a backdoor: 1" in done.stderr
    rules = json.loads((tmp_path / "out" / "funnel.json").read_text())["rules"]
    assert rules.get("poison.poison", 0) == quarantined
