"""What a data version holds of the rows that tombstones name: in its snapshot of the inputs, among what was removed, kept.

A row that was kept with redacted texts is recognised by its id: the snapshot of the inputs still has it as it came.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_contracts.erasure import Erasures
from data_contracts.jsonl import stream_jsonl
from data_contracts.quarantine import FILES

Identity = tuple[str, str, str]  # kind or golden set, source, id


@dataclass
class Holding:
    """Rows that one tombstone names.

    Attributes:
        rows: all of them, wherever they stand in the version.
        kept: those that training or validation read.
        files: where they stand.
    """

    rows: set[Identity] = field(default_factory=set)
    kept: set[Identity] = field(default_factory=set)
    files: set[str] = field(default_factory=set)


def row_files(folder: Path) -> list[Path]:
    """Returns every file of a data version that holds rows or golden items as text; the kept rows come last."""
    removed = [folder / name for outcome, name in FILES.items() if outcome != "erased"]
    kept = sorted((folder / "rows").rglob("*.jsonl"))
    before = [*sorted((folder / "raw").glob("*.jsonl")), *removed, *sorted((folder / "golden").glob("*.jsonl"))]
    return [path for path in [*before, *kept] if path.is_file()]


def find_holdings(folder: Path, erasures: Erasures) -> dict[str, Holding]:
    """Returns what a data version holds, by the name of the tombstone; those that name none of its rows are left out."""
    found: dict[str, Holding] = {}
    for path in row_files(folder):
        name = path.relative_to(folder).as_posix()
        for identity, row in _rows(path, name.split("/")):
            stones = {stone.name for stone in erasures.find_all(row)}
            if name.startswith("rows/"):
                stones |= {stone for stone, holding in found.items() if identity in holding.rows}
            for stone in stones:
                holding = found.setdefault(stone, Holding())
                holding.rows.add(identity)
                holding.files.add(name)
                if name.startswith("rows/"):
                    holding.kept.add(identity)
    return found


def _rows(path: Path, parts: list[str]) -> Iterator[tuple[Identity, Mapping[str, Any]]]:
    for value in stream_jsonl(path):
        kind = {"raw": path.stem, "rows": parts[1] if len(parts) > 1 else "", "golden": f"golden/{path.stem}"}.get(parts[0])
        row = value if kind else {"id": value["id"], "source": value["source"], **value["row"]}
        yield (kind or str(value["kind"]), str(value.get("source", "")), str(value["id"])), row
