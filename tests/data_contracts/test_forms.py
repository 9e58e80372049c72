"""Rows in the field's own forms are taken as they are, beside TRL as the oracle; columns of other names are mapped."""

import json
from pathlib import Path
from typing import Any

import pytest
from source_files import ROWS, as_json_lines, config, write_parquet
from tiny_corpus import chat

from data_contracts.config import Source
from data_contracts.rows import Completion, Conversation, Document, Judged, Preference
from data_contracts.sources import read_sources
from data_contracts.sources.forms import guess_kind, to_form
from data_contracts.sources.mapping import Unmapped, map_columns
from lineage.errors import BadInput
from lineage.section import parse

QUESTION, BLUE, GREEN = chat("What colour is the sky?", "")[0], chat("", "It is blue.")[1], chat("", "It is green.")[1]
CALL = {"type": "function", "function": {"name": "lamp", "arguments": {"on": True, "at": None}}}
TOOLS = [{"type": "function", "function": {"name": "lamp", "parameters": {"type": "object"}}}]
HH = "\n\nHuman: What is it?\n\nAssistant: A pen.\n\nHuman: Whose?\n\nAssistant:"
# One row for each of the dataset formats of TRL's documentation that can be trained on here.
TRL_ROWS: list[tuple[dict[str, Any], str, type]] = [
    ({"text": "The sky is blue."}, "pretrain", Document),
    ({"messages": [QUESTION, BLUE]}, "sft", Conversation),
    ({"prompt": "The sky is", "completion": " blue."}, "sft", Completion),
    ({"prompt": [QUESTION], "completion": [BLUE]}, "sft", Completion),
    ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, "preference", Preference),
    ({"prompt": [QUESTION], "chosen": [BLUE], "rejected": [GREEN]}, "preference", Preference),
    ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "preference", Preference),
    ({"chosen": [QUESTION, BLUE], "rejected": [QUESTION, GREEN]}, "preference", Preference),
    ({"prompt": "The sky is", "completion": " blue.", "label": True}, "unpaired", Judged),
    ({"prompt": [QUESTION], "completion": [GREEN], "label": False}, "unpaired", Judged),
    ({"messages": [QUESTION, {"role": "assistant", "tool_calls": [CALL]}], "tools": TOOLS}, "sft", Conversation),
    (
        {"messages": [QUESTION, {"role": "assistant", "tool_calls": [CALL]}], "tools": json.dumps(TOOLS)},
        "sft",
        Conversation,
    ),
]


def read(path: Path, rows: list[dict[str, Any]], **said: Any) -> Any:
    """The corpus of rows that were written as JSON lines."""
    path.write_bytes(as_json_lines(rows))
    return read_sources(config(path, **said))


@pytest.mark.parametrize(("row", "kind", "model"), TRL_ROWS, ids=range(len(TRL_ROWS)))
def test_trl_s_forms_are_rows_and_say_their_kind(tmp_path: Path, row: dict[str, Any], kind: str, model: type) -> None:
    (made,) = read(tmp_path / "rows.jsonl", [row]).rows[kind]
    assert type(made) is model
    if "tool_calls" in str(row):
        assert made.messages[1].tool_calls[0].function.arguments == {"on": True, "at": None}
        assert made.tools == TOOLS


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": "Grey", "rejected": "Green"},
        {"chosen": "It is", "rejected": "It is so."},
        {"chosen": [QUESTION, BLUE], "rejected": [QUESTION, GREEN]},
        {"prompt": "What colour?", "chosen": [QUESTION, BLUE], "rejected": [QUESTION, GREEN]},
        {"prompt": [QUESTION], "chosen": [BLUE], "rejected": [GREEN]},
        {"prompt": "The sky", "chosen": " is blue.", "rejected": " is green."},
        {"chosen": [QUESTION, BLUE, QUESTION, BLUE], "rejected": [QUESTION, BLUE, QUESTION, GREEN]},
    ],
)
def test_an_implicit_prompt_is_found_where_trl_finds_it(row: dict[str, Any]) -> None:
    from trl.data_utils import maybe_extract_prompt

    expected = maybe_extract_prompt(row)
    assert {name: to_form(row)[name] for name in expected} == expected


