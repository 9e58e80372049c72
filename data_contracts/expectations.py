"""The contract of each row kind as a Great Expectations suite: every row that breaks a rule is named, with the reason.

The rules look at a frame of figures per row, not at the rows themselves, so that a suite reads like the contract it is.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_contracts.config import DataConfig, RowKind
from data_contracts.messages import Message, as_messages, tool_name
from data_contracts.quarantine import Reason
from data_contracts.rows import Completion, Conversation, Document, Example, Judged, Preference, Row
from lineage.errors import GoldpathError

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.expectations.expectation import Expectation

REPLACEMENT = "\ufffd"  # what a decoder leaves where bytes were no text
MIN_DISTINCT_WORDS = 0.05  # distinct words over all words of a document; below, it is one phrase over and over
# Turns as words: a `call` is an assistant's turn that calls tools, and `|` stands between a prompt and its completion.
CALLS = r"(?:call (?:tool )+)*"
PROMPT = rf"(?:system )?(?:user {CALLS}assistant )*user {CALLS}"
ROLES = rf"^{PROMPT}(?:\| )?{CALLS}(?:assistant|call) $"


@dataclass(frozen=True)
class Checked:
    """A suite's outcome: positions of the rows that break a rule, and what Data Docs are rendered from."""

    reasons: dict[int, Reason]
    result: "ExpectationSuiteValidationResult"


def check_rows(kind: RowKind, rows: Sequence[Row], config: DataConfig, control_tokens: Sequence[str]) -> Checked:
    """Validates all rows of a kind against its suite.

    Args:
        control_tokens: texts that the chat template means something by, such as `<|end|>`; a message must not hold one.

    Raises:
        GoldpathError: an expectation could not be computed. That is not the same as a row that breaks it.
    """
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations").setLevel(logging.ERROR)  # its notices say nothing about rows
    frame = pd.DataFrame([{"row": i, **_FIGURES[kind](row, control_tokens)} for i, row in enumerate(rows)])
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset(kind)
    batch = asset.add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite(kind, expectations=_SUITES[kind](config)))
    validation = context.validation_definitions.add(gx.ValidationDefinition(name=kind, data=batch, suite=suite))
    result = validation.run(
        batch_parameters={"dataframe": frame},
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["row"]},
    )
    return Checked(_read_reasons(result), result)


def _read_reasons(result: "ExpectationSuiteValidationResult") -> dict[int, Reason]:
    """Returns the first broken rule of every row, in the order of the suite."""
    reasons: dict[int, Reason] = {}
    for outcome in result.results:
        rule = outcome.expectation_config.meta["rule"]
        _raise_internal_error(rule, outcome.exception_info)
        for entry in outcome.result.get("unexpected_index_list") or []:
            reasons.setdefault(int(entry["row"]), Reason(rule, outcome.expectation_config.meta["reason"]))
        if not outcome.success and not outcome.result.get("unexpected_index_list"):
            raise GoldpathError(f"data: expectation `{rule}` failed without naming a row. Fix: report this as a defect")
    return reasons


def _raise_internal_error(rule: str, info: dict[str, Any]) -> None:
    """An error inside Great Expectations looks like a failed expectation unless this is read; it has two shapes."""
    for entry in [info, *(value for value in info.values() if isinstance(value, dict))]:
        if entry.get("raised_exception"):
            raise GoldpathError(
                f"data: expectation `{rule}` could not be computed: {entry.get('exception_message')}. "
                "Fix: report this as a defect of Goldpath, with the configuration"
            )


def _describe_document(row: Row, control_tokens: Sequence[str]) -> dict[str, Any]:
    assert isinstance(row, Document)
    words = row.text.split()
    return {
        "id": row.id,
        "characters": len(row.text),
        "distinct_words": len(set(words)) / max(1, len(words)),
        "undecodable": row.text.count(REPLACEMENT),
    }


def _describe_example(row: Row, control_tokens: Sequence[str]) -> dict[str, Any]:
    """Describes a row of one answer or many: a conversation, a completion, or a judged answer."""
    assert isinstance(row, (Conversation, Completion, Judged))
    if isinstance(row, Conversation):
        return _describe_turns(row, control_tokens, row.messages) | {"roles": _roles(row.messages)}
    prompt, completion = as_messages(row.prompt, "user"), as_messages(row.completion, "assistant")
    roles = f"{_roles(prompt)}| {_roles(completion)}"
    return _describe_turns(row, control_tokens, [*prompt, *completion]) | {"roles": roles}


