"""What a person sees of a run: the progress bar, `metrics.jsonl`, and MLflow where a tracking server is named."""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lineage.files import canonical_json, sha256_text, write_atomic, write_json
from lineage.job import Job
from lineage.memory import peak_resident_bytes
from training.attempts import begin_attempt
from training.clock import OTHER, PARTS
from training.config import TrainingConfig
from training.energy import EnergyMeter
from training.flops import Arithmetic
from training.guard import StepResult
from training.manifest import FOLDER, HISTORY, Progress, checkpoint_folder
from training.tracking import MlflowRun

METRICS = HISTORY
BAD_STEP = ".bad-step.json"  # hidden: no output of a run that goes on another time
SECONDS = "_seconds"  # what ends the name of a part's time per step
PRODUCTIVE, JOULES = "productive" + SECONDS, "energy_joules"
# What was measured. Every other figure of a row was computed, and repeats bit for bit.
MEASURED = frozenset(
    {part + SECONDS for part in ("step", "productive", *PARTS, OTHER)}
    | {"tokens_per_second", "padded_tokens_per_second", "mfu", "memory_bytes", "gpu_memory_bytes"}
    | {"goodput", "restarts", "cost", JOULES}
)
Row = dict[str, Any]  # figures; of a bad step also words and rows


class History:
    """`metrics.jsonl`: one JSON object per logged step, appended; a resumed run has no row twice, and none too few.

    Args:
        path: the file. What it held is replaced: rows after the checkpoint belong to work that the kill undid.
        saved: the file as the checkpoint holds it that the run continues from; None for a run that starts.
    """

    def __init__(self, path: Path, saved: Path | None) -> None:
        self.path = path
        self.rows: list[Row] = read_rows(saved) if saved else []
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._file = path.open("a", encoding="utf-8")

    def append(self, row: Row) -> None:
        """Adds a row, for readers of the file at once."""
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def make_durable(self) -> None:
        """Call it before a checkpoint is written, so that no checkpoint is ahead of its history."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def values(self, key: str) -> list[Any]:
        """Returns a figure from every row that has it."""
        return [row[key] for row in self.rows if key in row]


@dataclass(frozen=True)
class Span:
    """What the steps since the last log came to, over all processes.

    Attributes:
        steps: how many.
        tokens, positions, targets: tokens that were no padding, the same with padding, and those that were predicted.
        seconds: of each part of the loop (`training.clock`), on this process.
    """

    steps: int
    tokens: int
    positions: int
    targets: int
    seconds: dict[str, float]

    @property
    def training(self) -> float:
        """The seconds that were training: all but checkpoints and validation."""
        return sum(self.seconds.values()) - self.seconds["checkpoint"] - self.seconds["validation"]


@dataclass(frozen=True)
class Gauge:
    """What the speed of a run is measured against.

    Attributes:
        device: where it computes.
        processes: how many.
        seq_len: tokens of a row.
        arithmetic: what a token costs.
        peak: the measured matrix-multiply peak of one process, floating-point operations per second.
        price: of an hour on all devices of the run; None where no table says it.
    """

    device: torch.device
    processes: int
    seq_len: int
    arithmetic: Arithmetic
    peak: float
    price: float | None

    def utilisation(self, span: Span) -> float:
        """Returns MFU (Chowdhery et al. 2022, appendix B): the model's own arithmetic as a share of the peak."""
        work = self.arithmetic.training(span.tokens, span.targets, self.seq_len)
        return work / (span.training * self.peak * self.processes)


