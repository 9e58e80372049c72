"""`goldpath data`: what there is to do with data versions. Each command parses, calls one room, and prints."""

import sys
from pathlib import Path
from typing import Any

import click

from flows.command import as_json, emit, settings
from lineage.errors import ExitCode

STDIN = "-"


@click.group()
def data() -> None:
    """Look into data, compare data versions, and erase rows from all versions to come."""


@data.command()
@click.argument("source")
@click.option("--rows", type=click.IntRange(min=1), help="Read this many rows (default: all).")
@click.option("--tokenizer", type=click.Path(path_type=Path), metavar="FOLDER", help="Count tokens with this tokenizer.")
@click.option("--format", "layout", help="jsonl, json, parquet, csv or text, where the name does not say it.")
@click.option("--subset", default="", help="Of a data set of the hub: its configuration.")
@click.option("--split", default="", help="Of a data set of the hub, or a saved one: its split.")
@as_json
def inspect(
    source: str, rows: int | None, tokenizer: Path | None, layout: str | None, subset: str, split: str, as_json: bool
) -> int:
    """Say what SOURCE holds: rows, columns, lengths, problems, and the section of a recipe that reads it.

    SOURCE is a file, a folder, a pattern, a URL, or the name of a data set on the Hugging Face hub.
    """
    from flows.inspect_source import source_table, source_view

    view = source_view(source, {"format": layout, "subset": subset, "split": split}, rows, tokenizer)
    emit(view, as_json, source_table)
    if not as_json:
        click.echo(view["recipe"], file=sys.__stdout__)
    return ExitCode.OK


@data.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write it as a page with pictures, too."
)
@as_json
def diff(a: str, b: str, page: Path | None, as_json: bool) -> int:
    """Compare two data versions: rows, tokens, lengths, words, sources, contracts, golden sets.

    A and B are NAME@VERSION, restored through DVC where the version is not at hand, or folders of the data stage; A is the
    older one. Exits with 0 whether or not they differ (`identical` in the JSON says it), with 2 where one cannot be read.
    """
    from flows.data_diff import diff_table, diff_view

    return emit(diff_view(settings(), a, b, page), as_json, diff_table)


@data.command()
@click.option("--match", required=True, metavar="ID|TEXT|SUBJECT", help="What to erase; `-` reads it from standard input.")
@click.option(
    "--by",
    type=click.Choice(["id", "text", "subject"]),
    help="What it is: a row's id or SOURCE:ID; a text; an e-mail address or a name. Default: what is found, in this order.",
)
@click.option("--reason", required=True, help="Why; kept in clear, so do not repeat what is erased.")
@click.option("--dry-run", is_flag=True, help="Only say what holds such rows.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
def erase(match: str, by: str | None, reason: str, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Keep rows out of all data versions to come, and list every data version, record and model that holds them.

    A subject is found where its words stand one after the other, whatever the case, accents and punctuation; initials,
    nicknames and misspellings are not: erase each form that is known.

    What is kept of it is a hash under this home's own key, never the text. Nothing is deleted. Exits with 1 where a data
    version or a record could not be read, although the rows are erased all the same.
    """
    from flows.data_erase import erase, erase_table

    value = sys.stdin.read() if match == STDIN else match
    view = erase(settings(), value, by, reason, dry_run, lambda found: yes or _confirm(found))
    emit(view, as_json, erase_table)
    unread = any(row.get("problem") for row in [*view["versions"], *view["records"]])
    return ExitCode.ERROR if unread else ExitCode.OK


def _confirm(found: dict[str, Any]) -> bool:
    """Shows what was found on stderr, and asks; no answer is a no."""
    from rich.console import Console

    from flows.data_erase import erase_table

    Console(stderr=True).print(erase_table({"erased": False, **found}))
    try:
        return click.confirm("Erase? There is no way back", err=True)
    except click.Abort:
        return False
