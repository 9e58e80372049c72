"""The reference of DPO and KTO: what the policy thought of every answer before its first step, scored once in a run's life.

`.checkpoints/reference/train-000000042.scores` holds a piece of the scores, named after its first row. Pieces are written
while the scoring goes on, so a run that is killed in hours of it goes on behind the last one. A file is one line of JSON
that says what it holds, with the sha256 of the whole, and the numbers behind it. One that is damaged, or of another run, is
scored again.
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lineage.errors import BadInput, GoldpathError
from lineage.files import canonical_json, write_atomic
from lineage.section import Section, parse
from training.batches import PackedRows
from training.choices import WITHOUT_REFERENCE
from training.engine import Engine
from training.objectives import answer_scores
from training.processes import Processes
from training.stop import Stopped
from training.validate import Beat, score_rows, unheard

FOLDER, SUFFIX = "reference", ".scores"
SECONDS_PER_PIECE = 30  # what a kill can cost

Scores = dict[int, np.ndarray]  # row of the file → (segments_per_row,) fp32


class _Head(Section):
    """What a piece says of itself.

    Attributes:
        of: the identity of the scores.
        rows: whose they are, in the order of the numbers.
        sha256: over both and the numbers.
    """

    of: str
    rows: tuple[int, ...]
    sha256: str = ""

    def sealed(self, numbers: bytes) -> "_Head":
        """Returns the head with its sha256."""
        said = canonical_json(self.model_dump(mode="json", exclude={"sha256"})).encode()
        return self.model_copy(update={"sha256": hashlib.sha256(said + b"\n" + numbers).hexdigest()})


@dataclass
class KeptScores:
    """The scores of a run that are on disk.

    Attributes:
        folder: `<out>/.checkpoints/reference`, which rank 0 reads and writes; None keeps nothing.
        identity: of all that decides the scores: the stage's fingerprint (base, data, configuration) and the precision.
    """

    folder: Path | None
    identity: str
    processes: Processes
    _since: float = field(default_factory=time.monotonic)

    @property
    def is_due(self) -> bool:
        """Whether it is time for another piece; the same on all processes, which ask together."""
        return bool(self.processes.highest(int(time.monotonic() - self._since >= SECONDS_PER_PIECE))[0])

    def load(self, data: PackedRows) -> Scores:
        """Returns what there is for a file of rows, on all processes."""
        return self.processes.on_first(lambda: self._load(data))

    def add(self, data: PackedRows, fresh: Scores) -> Scores:
        """Gathers what the processes have scored, makes it durable, and returns it on all of them.

        Raises:
            GoldpathError: it cannot be written.
        """
        gathered = {row: scores for share in self.processes.gather(fresh) for row, scores in share.items()}
        piece = {row: gathered[row] for row in sorted(gathered)}
        self.processes.on_first(lambda: self._write(data, piece))
        self._since = time.monotonic()
        return piece

    def _load(self, data: PackedRows) -> Scores:
        found: Scores = {}
        for path in sorted(self.folder.glob(f"{data.path.stem}-*{SUFFIX}")) if self.folder else ():
            piece = self._read(path, data)
            if piece is None:
                print(f"{path}: is damaged, or of another run; its rows are scored again", file=sys.stderr)
                path.unlink()
            else:
                found |= piece
        if found:
            print(f"{len(found):,} rows of {data.path.name} keep the reference's scores", file=sys.stderr)
        return found

    def _read(self, path: Path, data: PackedRows) -> Scores | None:
        try:
            line, _, numbers = path.read_bytes().partition(b"\n")
            head = parse(_Head, json.loads(line), path)
        except (OSError, ValueError, RecursionError, BadInput):
            return None
        if head != head.sealed(numbers) or head.of != self._identity(data):
            return None
        table = np.frombuffer(numbers, dtype="<f4").reshape(len(head.rows), data.segments_per_row)
        return dict(zip(head.rows, table, strict=True))

    def _write(self, data: PackedRows, piece: Scores) -> None:
        if not piece or self.folder is None:
            return
        numbers = np.stack(list(piece.values())).astype("<f4").tobytes()
        head = _Head(of=self._identity(data), rows=tuple(piece)).sealed(numbers)
        path = self.folder / f"{data.path.stem}-{head.rows[0]:09d}{SUFFIX}"
        try:
            write_atomic(path, canonical_json(head.model_dump(mode="json")).encode() + b"\n" + numbers)
        except OSError as error:
            raise GoldpathError(
                f"{path}: the reference's scores could not be kept ({error.strerror}). Fix: make room, then run the same "
                "command again: it goes on behind the scores that were kept before"
            ) from None

    def _identity(self, data: PackedRows) -> str:
        return f"{self.identity} {data.path.stem} {data.num_rows}x{data.segments_per_row}"


def reference_scores(
    engine: Engine, data: PackedRows, rows: Sequence[int], kept: KeptScores, beat: Beat = unheard
) -> Tensor:
    """Returns the summed log-probabilities of every answer in these rows, (rows of the file, segments_per_row) fp32.

    Called before the first step, when the policy still is the reference. A resumed run calls it before it restores its
    weights, and gets the numbers that were kept. Computing them once saves a forward pass of every step (Rafailov et al.
    2023 score the reference in every step). Losses without reference get zeros, at no cost.

    Raises:
        Stopped: `beat` says that the run is to end; what was scored is kept.
    """
    table = torch.zeros(data.num_rows, data.segments_per_row)
    if data.objective == "dpo" and engine.config.dpo_loss in WITHOUT_REFERENCE:
        return table
    known = kept.load(data)
    fresh: Scores = {}
    engine.scorer.eval()
    try:
        for batch, scores in score_rows(engine, data, [row for row in rows if row not in known], beat):
            if batch.rows:
                sums = answer_scores(batch, scores, data.segments_per_row).view(len(batch.rows), -1)
                fresh |= dict(zip(batch.rows, sums.float().cpu().numpy(), strict=True))
            if kept.is_due:
                known |= kept.add(data, fresh)
                fresh = {}
    except Stopped:
        kept.add(data, fresh)
        raise
    engine.scorer.train()
    known |= kept.add(data, fresh)
    for row, numbers in known.items():
        table[row] = torch.tensor(numbers)
    return table
