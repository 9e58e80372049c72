"""What a person sees of a run: the progress bar, `history.jsonl`, and MLflow where a tracking server is named."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from lineage.files import write_atomic
from lineage.job import Job
from training.config import TrainingConfig
from training.guard import StepResult
from training.manifest import Progress
from training.tracking import MlflowRun

HISTORY = "history.jsonl"
Row = dict[str, Any]  # figures; of a bad step also words and rows


class History:
    """`history.jsonl`: one JSON object per logged step, appended; a resumed run has no row twice.

    Args:
        path: the file.
        step: the step that the run continues from; rows after it belong to work that the kill undid.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rows: list[Row] = [row for row in _read_rows(path) if step and row["step"] <= step]
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


class Telemetry:
    """The three channels together. Only rank 0 has one.

    Args:
        out: the stage's folder.
        progress: where the run starts or continues.
    """

    def __init__(self, job: Job, config: TrainingConfig, out: Path, progress: Progress) -> None:
        from tqdm import tqdm

        self.history = History(out / HISTORY, progress.step)
        name = f"{job.version}/{job.stage}"
        self._tracking = MlflowRun.from_environment(job.name, name, config.model_dump(mode="json"), out)
        self._bar = tqdm(
            total=config.steps, initial=progress.step, desc=name, unit="step", file=sys.stderr, dynamic_ncols=True
        )
        self._since = time.monotonic()

    def log_steps(self, progress: Progress, tokens: int, figures: Row) -> None:
        """Logs what the steps since the last call came to.

        Args:
            tokens: tokens read since the last call, over all processes.
            figures: their mean loss and the like.
        """
        rate = round(tokens / (time.monotonic() - self._since), 1)
        self._bar.set_postfix_str(f"loss {figures['loss']:.4f}, {rate:,.0f} tokens/s", refresh=False)
        self._bar.update(progress.step - self._bar.n)
        self._append({"step": progress.step, **figures, "tokens": progress.tokens, "tokens_per_second": rate})
        self.resume_clock()

    def log_bad_step(self, result: StepResult, fault: str, did: str) -> None:
        """Tells of a step that was passed over, with its rows; numbers that are none are told as text, as JSON has none."""
        self._bar.write(f"{result}: {fault}; {did}", sys.stderr)
        figures = {"loss_seen": str(result.loss), "grad_norm_seen": str(result.grad_norm), "rows": list(result.rows)}
        self.history.append({"step": result.step + 1, "bad_step": fault, "did": did, **figures})

    def log_validation(self, row: Row) -> None:
        """Logs a validation, and leaves its time out of the training's speed."""
        self._bar.write(
            f"step {row['step']}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items() if k != "step"), sys.stderr
        )
        self._append(row)

    def resume_clock(self) -> None:
        """Starts to measure again, after something that was no training."""
        self._since = time.monotonic()

    def close(self, finished: bool) -> None:
        """Ends all channels; waits a little for MLflow to take what is left."""
        self._bar.close()
        self.history.close()
        if self._tracking:
            self._tracking.close(finished)

    def _append(self, row: Row) -> None:
        self.history.append(row)
        if self._tracking:
            self._tracking.log(row)


def _read_rows(path: Path) -> list[Row]:
    """Reads the rows that are whole; a kill may have cut the last one short."""
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
