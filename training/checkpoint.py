"""Checkpoints that are whole or absent: written beside, hashed, renamed. The manifest is written last.

`.checkpoints/step-000123/` holds a safetensors and a JSON file per process, and `manifest.json` with the sha256 and size of
each. Tensors are stored as ranges of flattened tensors (`training.engine.Piece`), so a run that was divided over two
processes by ZeRO-3 may continue on four with FSDP2, or on one. Nothing is pickled.
"""

import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lineage.bundle import FileEntry, describe_file
from lineage.errors import BadInput, GoldpathError
from lineage.files import sync_folder, write_json
from lineage.section import Section, parse
from training.engine import Engine, ReadRange
from training.hardware import Precision
from training.processes import Processes

FOLDER, MANIFEST, TEMPORARY = ".checkpoints", "manifest.json", ".writing"
CUDA_RNG, TORCH_RNG = "rng/cuda", "rng/torch"


class Progress(Section):
    """How far the run is: the part of the state that all processes share.

    Attributes:
        step: updates done; also the position in the data (`batches.rows_of_step`).
        tokens: tokens read so far that were no padding.
    """

    step: int = 0
    tokens: int = 0


class CheckpointManifest(Section):
    """What a whole checkpoint consists of, whose it is, and in which precision the run computes."""

    fingerprint: str
    precision: Precision
    progress: Progress
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        folder: `<out>/.checkpoints`, shared by all processes.
        fingerprint: the stage's identity; a checkpoint of another one is refused.
        keep: how many of the newest stay.
    """

    folder: Path
    fingerprint: str
    keep: int
    processes: Processes

    def save(self, engine: Engine, progress: Progress) -> None:
        """Writes a checkpoint. A kill at any instruction leaves the previous ones whole and this one absent or whole."""
        temporary, final = self.folder / TEMPORARY, self.folder / f"step-{progress.step:06d}"
        self.processes.on_first(lambda: _make_empty(temporary))
        mine = _write_share(temporary, self.processes.rank, engine)
        files = {name: entry for share in self.processes.gather(mine) for name, entry in share.items()}
        manifest = CheckpointManifest(
            fingerprint=self.fingerprint, precision=engine.precision, progress=progress, files=files
        )
        self.processes.on_first(lambda: self._publish(temporary, final, manifest))

    def load_newest(self, engine: Engine) -> Progress:
        """Restores the newest checkpoint whose every byte verifies, and says on stderr which ones it had to pass over.

        Returns:
            Where the run continues; step 0 where there is no checkpoint.

        Raises:
            BadInput: the checkpoints belong to another configuration or other inputs.
            GoldpathError: there are checkpoints, but none is whole.
        """
        found = self.processes.on_first(self._newest_verified)
        if found is None:
            return Progress()
        folder, progress = found
        with ExitStack() as stack:
            engine.restore(_range_reader(folder, stack, engine.processes.device), progress.step)
        _restore_rng(folder, self.processes.rank)
        return progress

    def _newest_verified(self) -> tuple[Path, Progress] | None:
        candidates = sorted(self.folder.glob("step-*"), key=_step_of, reverse=True)
        for folder in candidates:
            manifest = _read_manifest(folder)
            problem = "has no readable manifest" if manifest is None else _first_damage(folder, manifest)
            if manifest is not None and manifest.fingerprint != self.fingerprint:
                raise BadInput(
                    folder / MANIFEST,
                    "fingerprint",
                    "belongs to another configuration or other inputs",
                    f"delete {self.folder} to start again, or choose a new version",
                )
            if manifest is not None and not problem:
                print(f"continuing from {folder.name}", file=sys.stderr)
                return folder, manifest.progress
            print(f"{folder}: {problem}; falling back to the checkpoint before it", file=sys.stderr)
        if candidates:
            raise GoldpathError(f"{self.folder}: no checkpoint is whole. Fix: delete that folder to start again")
        return None

    def _publish(self, temporary: Path, final: Path, manifest: CheckpointManifest) -> None:
        write_json(temporary / MANIFEST, manifest.model_dump(mode="json"))
        if final.exists():  # a damaged one that was passed over, or one that this run repeats
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(self.folder)
        for old in sorted(self.folder.glob("step-*"), key=_step_of)[: -self.keep]:
            shutil.rmtree(old)


def precision_of(folder: Path) -> Precision | None:
    """Returns the precision of the run whose checkpoints these are; None where there are none."""
    for checkpoint in sorted(folder.glob("step-*"), key=_step_of, reverse=True):
        if manifest := _read_manifest(checkpoint):
            return manifest.precision
    return None


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_share(folder: Path, rank: int, engine: Engine) -> dict[str, FileEntry]:
    """Writes one process's tensors and random states, durably, and describes the files."""
    tensors: dict[str, Tensor] = {TORCH_RNG: torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors[CUDA_RNG] = torch.cuda.get_rng_state()
    starts: dict[str, str] = {}
    for piece in engine.pieces():
        if not len(piece.values):  # a small tensor divided over many processes
            continue
        key = f"{piece.part}/{piece.name}"
        tensors[key], starts[key] = piece.values.cpu().contiguous(), str(piece.start)
    path = folder / f"rank-{rank:05d}.safetensors"
    save_file(tensors, path, metadata=starts)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    states = {"python": random.getstate(), "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss]}
    write_json(path.with_suffix(".json"), states)
    return {part.name: describe_file(part) for part in (path, path.with_suffix(".json"))}


def _read_manifest(folder: Path) -> CheckpointManifest | None:
    try:
        value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return parse(CheckpointManifest, value, folder / MANIFEST)
    except (OSError, ValueError, BadInput):
        return None


def _first_damage(folder: Path, manifest: CheckpointManifest) -> str:
    """Returns what is wrong with a checkpoint's bytes, "" if nothing is."""
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"misses {name}"
        if describe_file(path) != entry:
            return f"has other bytes in {name} than its manifest says"
    return ""


def _range_reader(folder: Path, stack: ExitStack, device: torch.device) -> ReadRange:
    """Returns a function that reads any range of any saved tensor, from as many processes' files as hold parts of it."""
    index: dict[str, list[tuple[int, int, Any]]] = {}
    for path in sorted(folder.glob("rank-*.safetensors")):
        file = stack.enter_context(safe_open(path, framework="pt"))
        for key, start in (file.metadata() or {}).items():
            (length,) = file.get_slice(key).get_shape()
            index.setdefault(key, []).append((int(start), int(start) + length, file))

    def read(name: str, part: str, start: int, stop: int) -> Tensor:
        key = f"{part}/{name}"
        values = torch.cat([torch.empty(0), *_overlaps(index[key], key, start, stop)])
        if len(values) != stop - start:
            raise GoldpathError(f"{folder}: `{key}` holds {len(values)} of the {stop - start} values asked for")
        return values.to(device)

    return read


def _overlaps(ranges: list[tuple[int, int, Any]], key: str, start: int, stop: int) -> Iterator[Tensor]:
    for first, last, file in sorted(ranges, key=lambda r: r[:2]):
        low, high = max(first, start), min(last, stop)
        if low < high:
            yield file.get_slice(key)[low - first : high - first]


def _restore_rng(folder: Path, rank: int) -> None:
    """Restores the random states of this rank. A rank that did not exist when the checkpoint was made keeps its own."""
    path = folder / f"rank-{rank:05d}.safetensors"
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as file:
        torch.set_rng_state(file.get_tensor(TORCH_RNG))
        if torch.cuda.is_available() and CUDA_RNG in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            torch.cuda.set_rng_state(file.get_tensor(CUDA_RNG))
    states = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
