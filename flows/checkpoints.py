"""What `goldpath checkpoints` shows: where a run could continue, and whether its bytes are those that were written."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.launch import TRAINING_STAGES
from flows.plan import parse_address
from flows.views import table
from lineage.errors import BadInput
from training.manifest import FOLDER, Found, find_checkpoints

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flows.settings import Settings


def checkpoints_view(settings: "Settings", run: str, verify: bool) -> dict[str, Any]:
    """Returns the checkpoints of a version's training stages, or of one stage's folder, the newest first.

    Args:
        run: NAME@VERSION or a stage's folder.
        verify: read every byte.

    Raises:
        BadInput: there is no such run.
    """
    rows = [
        _row(stage.name, found, verify)
        for stage in _stages(settings, run)
        for found in find_checkpoints(stage / FOLDER, verify)
    ]
    return {"run": run, "verified": verify, "checkpoints": rows}


def checkpoints_table(view: dict[str, Any]) -> "RenderableType":
    """Renders them."""
    whole = "whole" if view["verified"] else "not read: --verify does"
    rows = [
        [
            row["stage"],
            str(row["step"]),
            f"{row['tokens']:,}" if row["tokens"] is not None else "",
            str(row["processes"] or ""),
            f"{row['bytes'] / 2**20:,.1f} MiB" if row["bytes"] else "",
            row["problem"] or whole,
        ]
        for row in view["checkpoints"]
    ]
    return table(view["run"], ["stage", "step", "tokens", "processes", "size", "bytes"], rows)


def _row(stage: str, found: Found, verify: bool) -> dict[str, Any]:
    manifest = found.manifest
    files = manifest.files if manifest else {}
    return {
        "stage": stage,
        "step": found.step,
        "tokens": manifest.progress.tokens if manifest else None,
        "precision": manifest.precision if manifest else None,
        "processes": sum(name.endswith(".safetensors") for name in files) if manifest else None,
        "bytes": sum(entry.bytes for entry in files.values()) if manifest else None,
        "verified": verify and not found.problem,
        "problem": found.problem,
        "folder": str(found.folder),
    }


def _stages(settings: "Settings", run: str) -> list[Path]:
    folder = Path(run)
    if (folder / FOLDER).is_dir():
        return [folder.resolve()]
    if not folder.is_dir() and "@" in run:
        name, version = parse_address(run)
        folder = settings.runs / name / version
    stages = [folder / stage for stage in TRAINING_STAGES if (folder / stage / FOLDER).is_dir()]
    if not stages:
        raise BadInput(run, "", "has no checkpoints", "give NAME@VERSION of a run, or the folder of a training stage")
    return stages
