"""What `inspect` says of a source, and that the recipe which it gives reads it."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from source_files import ROWS, as_csv, as_json_lines, source, write_parquet
from tiny_corpus import chat

from data_contracts.config import DataConfig
from data_contracts.sources import read_sources
from data_contracts.sources.profile import RESERVOIR, Lengths, profile_source
from data_contracts.sources.suggest import suggest
from lineage.errors import BadInput
from lineage.section import parse

HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}
FOUND: dict[str, tuple[dict[str, Any], str]] = {
    "gsm8k": (ROWS[0], "sft"),
    "alpaca": ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, "sft"),
    "dolly": ({"instruction": "Why?", "context": "", "response": "So.", "category": "qa"}, "sft"),
    "chats": ({"messages": chat("Hi", "Hello."), "prompt": "Hi", "prompt_id": "7"}, "sft"),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "model": "m"},
        "sft",
    ),
    "web": ({"text": "A page.", "url": "https://x", "timestamp": "now", "id": 5}, "pretrain"),
    "wiki": ({"title": "Sky", "content": "It is blue."}, "pretrain"),
    "orca": ({"system": "Be brief.", "question": "Why?", "chosen": "So.", "rejected": "Because."}, "preference"),
    "hh": (HH, "preference"),
    "feedback": (
        {"prompt": "Hi", "chosen": chat("Hi", "Ho"), "rejected": chat("Hi", "What"), "score_chosen": 5.0},
        "preference",
    ),
    "judged": ({"prompt": "Hi", "completion": "Ho", "label": True, "rater": 3}, "unpaired"),
    "golden": ({"kind": "heldout", "id": "1", "text": "A text."}, "golden"),
}


@pytest.mark.parametrize(("row", "kind"), FOUND.values(), ids=FOUND)
def test_the_recipe_of_a_source_reads_it(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_json_lines([row]))
    view = profile_source(source(path))
    assert (view["kind"], view["problems"]) == (kind, [])
    corpus = read_sources(parse(DataConfig, view["recipe"], "pasted"))
    assert len(corpus.golden.get("heldout", [])) + sum(map(len, corpus.rows.values())) == 1
    assert len({**corpus.rows, "golden": corpus.golden.get("heldout", [])}[kind]) == 1  # type: ignore[index]


def test_a_source_is_described(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "a.csv").write_bytes(as_csv([{**row, "note": "x" if i < 2 else ""} for i, row in enumerate(ROWS)]))
    (folder / "b.csv").write_bytes(as_csv([{**ROWS[5], "note": ""}]) + b"only one cell\n")
    view = profile_source(source(folder))
    assert (view["files"], view["rows"], view["all_read"], view["kind"]) == (2, 9, True, "sft")
    assert [(c["name"], c["types"]) for c in view["columns"]] == [
        ("question", ["text"]),
        ("answer", ["text"]),
        ("note", ["text"]),
    ]
    assert view["columns"][2]["nulls"] == round(7 / 9, 4)
    lengths = [len(row["question"]) + len(row["answer"]) for row in [*ROWS, ROWS[5]]]
    assert (view["characters"]["least"], view["characters"]["most"]) == (min(lengths), max(lengths))
    assert view["characters"]["total"] == sum(lengths)
    assert "estimated" in view["tokens_are"]
    assert {problem["problem"]: problem["rows"] for problem in view["problems"]} == {
        "repeats an earlier row": 1,
        "has 1 cells, but the header 3": 1,
    }
    assert view["problems"][0]["first"] or view["problems"][1]["first"] == "shards/b.csv, line 4"
    assert view["recipe"]["on_bad_line"] == "quarantine"
    assert len(view["samples"]) == 3
    json.dumps(view)


def test_only_the_rows_asked_for_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_json_lines([{"text": f"Text {i}."} for i in range(500)]) + b"broken\n")
    assert profile_source(source(path), 300)["rows"] == 300
    assert profile_source(source(path), 5)["all_read"] is False
    assert profile_source(source(path), 5)["problems"] == []
    whole = profile_source(source(path), 10_000)
    assert (whole["rows"], whole["all_read"]) == (501, True)
    assert whole["problems"][0]["first"] == "rows, line 501"


def test_tokens_are_counted_where_a_tokenizer_is_given(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", [{"text": "one two three"}, {"text": "four"}])
    view = profile_source(source(path), count_tokens=lambda text: len(text.split()))
    assert (view["tokens"]["total"], view["tokens"]["most"], view["tokens_are"]) == (4, 3, "counted")


def test_rows_that_no_recipe_reads_say_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_json_lines([{"x": 1, "y": [2]}, {"x": None}]))
    view = profile_source(source(path))
    assert view["kind"] is None
    assert "fill in `rows:` and `columns:`" in view["problems"][0]["problem"]
    assert [c["types"] for c in view["columns"]] == [["number"], ["list"]]
    path.write_bytes(b"")
    with pytest.raises(BadInput, match="holds no rows"):
        profile_source(source(path))
    path.write_bytes(b"broken\n")
    assert profile_source(source(path))["problems"][1]["rows"] == 1
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(BadInput, match="is no regular file"):
        profile_source(source(tmp_path / "pipe.jsonl"))


def test_rows_as_they_are_need_no_columns() -> None:
    assert suggest({"text": "x"}, ["text", "id"]) == ("pretrain", {})
    assert suggest({"messages": chat("a", "b"), "tools": None}, ["messages", "tools", "weight"]) == ("sft", {})


def test_quantiles_of_many_lengths_are_near_the_true_ones() -> None:
    lengths, draw = Lengths(), random.Random(1)
    for _ in range(5 * RESERVOIR):
        lengths.add(draw.randrange(1000))
    told = lengths.summary()
    assert len(lengths.sample) == RESERVOIR
    assert abs(told["median"] - 500) < 30
    assert abs(told["p95"] - 950) < 15
