"""What every command is made of: the settings from the environment, and results printed for people or for programs."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lineage.errors import ExitCode

if TYPE_CHECKING:
    from flows.settings import Settings

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")


def settings() -> "Settings":
    """Reads the settings from the environment (prefix GOLDPATH_)."""
    from flows.settings import load_settings

    return load_settings()


def emit(data: Any, as_json: bool, render: Callable[[Any], Any]) -> int:
    """Prints a result on stdout: JSON for programs, or what `render` makes of it for people."""
    if as_json:
        click.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str), file=sys.__stdout__)
    else:
        from rich.console import Console

        Console(file=sys.__stdout__).print(render(data))
    return ExitCode.OK