def test_transcripts_of_hh_rlhf_become_turns(tmp_path: Path) -> None:
    row = {"chosen": f"{HH} Yours, I think: a gift.\n\nKeep it.", "rejected": f"{HH} Mine."}
    (made,) = read(tmp_path / "hh.jsonl", [row]).rows["preference"]
    assert [(turn.role, turn.content) for turn in made.prompt] == [
        ("user", "What is it?"),
        ("assistant", "A pen."),
        ("user", "Whose?"),
    ]
    assert made.chosen[0].content == "Yours, I think: a gift.\n\nKeep it."
    assert made.rejected[0].content == "Mine."


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": f"{HH} A.\n\nHuman: And?\n\nAssistant: B.", "rejected": f"{HH} C."}, "`chosen` must be one message"),
        ({"chosen": f"{HH} A.\n\nHuman: And?", "rejected": f"{HH} C."}, "does not end with an answer"),
        ({"chosen": ["x"], "rejected": "y"}, "is missing"),
        ({"prompt": "What?"}, "the columns do not say what the rows are (prompt)"),
        ({"question": "a", "answer": "b"}, "say under `columns:`"),
        ({"text": "x", "score": 1}, "or say under `columns:` which ones are read"),
    ],
)
def test_what_is_no_row_is_one_error(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path / "rows.jsonl", [row])
    assert said in str(caught.value)


def test_a_row_of_another_kind_is_named_as_such(tmp_path: Path) -> None:
    rows = [{"text": "One."}, {"messages": chat("Two?", "2")}, {"text": None}, {"text": "Four."}]
    corpus = read(tmp_path / "rows.jsonl", rows, on_bad_line="quarantine")
    assert [row.id for row in corpus.rows["pretrain"]] == ["rows:1", "rows:4"]
    assert [(line.id, line.kind) for line in corpus.bad_lines] == [("rows:2", "pretrain"), ("rows:3", "pretrain")]
    assert "its columns are those of a sft row" in corpus.bad_lines[0].problem
    assert "line 3.text" in corpus.bad_lines[1].problem
    assert json.loads(corpus.bad_lines[0].text) == rows[1]
    with pytest.raises(BadInput, match=r"line 2\.messages: unknown key"):
        read(tmp_path / "rows.jsonl", rows)


def test_golden_items_say_that_they_are_some(tmp_path: Path) -> None:
    item = {"id": 7, "kind": "closed_book", "question": "Where?", "answer": "here"}
    corpus = read(tmp_path / "golden.jsonl", [item])
    assert [item.id for item in corpus.golden["closed_book"]] == ["7"]
    assert not any(corpus.rows.values())


