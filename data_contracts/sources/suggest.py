"""What a recipe would say of a source: how its columns become the fields of a row, and which kind of row that is."""

from collections.abc import Collection, Mapping
from typing import Any

from data_contracts.config import Source, Template
from data_contracts.sources.forms import Guess, guess_kind, to_form

# Names that data sets give to their columns; the first one that is there is taken.
ASKED = ("prompt", "question", "instruction", "query", "problem", "input")
ANSWERED = ("completion", "answer", "response", "output", "solution", "target")
WRITTEN = ("text", "content", "document", "article", "body", "code")
FIELDS: dict[Guess, tuple[str, ...]] = {
    "pretrain": ("text",),
    "sft": ("messages", "prompt", "completion", "tools"),
    "preference": ("prompt", "chosen", "rejected", "tools"),
    "unpaired": ("prompt", "completion", "label", "tools"),
}
ANYWHERE = frozenset({"id", "source", "weight"})  # fields that every row with answers may have
SPLIT = "train"


def suggest(row: Mapping[str, Any], columns: Collection[str]) -> tuple[Guess | None, dict[str, Template]]:
    """Returns (kind, columns) for rows such as this one; no columns where the rows can be taken as they are.

    Args:
        columns: all that occur in the source.
    """
    try:
        kind = guess_kind(to_form(row))
    except ValueError:
        kind = None
    if kind == "golden":
        return kind, {}
    if kind is not None:
        return kind, _rename(kind, columns)
    asked, answered = _first(ASKED, columns), _first(ANSWERED, columns)
    if asked and {"chosen", "rejected"} <= set(columns):
        answers = {name: _turns(assistant=f"{{{name}}}") for name in ("chosen", "rejected")}
        return "preference", {"prompt": _turns(**_question(asked, columns)), **answers}
    if asked and answered:
        return "sft", {"messages": _turns(**_question(asked, columns), assistant=f"{{{answered}}}")}
    if written := _first(WRITTEN, columns):
        return "pretrain", {"text": written}
    return None, {}


def recipe_source(source: Source, kind: Guess | None, columns: Mapping[str, Template]) -> dict[str, Any]:
    """Returns the entry of a recipe's `sources:`, without what need not be said."""
    told = source.model_dump(mode="json", exclude_defaults=True, exclude={"rows", "columns"})
    return told | ({"rows": kind} if kind else {}) | ({"columns": dict(columns)} if columns else {})


def _rename(kind: Guess, columns: Collection[str]) -> dict[str, Template]:
    """Returns names for the fields of a kind, where not every column is one."""
    fields = FIELDS[kind]
    known = {*fields, *({"id"} if kind == "pretrain" else ANYWHERE), "conversations"}
    if set(columns) <= known:
        return {}
    renamed: dict[str, Template] = {name: name for name in fields if name in columns}
    if kind == "sft" and "messages" in renamed:
        return {name: column for name, column in renamed.items() if name in ("messages", "tools")}
    if kind == "sft" and "conversations" in columns:
        return {"messages": "conversations"}
    return renamed


def _question(asked: str, columns: Collection[str]) -> dict[str, str]:
    """Returns the turns before the answer; an `input` beside an instruction is what Alpaca's rows have."""
    system = {"system": "{system}"} if "system" in columns else {}
    more = "\n\n{input}" if asked == "instruction" and "input" in columns else ""
    return system | {"user": f"{{{asked}}}{more}"}


def _turns(**turns: str) -> list[dict[Any, str]]:
    return [{role: text} for role, text in turns.items()]


def _first(names: Collection[str], columns: Collection[str]) -> str:
    return next((name for name in names if name in columns), "")
