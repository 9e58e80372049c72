"""Checkpoints that are whole or absent: written beside, hashed, renamed. The manifest is written last.

`.checkpoints/step-000123/` holds a safetensors and a JSON file per process, the metrics up to that step, and
`manifest.json` with the sha256 and size of each. Tensors are stored as ranges of flattened tensors
(`training.engine.Piece`), so a run that was divided over two processes by ZeRO-3 may continue on four with FSDP2, or on
one. Nothing is pickled.

Training waits while the state is copied into the page cache, which costs no memory that the kernel could not take back. A
thread then makes the files durable and hashes what is in them, while training goes on; `commit` publishes them.
"""

import json
import random
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lineage.bundle import FileEntry, describe_file
from lineage.errors import BadInput, GoldpathError
from lineage.files import sync_file, sync_folder, write_json
from training.engine import Engine, ReadRange
from training.hardware import Precision
from training.manifest import (
    HISTORY,
    MANIFEST,
    CheckpointManifest,
    Progress,
    checkpoint_folder,
    checkpoint_folders,
    find_checkpoints,
    step_of,
)
from training.processes import Processes

TEMPORARY = ".writing"
CUDA_RNG, TORCH_RNG = "rng/cuda", "rng/torch"


@dataclass(frozen=True)
class _Writing:
    """A checkpoint between its copy and its manifest; the future gives its files, or what kept them from being written."""

    progress: Progress
    precision: Precision
    files: "Future[dict[str, FileEntry]]"