def test_sharegpt_and_absent_fields_of_tables(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    (made,) = read(tmp_path / "rows.jsonl", [{"conversations": turns, "id": None, "tools": None}]).rows["sft"]
    assert [turn.role for turn in made.messages] == ["system", "user", "assistant"]
    path = write_parquet(
        tmp_path / "rows.parquet",
        [{"id": 1, "messages": chat("A?", "B"), "tools": None, "weight": None}, {"id": 2, "messages": chat("C?", "D")}],
    )
    assert [row.id for row in read_sources(config(path)).rows["sft"]] == ["1", "2"]
    (tmp_path / "rows.csv").write_text('messages,weight\n"[{""role"":""user"",""content"":""A""},'
                                       '{""role"":""assistant"",""content"":""B""}]",0.5\n')  # fmt: skip
    (row,) = read_sources(config(tmp_path / "rows.csv")).rows["sft"]
    assert isinstance(row, Conversation)
    assert (row.messages[1].content, row.weight) == ("B", 0.5)


def test_columns_are_renamed_filled_in_and_left_out(tmp_path: Path) -> None:
    columns = {"messages": [{"user": "{question}"}, {"assistant": "{answer}"}]}
    corpus = read(tmp_path / "rows.jsonl", [{**row, "score": 1} for row in ROWS], columns=columns)
    assert corpus.rows["sft"][3].messages[1].content == ROWS[3]["answer"]
    pairs: dict[str, Any] = {
        "prompt": [{"user": "{q}"}],
        "chosen": [{"assistant": "{a.0}"}],
        "rejected": [{"assistant": "{a.1}"}],
    }
    (pair,) = read(tmp_path / "rows.jsonl", [{"q": "Which?", "a": ["This.", "That."]}], columns=pairs).rows["preference"]
    assert (pair.prompt[0].content, pair.chosen[0].content, pair.rejected[0].content) == ("Which?", "This.", "That.")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, {"id": 5, "a": "x", "n": {"deep": [1, {"er": "y"}]}, "null": None, "a.b": "dotted"}),
        ({"text": "a"}, {"id": 5, "text": "x"}),
        ({"text": "Say {a}, {{braces}} and {n.deep.1.er}: {n.deep.0}"}, {"id": 5, "text": "Say x, {braces} and y: 1"}),
        ({"text": "a.b", "id": "a"}, {"id": "x", "text": "dotted"}),
        ({"text": "a", "tools": "null", "weight": "none"}, {"id": 5, "text": "x"}),
    ],
)
def test_a_mapping_says_all_that_is_read(columns: Any, expected: dict[str, Any]) -> None:
    record = {"id": 5, "a": "x", "n": {"deep": [1, {"er": "y"}]}, "null": None, "a.b": "dotted"}
    assert map_columns(record, columns) == expected


@pytest.mark.parametrize(
    ("template", "said"),
    [("b", "has no column `b`; its columns are a, n"), ("{n}", "`n` is null"), ("{a.0}", "has no column `a.0`")],
)
def test_a_missing_column_is_named(template: str, said: str) -> None:
    with pytest.raises(Unmapped) as caught:
        map_columns({"a": "x", "n": None}, {"text": template})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "template", ["{", "a } b", "{}", [], [{"user": "x", "assistant": "y"}], [{"user": "{"}], [{"bot": "x"}]]
)
def test_a_template_that_cannot_be_filled_is_refused(template: Any) -> None:
    with pytest.raises(BadInput, match="columns"):
        parse(Source, {"path": "x.jsonl", "columns": {"messages": template}}, "recipe.yaml")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"question": None}, "columns: YAML takes `{question}` for a mapping: put it in quotes"),
        ([{"user": {"question": None}}], "put it in quotes"),
        ([{"bot": "x"}], "columns.messages.turns.0.bot.[key]: Input should be 'system', 'user', 'assistant' or 'tool'"),
        (5, "columns.messages.turns: Input should be a valid list"),
    ],
)
def test_what_is_wrong_in_a_template_is_named(template: Any, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(Source, {"path": "x.jsonl", "columns": {"messages": template}}, "recipe.yaml")
    assert said in str(caught.value)


def test_a_source_is_the_same_after_it_was_written_and_read() -> None:
    for said in (
        {"kind": "stdlib"},
        {"path": "x.csv", "columns": {"text": "a"}, "epochs": 2},
        {"kind": "hub", "path": "a/b"},
    ):
        one = parse(Source, said, "test")
        assert parse(Source, one.model_dump(mode="json"), "test") == one


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"path": ""}, "needs `path`"),
        ({"kind": "jsonl", "path": "x", "rows": "sft", "format": "csv"}, "takes no other `format`"),
        ({"path": "x", "subset": "main"}, "only a source of kind hub"),
        ({"path": "x", "rows": "golden", "epochs": 2}, "take no `epochs`"),
        ({"kind": "stdlib", "columns": {"text": "a"}}, "no `columns`"),
        ({"path": "x", "epochs": 0}, "greater than 0"),
    ],
)
def test_sources_that_make_no_sense_are_refused(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(Source, said, "recipe.yaml")
    assert problem in str(caught.value)


def test_kinds_are_told_by_columns_alone() -> None:
    assert guess_kind({"text": "x", "meta": 1}) == "pretrain"
    assert guess_kind({"instruction": "x"}) is None
    assert guess_kind({"kind": "heldout", "text": "x"}) == "golden"
