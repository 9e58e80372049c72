"""What a person sees of a run: the progress bar, `history.jsonl`, and MLflow where a tracking server is named."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from lineage.files import write_atomic
from training.tracking import MlflowRun

HISTORY = "history.jsonl"
Row = dict[str, float | int]


class History:
    """`history.jsonl`: one JSON object per logged step, appended. A resumed run has no row twice and none from a lost future.

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

    def first(self, key: str) -> float | int | None:
        """Returns a figure from the first row that has it."""
        return next((row[key] for row in self.rows if key in row), None)

    def last(self, key: str) -> float | int | None:
        """Returns a figure from the last row that has it."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)


class Telemetry:
    """The three channels together. Only rank 0 has one.

    Args:
        name, run_name: MLflow's experiment and run.
        parameters: what MLflow shows as the run's parameters.
        out: the stage's folder.
        steps, start: how many steps there are, and how many of them are done.
    """

    def __init__(self, name: str, run_name: str, parameters: dict[str, Any], out: Path, *, steps: int, start: int) -> None:
        from tqdm import tqdm

        self.history = History(out / HISTORY, start)
        self._tracking = MlflowRun.from_environment(name, run_name, parameters, out)
        self._bar = tqdm(
            total=steps, initial=start, desc=run_name, unit="step", file=sys.stderr, dynamic_ncols=True, mininterval=0.5
        )
        self._step, self._tokens, self._since = start, 0, time.monotonic()
        self.tokens, self.seconds = 0, 0.0

    def log_steps(self, step: int, tokens: int, figures: Row) -> None:
        """Logs what the steps since the last call came to.

        Args:
            step: steps done.
            tokens: tokens read since the last call, over all processes.
            figures: their mean loss and the like.
        """
        seconds = time.monotonic() - self._since
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        row = {"step": step, **figures, "tokens_per_second": round(tokens / seconds, 1)}
        self._bar.set_postfix_str(f"loss {figures['loss']:.4f}, {row['tokens_per_second']:,.0f} tokens/s", refresh=False)
        self._bar.update(step - self._step)
        self._step = step
        self._append(row)
        self.resume_clock()

    def log_validation(self, row: Row) -> None:
        """Logs a validation; its time is not the training's."""
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
