"""What a checkpoint says of itself, and whether its bytes bear it out. Without torch: `goldpath checkpoints` asks too."""

import json
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from lineage.bundle import FileEntry, describe_file
from lineage.errors import BadInput
from lineage.files import canonical_json, sha256_text
from lineage.section import Section, parse
from training.hardware import Precision

FOLDER, MANIFEST = ".checkpoints", "manifest.json"
HISTORY = "metrics.jsonl"  # of the run; each checkpoint holds what it was at its step
_NAME = re.compile(r"step-[0-9]+")


class Progress(Section):
    """How far the run is: the part of the state that all processes share.

    Attributes:
        step: steps done; also the position in the data (`batches.rows_of_step`) and in the schedule.
        tokens: tokens read so far that were no padding.
        passed_over: how many of the steps changed nothing, because the guard took them for damage (`training.guard`).
        bad_in_a_row: how many of them were the last ones.
        recent_losses: the losses that a spike would be measured against, the newest last; empty where nobody looks.
        unlogged: (step, loss, gradient norm) of the steps since the last log, where a signal came between two logs.
        awaits_validation: whether a signal came during the validation of this step.
    """

    step: int = 0
    tokens: int = 0
    passed_over: int = 0
    bad_in_a_row: int = 0
    recent_losses: tuple[float, ...] = ()
    # Left out where they say nothing, so that manifests of before they existed keep their digests.
    unlogged: tuple[tuple[int, float, float], ...] = Field(default=(), exclude_if=operator.not_)
    awaits_validation: bool = Field(default=False, exclude_if=operator.not_)

    @property
    def updates(self) -> int:
        """How often the optimizer has changed the weights."""
        return self.step - self.passed_over

    def after(self, tokens: int) -> "Progress":
        """Returns the progress after one more step."""
        return self.model_copy(update={"step": self.step + 1, "tokens": self.tokens + tokens})


class CheckpointManifest(Section):
    """What a whole checkpoint consists of, whose it is, and in which precision the run computes.

    Attributes:
        fingerprint: the identity of the stage.
        files: what lies beside the manifest.
        digest: sha256 over everything above, so that a manifest with a flipped bit is none.
    """

    fingerprint: str
    precision: Precision
    progress: Progress
    files: dict[str, FileEntry]
    digest: str = ""

    def expected_digest(self) -> str:
        """Returns the sha256 of all that the manifest says."""
        return sha256_text(canonical_json(self.model_dump(mode="json", exclude={"digest"})))

    def sealed(self) -> "CheckpointManifest":
        """Returns the manifest with its digest."""
        return self.model_copy(update={"digest": self.expected_digest()})


@dataclass(frozen=True)
class Found:
    """A checkpoint on disk.

    Attributes:
        folder: `.checkpoints/step-000123`.
        manifest: None where there is none that can be read.
        problem: what is wrong with it; "" where nothing is, as far as it was looked at.
    """

    folder: Path
    manifest: CheckpointManifest | None
    problem: str

    @property
    def step(self) -> int:
        """The step in the folder's name."""
        return step_of(self.folder)


def find_checkpoints(folder: Path, verify: bool) -> Iterator[Found]:
    """Yields a run's checkpoints, the newest first.

    Args:
        folder: `<stage's folder>/.checkpoints`.
        verify: read every byte and compare it with the manifest; else only look whether there is one.
    """
    for path in sorted(checkpoint_folders(folder), key=step_of, reverse=True):
        manifest = read_manifest(path)
        problem = "has no readable manifest" if manifest is None else ""
        if manifest is not None and verify:
            problem = first_damage(path, manifest)
        yield Found(path, manifest, problem)


def checkpoint_folders(folder: Path) -> list[Path]:
    """Returns the folders that are named as checkpoints are; copies, files and links that somebody put there are none."""
    named = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return [path for path in named if path.is_dir() and not path.is_symlink()]


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Returns where the checkpoint of a step is, or would be."""
    return folder / f"step-{step:06d}"


def read_manifest(folder: Path) -> CheckpointManifest | None:
    """Returns a checkpoint's manifest, None where there is none that can be read."""
    try:
        value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return parse(CheckpointManifest, value, folder / MANIFEST)
    except (OSError, ValueError, RecursionError, BadInput):
        return None


def first_damage(folder: Path, manifest: CheckpointManifest) -> str:
    """Returns what is wrong with a checkpoint's bytes, "" if nothing is."""
    if manifest.digest != manifest.expected_digest() or manifest.progress.step != step_of(folder):
        return "has a damaged manifest"
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"misses {name}"
            if describe_file(path) != entry:
                return f"has other bytes in {name} than its manifest says"
        except OSError as error:
            return f"cannot be read ({name}: {error.strerror})"
    return ""


def precision_of(folder: Path) -> Precision | None:
    """Returns the precision of the run whose checkpoints these are; None where there are none."""
    return next((found.manifest.precision for found in find_checkpoints(folder, verify=False) if found.manifest), None)


def step_of(folder: Path) -> int:
    """Returns the step in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step-"))
