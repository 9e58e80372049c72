"""`goldpath data`: what there is to do with data versions. Each command parses, calls one room, and prints."""

import click


@click.group()
def data() -> None:
    """Look at data, compare its versions, and erase rows from all versions to come."""
