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
from training.engine import Engine, ReadRange
from training.manifest import MANIFEST, CheckpointManifest, Progress, find_checkpoints, step_of
from training.processes import Processes

TEMPORARY = ".writing"
CUDA_RNG, TORCH_RNG = "rng/cuda", "rng/torch"


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
        found_any = False
        for found in find_checkpoints(self.folder, verify=True):
            found_any = True
            if found.manifest is not None and found.manifest.fingerprint != self.fingerprint:
                raise BadInput(
                    found.folder / MANIFEST,
                    "fingerprint",
                    "belongs to another configuration or other inputs",
                    f"delete {self.folder} to start again, or choose a new version",
                )
            if found.manifest is not None and not found.problem:
                print(f"continuing from {found.folder.name}", file=sys.stderr)
                return found.folder, found.manifest.progress
            print(f"{found.folder}: {found.problem}; falling back to the checkpoint before it", file=sys.stderr)
        if found_any:
            raise GoldpathError(f"{self.folder}: no checkpoint is whole. Fix: delete that folder to start again")
        return None

    def _publish(self, temporary: Path, final: Path, manifest: CheckpointManifest) -> None:
        write_json(temporary / MANIFEST, manifest.model_dump(mode="json"))
        if final.exists():  # a damaged one that was passed over, or one that this run repeats
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(self.folder)
        for old in sorted(self.folder.glob("step-*"), key=step_of)[: -self.keep]:
            shutil.rmtree(old)


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
