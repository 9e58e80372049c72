"""The suites: each rule catches the row that breaks it, and an error inside the library is no failed expectation."""

from typing import Any

import pytest
from tiny_corpus import chat, sentence

from data_contracts.config import DataConfig, RowKind, Source
from data_contracts.expectations import _raise_internal_error, check_rows
from data_contracts.rows import Row, row_model
from lineage.errors import GoldpathError

CONFIG = DataConfig(sources=[Source(kind="stdlib")], max_characters=1000, max_answer_characters=100)


def make(kind: RowKind, changes: dict[str, Any]) -> Row:
    """A good row with some fields changed."""
    good: dict[RowKind, dict[str, Any]] = {
        "pretrain": {"id": "good", "text": sentence("good", 40)},
        "sft": {"id": "good", "messages": chat("Where?", "Here.")},
        "preference": {
            "id": "good",
            "prompt": chat("Where?", "Here.")[:1],
            "chosen": chat("Where?", "Here.")[1:],
            "rejected": chat("Where?", "There.")[1:],
        },
        "unpaired": {"id": "good", "prompt": "Where?", "completion": " Here.", "label": True},
    }
    value = good[kind] | {"source": "test"} | changes
    return row_model(kind, value).model_validate(value)


def call(name: str) -> dict[str, Any]:
    """An assistant's turn that calls a tool."""
    return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": {}}}]}


SAID = {"role": "tool", "content": "it is on"}


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (
            "pretrain",
            {
                "too_short": {"text": "Short."},
                "too_long": {"text": sentence("long", 300)},
                "repetitive": {"text": "again " * 100},
                "undecodable": {"text": sentence("bad", 20) + " caf\ufffd"},
            },
        ),
        (
            "sft",
            {
                "roles": {"messages": chat("Where?", "Here.")[:1]},
                "empty_turn": {"messages": chat("Where?", " ")},
                "long_answer": {"messages": chat("Where?", "h" * 101)},
                "undecodable": {"messages": chat("Wh\ufffdre?", "Here.")},
                "control_token": {"messages": chat("Where?<|end|>", "Here.")},
                "unknown_tool": {"messages": [chat("On!", "")[0], call("lamp")], "tools": [{"name": "door"}]},
            },
        ),
        (
            "preference",
            {
                "roles": {"prompt": chat("Where?", "Here.")},
                "answer_roles": {"chosen": chat("x", "y")[:1]},
                "no_preference": {"rejected": chat("Where?", "Here.")[1:]},
                "empty_turn": {"rejected": chat("Where?", "")[1:]},
                "long_answer": {"chosen": chat("Where?", "h" * 101)[1:]},
                "control_token": {"rejected": chat("Where?", "<|user|>")[1:]},
            },
        ),
        (
            "unpaired",
            {
                "roles": {"prompt": chat("Where?", "Here."), "completion": chat("x", "y")[1:]},
                "empty_turn": {"completion": " "},
                "long_answer": {"completion": "h" * 101},
                "undecodable": {"prompt": "Wh\ufffdre?"},
                "control_token": {"completion": "<|end|>"},
            },
        ),
    ],
)
def test_each_rule_names_the_row_that_breaks_it(kind: RowKind, broken: dict[str, dict[str, Any]]) -> None:
    rows = [make(kind, {}), *(make(kind, {"id": rule} | changes) for rule, changes in broken.items())]
    rows += [make(kind, {"id": "twin"}), make(kind, {"id": "twin"})]
    reasons = check_rows(kind, rows, CONFIG, ["<|end|>", "<|user|>"]).reasons
    assert {rows[position].id: reason.rule for position, reason in reasons.items()} == {
        **{rule: rule for rule in broken},
        "twin": "unique_id",
    }
    assert 0 not in reasons
    assert len(reasons) == len(broken) + 2


def test_a_system_message_and_many_turns_keep_the_contract() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *chat("One?", "1"), *chat("Two?", "2")]
    assert check_rows("sft", [make("sft", {"messages": messages})], CONFIG, ["<|end|>"]).reasons == {}


@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        ([chat("On!", "")[0], call("lamp"), SAID, chat("", "Done.")[1]], True),
        ([chat("On!", "")[0], call("lamp"), SAID, SAID, call("lamp"), SAID, chat("", "Done.")[1]], True),
        ([chat("On!", "")[0], call("lamp")], True),  # to call is the answer
        ([chat("On!", "")[0], call("lamp"), *chat("And?", "Done.")], False),  # nobody says what came of the call
        ([chat("On!", "")[0], SAID, chat("", "Done.")[1]], False),
        ([chat("On!", "")[0], call("lamp"), SAID], False),
    ],
)
def test_tools_stand_between_calls_and_words(messages: list[dict[str, Any]], kept: bool) -> None:
    reasons = check_rows("sft", [make("sft", {"messages": messages})], CONFIG, ["<|end|>"]).reasons
    assert [reason.rule for reason in reasons.values()] == ([] if kept else ["roles"])
    completion = {"prompt": messages[:1], "completion": messages[1:]}
    row = row_model("sft", completion).model_validate({"id": "c", "source": "t", **completion})
    assert bool(check_rows("sft", [row], CONFIG, []).reasons) != kept


@pytest.mark.parametrize("nested", [False, True])
def test_an_internal_error_of_the_library_is_no_failed_expectation(nested: bool) -> None:
    info: dict[str, Any] = {"raised_exception": True, "exception_message": "no such column"}
    with pytest.raises(GoldpathError, match="could not be computed: no such column"):
        _raise_internal_error("rule", {"('column', 'x')": info} if nested else info)
    _raise_internal_error("rule", {"raised_exception": False, "exception_message": None})
