"""The contract of each row kind as a Great Expectations suite: every row that breaks a rule is named, with the reason.

The rules look at a frame of figures per row, not at the rows themselves, so that a suite reads like the contract it is.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_contracts.config import DataConfig, RowKind
from data_contracts.quarantine import Reason
from data_contracts.rows import Conversation, Document, Message, Preference, Row
from lineage.errors import GoldpathError

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.expectations.expectation import Expectation

REPLACEMENT = "\ufffd"  # what a decoder leaves where bytes were no text
MIN_DISTINCT_WORDS = 0.05  # distinct words over all words of a document; below, it is one phrase over and over
ROLES = r"^(?:system )?(?:user assistant )+$"
PROMPT_ROLES = r"^(?:system )?(?:user assistant )*user $"


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


def _describe_conversation(row: Row, control_tokens: Sequence[str]) -> dict[str, Any]:
    assert isinstance(row, Conversation)
    answers = [message.content for message in row.messages if message.role == "assistant"]
    return {
        "id": row.id,
        "roles": _roles(row.messages),
        "shortest_turn": min(len(message.content.strip()) for message in row.messages),
        "longest_answer": max((len(answer) for answer in answers), default=0),
        "undecodable": sum(text.count(REPLACEMENT) for text in row.texts()),
        "control_tokens": _count(row.texts(), control_tokens),
    }


def _describe_preference(row: Row, control_tokens: Sequence[str]) -> dict[str, Any]:
    assert isinstance(row, Preference)
    answers = [row.chosen[0], row.rejected[0]]
    return {
        "id": row.id,
        "roles": _roles(row.prompt),
        "answer_roles": _roles(answers),
        "same_answer": int(row.chosen[0].content == row.rejected[0].content),
        "shortest_turn": min(len(message.content.strip()) for message in (*row.prompt, *answers)),
        "longest_answer": max(len(answer.content) for answer in answers),
        "undecodable": sum(text.count(REPLACEMENT) for text in row.texts()),
        "control_tokens": _count(row.texts(), control_tokens),
    }


def _roles(messages: Sequence[Message]) -> str:
    return "".join(f"{message.role} " for message in messages)


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


def _conversation_suite(config: DataConfig) -> list["Expectation"]:
    return [
        _unique("id"),
        _matches("roles", ROLES, "roles", "turns must be user, assistant, …, with a system message first or not at all"),
        *_message_rules(config),
    ]


def _preference_suite(config: DataConfig) -> list["Expectation"]:
    return [
        _unique("id"),
        _matches("roles", PROMPT_ROLES, "roles", "the prompt must end with the user's turn"),
        _matches("answer_roles", r"^assistant assistant $", "answer_roles", "both answers must be the assistant's"),
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
    "sft": _describe_conversation,
    "preference": _describe_preference,
}
_SUITES: dict[RowKind, Callable[[DataConfig], list["Expectation"]]] = {
    "pretrain": _document_suite,
    "sft": _conversation_suite,
    "preference": _preference_suite,
}
