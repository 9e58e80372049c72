"""Turns and tools: every text in them is found and can be changed, and a row is written in the form that it came in."""

from typing import Any

import pytest
from tiny_corpus import chat

from data_contracts.clean import normalise
from data_contracts.rows import row_model
from lineage.errors import BadInput
from lineage.section import parse

CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "mail", "arguments": {"to": ["a@b.org"], "copy": None}}}],
}
TOOLS = [{"type": "function", "function": {"name": "mail", "description": "Sends a mail."}}]
ROW = {"tools": TOOLS, "id": "1", "messages": [*chat("Mail!", "Whom?"), CALL], "source": "t", "tags": []}


def read(kind: Any, value: dict[str, Any]) -> Any:
    value = {"id": "1", "source": "t", **value}
    return parse(row_model(kind, value), value, "rows.jsonl", "line 1")


def test_a_row_keeps_its_form() -> None:
    assert read("sft", ROW).model_dump(mode="json") == ROW
    plain = {"id": "1", "prompt": "a", "completion": " b", "source": "t"}
    assert read("sft", plain).model_dump(mode="json") == plain


def test_texts_in_arguments_and_schemas_are_read_and_changed() -> None:
    row = read("sft", ROW)
    assert {"Mail!", "Whom?", "a@b.org", "Sends a mail.", "mail", "copy"} <= set(row.texts())
    changed = row.rewrite(str.upper)
    assert {"MAIL!", "WHOM?", "A@B.ORG", "SENDS A MAIL."} <= set(changed.texts())
    assert changed.messages[2].tool_calls[0].function.arguments == {"to": ["A@B.ORG"], "copy": None}


def test_arguments_and_tools_may_come_as_json_text() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
    row = read("sft", {"messages": [chat("Go", "")[0], call], "tools": '[{"name": "f"}]'})
    assert row.messages[1].tool_calls[0].function.arguments == {"x": 1}
    assert row.tools == [{"name": "f"}]


def test_the_white_space_where_prompt_and_completion_meet_stays() -> None:
    row = read("sft", {"prompt": "Q: e\u0301?  \nA:\n", "completion": " yes \n"}).rewrite(normalise)
    assert (row.prompt, row.completion) == ("Q: \u00e9?\nA:\n", " yes \n")


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("sft", {"prompt": "a", "completion": chat("x", "y")[1:]}, "must all be texts, or all be messages"),
        ("sft", {"prompt": "a"}, "line 1.completion: is missing"),
        ("sft", {"messages": [{"role": "user"}]}, "`content` is missing"),
        ("sft", {"messages": [{**CALL, "role": "user"}]}, "only the assistant has `tool_calls`"),
        ("sft", {**ROW, "tools": [{"description": "x"}]}, "every tool needs a `name`"),
        ("sft", {**ROW, "tools": "{"}, "the text of tools is no JSON"),
        ("sft", {**ROW, "weight": 0}, "line 1.weight: Input should be greater than 0"),
        ("sft", {"prompt": [{"rol": "user"}], "completion": []}, "line 1.prompt.messages.0.rol: unknown key"),
        ("unpaired", {"prompt": "a", "completion": "b"}, "line 1.label: is missing"),
        (
            "unpaired",
            {"prompt": "a", "completion": "b", "label": "perhaps"},
            "line 1.label: Input should be a valid boolean",
        ),
        ("preference", {"prompt": "a", "chosen": chat("", "b")[1:], "rejected": "c"}, "must all be texts"),
        ("preference", {**{n: chat("a", "b") for n in ("prompt", "chosen", "rejected")}}, "`chosen` must be one message"),
    ],
)
def test_a_wrong_row_is_named_by_what_is_wrong_in_it(kind: Any, value: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(kind, value)
    assert said in str(caught.value)