def _describe_preference(row: Row, control_tokens: Sequence[str]) -> dict[str, Any]:
    assert isinstance(row, Preference)
    prompt = as_messages(row.prompt, "user")
    chosen, rejected = (as_messages(answer, "assistant")[0] for answer in (row.chosen, row.rejected))
    return _describe_turns(row, control_tokens, [*prompt, chosen, rejected]) | {
        "roles": _roles(prompt),
        "answer_roles": _roles([chosen, rejected]),
        "same_answer": int(row.chosen == row.rejected),
    }


def _describe_turns(row: Example, control_tokens: Sequence[str], turns: Sequence[Message]) -> dict[str, Any]:
    offered = {tool_name(tool) for tool in row.tools or []}
    called = [call.function.name for turn in turns for call in turn.tool_calls or []]
    return {
        "id": row.id,
        "shortest_turn": min(len(turn.content.strip()) + len(turn.tool_calls or []) for turn in turns),
        "longest_answer": max((len(turn.content) for turn in turns if turn.role == "assistant"), default=0),
        "undecodable": sum(text.count(REPLACEMENT) for text in row.texts()),
        "control_tokens": _count(row.texts(), control_tokens),
        "unknown_tools": sum(name not in offered for name in called) if offered else 0,
    }


def _roles(messages: Sequence[Message]) -> str:
    return "".join(f"{message.turn} " for message in messages)


def _count(texts: Sequence[str], tokens: Sequence[str]) -> int:
    return sum(text.count(token) for text in texts for token in tokens)


def _document_suite(config: DataConfig) -> list["Expectation"]:
    return [
        _unique("id"),
        _between(
            "characters", config.min_characters, None, "too_short", f"shorter than {config.min_characters} characters"
        ),
        _between("characters", None, config.max_characters, "too_long", f"longer than {config.max_characters} characters"),
        _between("distinct_words", MIN_DISTINCT_WORDS, None, "repetitive", "says the same few words over and over"),
        _between("undecodable", None, 0, "undecodable", "holds replacement characters: it was decoded wrongly"),
    ]


def _example_suite(config: DataConfig) -> list["Expectation"]:
    reason = "turns must be user, assistant, …, with a system message first or not at all and tools between calls and words"
    return [_unique("id"), _matches("roles", ROLES, "roles", reason), *_message_rules(config)]


def _preference_suite(config: DataConfig) -> list["Expectation"]:
    answers = r"^(?:assistant |call ){2}$"
    return [
        _unique("id"),
        _matches("roles", rf"^{PROMPT}$", "roles", "the prompt must end with the user's turn, or with what a tool said"),
        _matches("answer_roles", answers, "answer_roles", "both answers must be the assistant's"),
        _between("same_answer", None, 0, "no_preference", "the chosen answer is the rejected one"),
        *_message_rules(config),
    ]


def _message_rules(config: DataConfig) -> list["Expectation"]:
    longest = config.max_answer_characters
    return [
        _between("shortest_turn", 1, None, "empty_turn", "a message has no text"),
        _between("longest_answer", None, longest, "long_answer", f"an answer is longer than {longest} characters"),
        _between("undecodable", None, 0, "undecodable", "holds replacement characters: it was decoded wrongly"),
        _between("control_tokens", None, 0, "control_token", "a message holds a control token of the chat template"),
        _between("unknown_tools", None, 0, "unknown_tool", "calls a tool that is not among its `tools`"),
    ]


def _unique(column: str) -> "Expectation":
    from great_expectations.expectations import ExpectColumnValuesToBeUnique

    return ExpectColumnValuesToBeUnique(column=column, meta={"rule": "unique_id", "reason": "another row has the same id"})


def _between(column: str, low: float | None, high: float | None, rule: str, reason: str) -> "Expectation":
    from great_expectations.expectations import ExpectColumnValuesToBeBetween

    return ExpectColumnValuesToBeBetween(
        column=column, min_value=low, max_value=high, meta={"rule": rule, "reason": reason}
    )


def _matches(column: str, pattern: str, rule: str, reason: str) -> "Expectation":
    from great_expectations.expectations import ExpectColumnValuesToMatchRegex

    return ExpectColumnValuesToMatchRegex(column=column, regex=pattern, meta={"rule": rule, "reason": reason})


_FIGURES: dict[RowKind, Callable[[Row, Sequence[str]], dict[str, Any]]] = {
    "pretrain": _describe_document,
    "sft": _describe_example,
    "preference": _describe_preference,
    "unpaired": _describe_example,
}
_SUITES: dict[RowKind, Callable[[DataConfig], list["Expectation"]]] = {
    "pretrain": _document_suite,
    "sft": _example_suite,
    "preference": _preference_suite,
    "unpaired": _example_suite,
}
