"""What `goldpath data inspect` shows of a source, and the section of a recipe that reads it."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data_contracts.config import Source
from data_contracts.sources.listing import MAGIC, absolute_path, format_of
from data_contracts.sources.places import is_url
from data_contracts.sources.profile import profile_source
from flows.console import short
from flows.views import table
from lineage.errors import BadInput
from lineage.section import parse

if TYPE_CHECKING:
    from rich.console import RenderableType

HUB_NAME = r"[\w.-]+(/[\w.-]+)?"


def source_view(
    where: str, options: Mapping[str, str | None], most: int | None = None, tokenizer: Path | None = None
) -> dict[str, Any]:
    """Returns the profile of a source, with the recipe's section as text.

    Args:
        options: of the source, such as its `split`; empty ones are not said.
        most: rows to read.
        tokenizer: a folder with a tokenizer.json.

    Raises:
        BadInput: there is no such source, or it cannot be read.
    """
    kind = "hub" if _is_hub_name(where) else "files"
    said = {name: value for name, value in options.items() if value}
    source = parse(Source, {"kind": kind, "path": absolute_path(where, kind, Path.cwd()), **said}, where)
    view = profile_source(source, most, _counter(tokenizer))
    section = {"data": view["recipe"] | ({"tokenizer": str(tokenizer.absolute())} if tokenizer else {})}
    return view | {
        "recipe": yaml.safe_dump(section, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=None)
    }


def source_table(view: dict[str, Any]) -> "RenderableType":
    """Renders a profile: columns, lengths, samples and problems; what to paste comes after it, in lines as they are."""
    from rich.console import Group
    from rich.text import Text

    read = "" if view["all_read"] else " read, and more"
    files = f" in {view['files']} files" if view["files"] > 1 else ""
    title = f"{view['source']}: {view['rows']:,} rows{read}{files}, {view['kind'] or 'of an unknown kind'}"
    columns = [[c["name"], ", ".join(c["types"]), f"{c['nulls']:.1%}"] for c in view["columns"]]
    parts: list[RenderableType] = [table(title, ["column", "type", "null"], columns)]
    if lengths := [name for name in ("characters", "tokens") if view[name]]:
        names = list(view[lengths[0]])
        rows = [[name, *(short(view[name][figure]) for figure in names)] for name in lengths]
        parts.append(table(f"Lengths of rows; tokens {view['tokens_are']}", ["", *names], rows))
    parts += [Text(f"sample: {json.dumps(sample, ensure_ascii=False)}") for sample in view["samples"]]
    found = [[problem["problem"], f"{problem['rows']:,}", problem["first"]] for problem in view["problems"]]
    parts.append(table("Problems", ["what", "rows", "first"], found) if found else Text("No problems."))
    return Group(*parts, Text("\nFor a recipe:\n"))


def _is_hub_name(where: str) -> bool:
    """Whether this is no path and may be a name; what ends like a data file is a path, even where there is none."""
    if is_url(where) or Path(where).exists() or any(character in where for character in MAGIC):
        return False
    return bool(re.fullmatch(HUB_NAME, where)) and format_of(where) is None


def _counter(folder: Path | None) -> Callable[[str], int] | None:
    if folder is None:
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises plain `Exception`
        fix = "give a folder with a tokenizer.json"
        raise BadInput(folder, "tokenizer.json", f"cannot be read ({error})", fix) from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
