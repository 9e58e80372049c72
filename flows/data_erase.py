"""What `goldpath data erase` does: finds a row, a text or a person, keeps them out from now on, and says what holds them.

Nothing is deleted: data versions, records and bundles are immutable, and others may rely on them.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from data_contracts.erasure import MOST_WORDS, WAYS, By, Erasures, Tombstone, make_tombstone, split_subject
from data_contracts.holdings import Holding, find_holdings
from data_contracts.tombstones import TOMBSTONES, add_tombstone, erasure_key
from flows.data_versions import KnownVersion, known_versions, open_known
from flows.descent import find_descent
from flows.release import requester
from flows.views import table
from lineage.errors import BadInput, GoldpathError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flows.settings import Settings

Held = dict[str, dict[str, Holding]]  # by data version and tombstone
NUMBERED = re.compile(r"[^:\s]+:\d+")  # the id of a row that brings none: its file and line
A_LINE = "Where this is the number of a line, it is another row once the file changes: erase the row by its text, too."
NOTHING_DELETED = (
    "Nothing was deleted: finished data versions, records and bundles stay as they are. Raise `version:` and run again to "
    "get data and models without these rows; delete them from your sources too."
)


def erase(
    settings: "Settings", match: str, by: str | None, reason: str, dry_run: bool, confirm: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Looks, asks, and writes a tombstone; returns what holds the rows.

    Args:
        match: an id, a text or a subject.
        by: which of them it is; None finds out from the versions that there are.
        reason: why; kept in clear, so it must not repeat what is erased.
        confirm: shows what was found and asks; not called in a dry run.

    Raises:
        BadInput: the reason is blank or repeats the match, or nobody knows what the match is.
        GoldpathError: it was not confirmed. Nothing was written.
    """
    key = erasure_key(settings.home)
    stones = {way: make_tombstone(way, match, key) for way in _possible_ways(match, by)}
    if not reason.strip():
        raise BadInput("--reason", "", "is blank", "say why the rows must go")
    if Erasures(stones.values(), key).find({"reason": reason}):
        raise BadInput("--reason", "", "repeats what is to be erased, and would be kept", "say it in other words")
    known = known_versions(settings)
    held, problems = _look(settings, known, Erasures(stones.values(), key))
    stone = _choose(match, stones, held)
    view = _describe(settings, match, stone, known, held, problems)
    if dry_run:
        return {"erased": False, **view}
    if not confirm(view):
        raise GoldpathError("not confirmed, so nothing was erased. Fix: answer `y`, or give `--yes`")
    is_new = add_tombstone(settings.home, stone, key, requester(), reason.strip())
    return {"erased": True, "new": is_new, **view}


def erase_table(view: dict[str, Any]) -> "RenderableType":
    """Renders what holds the rows, and what that means."""
    from rich.console import Group

    versions = [
        [", ".join(row["addresses"]), row["data_version"][:12], f"{row['rows']:,}", f"{row['kept']:,}", row["problem"]]
        for row in view["versions"]
    ]
    records = [[row["address"], row["stage"], row.get("problem") or row["fingerprint"][:12]] for row in view["records"]]
    models = [
        [
            row["digest"],
            ", ".join(row["made_by"]),
            ", ".join(f"{name}: {state}" for name, state in row["registered"].items()),
        ]
        for row in view["models"]
    ]
    head = {
        (False, False): "Would be erased",
        (True, True): "Erased from all data versions to come",
        (True, False): "Was erased already",
    }[view["erased"], view.get("new", False)]
    return Group(
        f"{head}: tombstone {view['tombstone']} by {view['by']}.",
        table("Data versions that hold such rows", ["version", "content", "rows", "kept", "problem"], versions),
        table("Stage records built on them", ["version", "stage", "fingerprint"], records),
        table("Models built on them", ["digest", "made by", "registered as"], models),
        *([view["warning"]] if view["warning"] else []),
        NOTHING_DELETED,
    )


def _possible_ways(match: str, by: str | None) -> list[By]:
    """What a value could be. A single word is no subject unless somebody says so: it stands in too many rows."""
    if by:
        return [cast("By", by)]
    words = len(split_subject(match))
    return [way for way in WAYS if way != "subject" or "@" in match or 2 <= words <= MOST_WORDS]


def _choose(match: str, stones: dict[By, Tombstone], held: Held) -> Tombstone:
    """Takes the first way in which anything was found: the narrow ones come first."""
    if len(stones) == 1:
        return next(iter(stones.values()))
    found = {name for holdings in held.values() for name in holdings}
    for stone in stones.values():
        if stone.name in found:
            return stone
    if "@" in match and "subject" in stones:
        return stones["subject"]
    raise BadInput("--match", "", "is found in no data version, so nobody knows what it is", "add `--by id|text|subject`")


def _look(settings: "Settings", known: dict[str, KnownVersion], erasures: Erasures) -> tuple[Held, dict[str, str]]:
    """Reads every data version; what cannot be read is told, and may hold the rows."""
    held: Held = {}
    problems: dict[str, str] = {}
    for data_version, version in known.items():
        try:
            with open_known(settings, version) as folder:
                held[data_version] = find_holdings(folder, erasures)
        except GoldpathError as error:
            problems[data_version] = str(error)
    return held, problems


def _describe(
    settings: "Settings", match: str, stone: Tombstone, known: dict[str, KnownVersion], held: Held, problems: dict[str, str]
) -> dict[str, Any]:
    versions = [dict(row) for row in _versions(stone, known, held, problems)]
    certain = {row["data_version"] for row in versions if not row["problem"]}
    return {
        "tombstone": stone.name,
        "by": stone.by,
        "words": stone.words or None,
        "file": str(Path(settings.home) / TOMBSTONES),
        "warning": A_LINE if stone.by == "id" and NUMBERED.fullmatch(match.strip()) else "",
        "versions": versions,
        **find_descent(settings, certain),
        "note": NOTHING_DELETED,
    }


def _versions(
    stone: Tombstone, known: dict[str, KnownVersion], held: Held, problems: dict[str, str]
) -> Iterator[dict[str, Any]]:
    for data_version, version in sorted(known.items(), key=lambda item: item[1].addresses):
        holding = held.get(data_version, {}).get(stone.name)
        if holding or data_version in problems:
            yield {
                "addresses": list(version.addresses),
                "data_version": data_version,
                "rows": len(holding.rows) if holding else 0,
                "kept": len(holding.kept) if holding else 0,
                "files": sorted(holding.files) if holding else [],
                "problem": problems.get(data_version, ""),
            }