@dataclass
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        folder: `<out>/.checkpoints`, shared by all processes.
        fingerprints: the stage's identity first, then those that it may continue from; checkpoints of others are refused.
        keep: how many of the newest stay, and of the regular ones the newest.
        is_regular: whether a checkpoint of that step is written whatever happens. Others exist because a signal came: a run
            that goes back to them would end with other weights than one that met no signal.
    """

    folder: Path
    fingerprints: Collection[str]
    keep: int
    processes: Processes
    is_regular: Callable[[int], bool] = lambda step: True
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))
    _writing: _Writing | None = None

    @property
    def is_writing(self) -> bool:
        """Whether this process still makes a checkpoint durable."""
        return self._writing is not None and not self._writing.files.done()

    def begin(self, engine: Engine, progress: Progress, make_durable: Callable[[], None] = lambda: None) -> None:
        """Copies the state; training may go on. A kill at any instruction leaves the checkpoints before it whole.

        Args:
            make_durable: called in the thread before the checkpoint's own files: what must not lag behind it.
        """
        self.commit()
        temporary = self.folder / TEMPORARY
        self.processes.on_first(lambda: _make_empty(temporary))
        copied: Future[dict[str, FileEntry]] = Future()
        try:
            paths = _copy_share(temporary, self.processes.rank, engine)
            if self.processes.is_first and (history := self.folder.parent / HISTORY).is_file():
                paths.append(Path(shutil.copyfile(history, temporary / HISTORY)))
        except (OSError, SafetensorError) as error:  # told by `commit`, where all processes hear of it
            copied.set_exception(error)
        else:
            copied = self._thread.submit(_make_durable, paths, make_durable)
        self._writing = _Writing(progress, engine.precision, copied)

    def commit(self) -> None:
        """Waits until what was begun is durable in every process, and publishes it. All processes call it together.

        Raises:
            GoldpathError: it could not be written; the checkpoints before it are whole.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        shares = self.processes.gather(_outcome(writing.files))
        problems = [share for share in shares if isinstance(share, str)]
        if problems:
            self.processes.on_first(lambda: self._give_up(writing.progress.step, problems[0]))
        files = {name: entry for share in shares if not isinstance(share, str) for name, entry in share.items()}
        manifest = CheckpointManifest(
            fingerprint=self.identity, precision=writing.precision, progress=writing.progress, files=files
        )
        self.processes.on_first(lambda: self._publish(manifest))

    def load_newest(self, engine: Engine, to_rewind: bool = False) -> Progress:
        """Restores the newest checkpoint whose every byte verifies, and says on stderr which ones it had to pass over.

        Args:
            to_rewind: the run goes back, and does not continue: only regular checkpoints count.

        Returns:
            Where the run continues; step 0 where there is no checkpoint.

        Raises:
            BadInput: the checkpoints belong to another configuration or other inputs.
            GoldpathError: there are checkpoints, but none is whole.
        """
        found = self.processes.on_first(lambda: self._newest_verified(to_rewind))
        if found is None:
            return Progress()
        folder, manifest = found
        progress = manifest.progress
        if manifest.fingerprint == self.identity and manifest.precision != engine.precision:
            raise BadInput(
                folder / MANIFEST,
                "precision",
                f"is {manifest.precision}, and this run computes in {engine.precision}",
                "set the precision that it began with, in the recipe or in the launcher's file",
            )
        with ExitStack() as stack:
            read, sizes = _range_reader(folder, manifest.files, stack, engine.processes.device)
            engine.restore(read, progress.updates)
        self._require_sizes(folder, engine, sizes)
        _restore_rng(folder, self.processes.rank)
        return progress

    @property
    def identity(self) -> str:
        """The stage's own fingerprint."""
        return next(iter(self.fingerprints))

    def _require_sizes(self, folder: Path, engine: Engine, sizes: Mapping[str, int]) -> None:
        """Refuses a checkpoint of a larger model, whose tensors would be read in part where a change of it was allowed."""
        ends = {f"{piece.part}/{piece.name}": piece.start + len(piece.values) for piece in engine.pieces()}
        needed: dict[str, int] = {}
        for share in self.processes.gather(ends):
            needed |= {key: max(end, needed.get(key, 0)) for key, end in share.items()}
        for key, end in needed.items():
            if sizes.get(key, end) != end:
                raise BadInput(
                    folder,
                    key,
                    f"holds {sizes[key]:,} numbers, but the model has {end:,}",
                    "undo the change of the model: its checkpoints are of no use to another one",
                )

    def _newest_verified(self, to_rewind: bool) -> tuple[Path, CheckpointManifest] | None:
        found_any = False
        for found in find_checkpoints(self.folder, verify=True):
            if to_rewind and not self.is_regular(found.step):
                continue
            found_any = True
            if found.manifest is not None and not found.problem and found.manifest.fingerprint not in self.fingerprints:
                raise BadInput(
                    found.folder / MANIFEST,
                    "fingerprint",
                    "belongs to another configuration or other inputs",
                    f"delete {self.folder} to start again, or choose a new version",
                )
            if found.manifest is not None and not found.problem:
                print(f"continuing from {found.folder.name}", file=sys.stderr)
                return found.folder, found.manifest
            print(f"{found.folder}: {found.problem}; falling back to the checkpoint before it", file=sys.stderr)
        if found_any:
            raise GoldpathError(f"{self.folder}: no checkpoint is whole. Fix: delete that folder to start again")
        return None

    def _publish(self, manifest: CheckpointManifest) -> None:
        temporary, final = self.folder / TEMPORARY, checkpoint_folder(self.folder, manifest.progress.step)
        write_json(temporary / MANIFEST, manifest.sealed().model_dump(mode="json"))
        if final.is_symlink() or final.is_file():  # somebody's, where a folder must be
            final.unlink()
        elif final.exists():  # a damaged one that was passed over, or one that this run repeats
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(self.folder)
        # Later ones are damaged: this run passed them over. They must not push out the ones that are whole.
        known = sorted(checkpoint_folders(self.folder), key=step_of)
        later, here = [path for path in known if step_of(path) > manifest.progress.step], known.index(final) + 1
        spare = max((path for path in known[:here] if self.is_regular(step_of(path))), key=step_of, default=final)
        for old in [*later, *(path for path in known[: max(0, here - self.keep)] if path != spare)]:
            shutil.rmtree(old)

    def _give_up(self, step: int, problem: str) -> None:
        files = (self.folder / TEMPORARY).glob("*")
        written = sum(path.stat().st_size for path in files)
        shutil.rmtree(self.folder / TEMPORARY)  # what there is may be all that fits
        free = shutil.disk_usage(self.folder).free
        raise GoldpathError(
            f"{self.folder}: the checkpoint of step {step} could not be written ({problem}; {written / 2**20:,.0f} MiB "
            f"of it were, {free / 2**20:,.0f} MiB are free now). Fix: make room (a lower `keep_checkpoints` needs less), "
            "then run the same command again: it continues from the checkpoint before"
        )


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _copy_share(folder: Path, rank: int, engine: Engine) -> list[Path]:
    """Writes one process's tensors and random states, and returns the files: in the page cache, not durable yet."""
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
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    states = {"python": random.getstate(), "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss]}
    path.with_suffix(".json").write_text(json.dumps(states), encoding="utf-8")
    return [path, path.with_suffix(".json")]


def _make_durable(paths: list[Path], first: Callable[[], None]) -> dict[str, FileEntry]:
    first()
    for path in paths:
        sync_file(path)
    return {path.name: describe_file(path) for path in paths}


def _outcome(files: "Future[dict[str, FileEntry]]") -> dict[str, FileEntry] | str:
    """Returns a share's files, or what kept them from being written, as text that travels between processes."""
    try:
        return files.result()
    except OSError as error:
        return error.strerror or str(error)
    except SafetensorError as error:  # the Rust library wraps the system's error into text
        return str(error)


def _range_reader(
    folder: Path, names: Collection[str], stack: ExitStack, device: torch.device
) -> tuple[ReadRange, dict[str, int]]:
    """Returns a function that reads any range of any saved tensor, and the tensors' sizes.

    A tensor may lie in pieces in as many files as there were processes.
    """
    index: dict[str, list[tuple[int, int, Any]]] = {}
    for name in sorted(name for name in names if name.endswith(".safetensors")):
        file = stack.enter_context(safe_open(folder / name, framework="pt"))
        for key, start in (file.metadata() or {}).items():
            (length,) = file.get_slice(key).get_shape()
            index.setdefault(key, []).append((int(start), int(start) + length, file))

    def read(name: str, part: str, start: int, stop: int) -> Tensor:
        key = f"{part}/{name}"
        if key not in index:  # a change of optimizer or precision that was allowed by name
            raise GoldpathError(f"{folder}: holds no `{key}`. Fix: keep optimizer and precision, or choose a new version")
        values = torch.cat([torch.empty(0), *_overlaps(index[key], key, start, stop)])
        if len(values) != stop - start:
            raise GoldpathError(f"{folder}: `{key}` holds {len(values)} of the {stop - start} values asked for")
        return values.to(device)

    return read, {key: max(stop for _, stop, _ in ranges) for key, ranges in index.items()}


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