@dataclass
class Telemetry:
    """The three channels together. Only rank 0 has one.

    Attributes:
        out: the stage's folder.
        progress: where the run starts or continues.
        gauge: what speed is measured against.
    """

    job: Job
    config: TrainingConfig
    out: Path
    progress: Progress
    gauge: Gauge
    history: History = field(init=False)

    def __post_init__(self) -> None:
        from tqdm import tqdm

        path = self.out / METRICS
        used = max((row.get(JOULES, 0.0) for row in read_rows(path)), default=0.0)  # also by work that the kill undid
        self._attempts = begin_attempt(self.out, path, used)
        step = self.progress.step
        self.history = History(path, checkpoint_folder(self.out / FOLDER, step) / METRICS if step else None)
        self._productive = max(self.history.values(PRODUCTIVE), default=0.0)
        self._energy = EnergyMeter(self.gauge.device)
        name = f"{self.job.version}/{self.job.stage}"
        self._tracking = MlflowRun.from_environment(self.job.name, name, self.config.model_dump(mode="json"), self.out)
        self._bar = tqdm(
            total=self.config.steps,
            initial=self.progress.step,
            desc=name,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def log_steps(self, progress: Progress, span: Span, figures: Row) -> None:
        """Logs what the steps since the last call came to.

        Args:
            figures: their mean loss and the like.
        """
        row = {"step": progress.step, **figures, "tokens": progress.tokens, **self._measured(span)}
        shown = f"loss {row['loss']:.4f}, {row['tokens_per_second']:,.0f} tokens/s, MFU {row['mfu']:.0%}"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(progress.step - self._bar.n)
        self._append(row)

    def log_validation(self, row: Row) -> None:
        """Logs a validation."""
        self._bar.write(
            f"step {row['step']}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items() if k != "step"), sys.stderr
        )
        self._append(row)

    def log_bad_step(self, result: StepResult, fault: str, did: str) -> None:
        """Tells of a step that was passed over, with its rows; numbers that are none are told as text, as JSON has none."""
        self._bar.write(f"{result}: {fault}; {did}", sys.stderr)
        self.history.append(_told(result, fault) | {"did": did})

    def keep_bad_step(self, result: StepResult, fault: str) -> Path:
        """Writes the step that ends the run, with all its rows, beside the history; returns the file."""
        write_json(self.out / BAD_STEP, _told(result, fault))
        return self.out / BAD_STEP

    def close(self, finished: bool) -> None:
        """Ends all channels; waits a little for MLflow to take what is left."""
        self._bar.close()
        self.history.close()
        if self._tracking:
            self._tracking.close(finished)

    def _measured(self, span: Span) -> Row:
        """Returns speed, time per step by part, memory, goodput, energy and cost."""
        now = time.time()
        self._productive += span.training
        steps = max(1, span.steps)  # none, where a signal came behind the last good one
        row: Row = {
            "tokens_per_second": round(span.tokens / span.training, 1),
            "padded_tokens_per_second": round(span.positions / span.training, 1),
            "mfu": round(self.gauge.utilisation(span), 4),
            "step_seconds": round(sum(span.seconds.values()) / steps, 6),
            **{part + SECONDS: round(span.seconds[part] / steps, 6) for part in (*PARTS, OTHER)},
            "memory_bytes": peak_resident_bytes(),
            PRODUCTIVE: round(self._productive, 3),
            "goodput": round(self._attempts.goodput(self._productive, now), 4),
            "restarts": self._attempts.restarts,
        }
        if self.gauge.device.type == "cuda":
            row["gpu_memory_bytes"] = torch.cuda.max_memory_allocated(self.gauge.device)
        if self._energy.counts:
            row[JOULES] = round(self._attempts.joules + self._energy.joules(), 1)
        if self.gauge.price is not None:
            row["cost"] = round(self.gauge.price * self._attempts.held_seconds(now) / 3600, 6)
        return row

    def _append(self, row: Row) -> None:
        self.history.append(row)
        if self._tracking:
            self._tracking.log(row)


def _told(result: StepResult, fault: str) -> Row:
    """Returns a bad step with its packed rows and, where the data tells, the ids of those that they were made of."""
    figures = {"loss_seen": str(result.loss), "grad_norm_seen": str(result.grad_norm), "rows": list(result.rows)}
    sources = {"sources": list(result.sources)} if result.sources else {}
    return {"step": result.step + 1, "bad_step": fault, **figures, **sources}


def history_digest(rows: list[Row]) -> str:
    """Returns the sha256 of what the training computed: equal for a run that was killed and one that was not."""
    computed = [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]
    return sha256_text("".join(canonical_json(row) + "\n" for row in computed))


def read_rows(path: Path) -> list[Row]:
    """Reads the rows that are whole; a kill may have cut the last one short."""
    rows: list[Row] = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows
