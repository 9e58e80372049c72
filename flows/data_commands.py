"""The commands under `goldpath data`: what there is in data, before and after it went through the data stage."""

import sys
from pathlib import Path

import click

from lineage.errors import ExitCode


@click.group()
def data() -> None:
    """Look at data."""


@data.command()
@click.argument("source")
@click.option("--rows", type=click.IntRange(min=1), help="Read this many rows (default: all).")
@click.option("--tokenizer", type=click.Path(path_type=Path), metavar="FOLDER", help="Count tokens with this tokenizer.")
@click.option("--format", "layout", help="jsonl, json, parquet, csv or text, where the name does not say it.")
@click.option("--subset", default="", help="Of a data set of the hub: its configuration.")
@click.option("--split", default="", help="Of a data set of the hub, or a saved one: its split.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def inspect(
    source: str, rows: int | None, tokenizer: Path | None, layout: str | None, subset: str, split: str, as_json: bool
) -> int:
    """Say what SOURCE holds: rows, columns, lengths, problems, and the section of a recipe that reads it.

    SOURCE is a file, a folder, a pattern, a URL, or the name of a data set on the Hugging Face hub.
    """
    from flows.cli import emit
    from flows.inspect_source import source_table, source_view

    view = source_view(source, {"format": layout, "subset": subset, "split": split}, rows, tokenizer)
    emit(view, as_json, source_table)
    if not as_json:
        click.echo(view["recipe"], file=sys.__stdout__)
    return ExitCode.OK
