"""Makes fields of rows from the columns of a file, as a recipe's `columns:` says: renamed, or written from a template."""

import json
import re
from collections.abc import Mapping
from typing import Any

from data_contracts.config import Template

# `{column}` or `{column.key.0}`; `{{` and `}}` are braces.
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
OPTIONAL = frozenset({"id", "tools", "weight", "tags", "source"})  # fields that a row may lack


class Unmapped(ValueError):
    """A record lacks what a template asks for."""


def map_columns(value: Mapping[str, Any], columns: Mapping[str, Template]) -> dict[str, Any]:
    """Returns the fields that `columns` makes of a record; without `columns`, the record as it is.

    Each field is named with a column that it takes over, a text with `{columns}` in it, or turns, each a role with such a
    text. What no field asks for is left out, but for `id`.

    Raises:
        Unmapped: a column is missing, of a field that a row must have.
    """
    if not columns:
        return dict(value)
    fields = {"id": value["id"]} if "id" in value else {}
    for name, template in columns.items():
        try:
            fields[name] = _fill(template, value)
        except Unmapped:
            if name not in OPTIONAL:
                raise
    return fields


def check_template(template: Template) -> None:
    """Refuses a text with a single brace, or a turn that does not have one role.

    Raises:
        ValueError: saying which.
    """
    for text in [template] if isinstance(template, str) else [text for turn in template for text in turn.values()]:
        for found in _PLACE.finditer(text):
            if found[0] in ("{", "}", "{}"):
                raise ValueError(f"`{text}` has a brace without a column; write `{{{{` and `}}}}` for braces")
    if not isinstance(template, str) and (not template or any(len(turn) != 1 for turn in template)):
        raise ValueError('a turn is one role with its text, such as `user: "{question}"`')


def _fill(template: Template, value: Mapping[str, Any]) -> Any:
    if isinstance(template, str):
        return _write(template, value) if "{" in template or "}" in template else _find(template, value)
    return [{"role": role, "content": _write(text, value)} for turn in template for role, text in turn.items()]


def _write(text: str, value: Mapping[str, Any]) -> str:
    def place(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0][0]
        part = _find(found[1].strip(), value)
        return part if isinstance(part, str) else json.dumps(part, ensure_ascii=False, default=str)

    return _PLACE.sub(place, text)


def _find(column: str, value: Mapping[str, Any]) -> Any:
    """Returns a column; one of that very name first, else along the dots into objects and lists."""
    if column in value:
        found = value[column]
    else:
        found = value
        for key in column.split("."):
            if isinstance(found, Mapping) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise Unmapped(f"has no column `{column}`; its columns are {', '.join(value) or 'none'}")
    if found is None:
        raise Unmapped(f"its column `{column}` is null")
    return found
