"""What starting, saving and being killed cost: seconds to the first step, checkpoint stall, effective training time.

The stall is what saving every 50 steps adds to the mean step: the copy that training waits for, and what the thread behind
it takes from the cores. The peer is transformers' Trainer, which writes its checkpoints while training waits.

Effective training time (ETTR) is the share of wall time that moves the run forward, at one kill every ten minutes. The
kills are real, at random moments: each costs the seconds from the kill until the step that it cut off is done again. Ten
minutes of training between two kills are not waited for.

>>> python -m benchmarks.resume --runs 3
"""

import argparse
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.figure import at_least, at_most, emit
from benchmarks.training import GSM8K, Bench, interleave, stage_command, stage_environment
from training.telemetry import METRICS, read_rows

SIZE = "11 M"
EVERY, COUNTED = 50, range(40, 141)  # save every so many steps; these hold two saves with all that follows them
KILLS_PER_RUN, SECONDS_BETWEEN_KILLS = 4, 600
START_LIMIT, STALL_LIMIT, ETTR_LIMIT = 6.0, 5.0, 97.0  # seconds, per cent, per cent
STEPS = 10_000  # more than any of these runs comes to
DEADLINE = 600


def main() -> None:
    """Measures, and prints one JSON line per figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resume", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--rows", type=Path, default=GSM8K, help="GSM8K's train.jsonl")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="goldpath-resume-") as folder:
        bench = Bench.prepare(Path(folder) / "bench", SIZE, arguments.rows)
        measure_start(bench, arguments.runs)
        measure_kills(bench, arguments.runs, measure_stall(bench, arguments.runs))


def measure_start(bench: Bench, runs: int) -> None:
    """Times a run from its process's start to its first logged step."""
    seconds = []
    for _ in range(runs + 1):  # the first fills the page cache
        with training(bench, bench.new_folder(), steps=STEPS, checkpoint_every=0) as run:
            seconds.append(run.wait_for(1) - run.begin)
    emit(at_most(f"start to first step at {SIZE} parameters", statistics.median(seconds[1:]), "s", START_LIMIT, "", runs))


def measure_stall(bench: Bench, runs: int) -> float:
    """Compares what saving costs with what it costs the Trainer; returns our share of a step's time."""
    sides = {
        "ours": lambda: {"stall": stall(ours(bench))},
        "theirs": lambda: {"stall": stall(theirs(bench))},
    }
    share, _ = interleave(sides, runs, "stall")
    peer = f"transformers' Trainer: {share['theirs']:.1f} %"
    emit(at_most(f"stall by a checkpoint every {EVERY} steps", share["ours"], "% of step time", STALL_LIMIT, peer, runs))
    return share["ours"]


def measure_kills(bench: Bench, runs: int, stalled: float) -> None:
    """Kills a run at random steps, times how long each kill throws it back, and prints the effective training time."""
    chance, lost, out = random.Random(0), [], bench.new_folder()
    target = EVERY
    for number in range(runs * KILLS_PER_RUN):
        target += chance.randrange(EVERY)  # any place between two checkpoints is as likely
        with training(bench, out, steps=STEPS, checkpoint_every=EVERY) as run:
            run.wait_for(target)
            run.kill()
            killed, done = time.perf_counter(), run.newest_step
        with training(bench, out, steps=STEPS, checkpoint_every=EVERY) as run:
            lost.append(run.wait_for(done) - killed)
        print(f"kill {number + 1}, after step {done}: {lost[-1]:.1f} s lost", file=sys.stderr)
        target = done // EVERY * EVERY + EVERY
    mean = statistics.fmean(lost)
    share = SECONDS_BETWEEN_KILLS / (SECONDS_BETWEEN_KILLS + mean) * (100 - stalled)
    peer = f"one kill every {SECONDS_BETWEEN_KILLS} s; each lost {mean:.1f} s (longest {max(lost):.1f})"
    emit(at_least("effective training time", share, "%", ETTR_LIMIT, peer, len(lost)))


def stall(intervals: dict[int, float]) -> float:
    """Returns by how many per cent the mean step is longer than the median one, over steps that hold two saves.

    Args:
        intervals: seconds from the end of the step before, by step.
    """
    counted = [intervals[step] for step in COUNTED]
    return max(0.0, 100 * (statistics.fmean(counted) / statistics.median(counted) - 1))


def ours(bench: Bench) -> dict[int, float]:
    """Returns the seconds of every step of a run that saves."""
    out = bench.new_folder()
    with training(bench, out, steps=STEPS, checkpoint_every=EVERY) as run:
        run.wait_for(COUNTED.stop)
    return {row["step"]: row["step_seconds"] for row in read_rows(out / METRICS) if "loss" in row}


def theirs(bench: Bench) -> dict[int, float]:
    """Returns the same of the Trainer, which saves before the next step begins."""
    options = {"per_device_train_batch_size": 4, "bf16": True, "save_strategy": "steps", "save_steps": EVERY}
    said = bench.theirs("pretrain", "blocks.jsonl", options, steps=COUNTED.stop)
    ends = said["ends"]
    return {step: after - before for step, (before, after) in enumerate(pairwise(ends), start=2)}


class Run:
    """A training process, watched through the history that it writes."""

    def __init__(self, command: list[str], out: Path) -> None:
        self.out = out
        self.before = max((row["restarts"] for row in read_rows(out / METRICS) if "restarts" in row), default=-1)
        self.begin = time.perf_counter()
        with (out.parent / "stderr").open("wb") as errors:
            self.process = subprocess.Popen(command, env=stage_environment(), stderr=errors)

    @property
    def newest_step(self) -> int:
        """The last step that this process has logged, 0 without one."""
        rows = read_rows(self.out / METRICS)
        return max((row["step"] for row in rows if "loss" in row and row["restarts"] > self.before), default=0)

    def wait_for(self, step: int) -> float:
        """Waits until this process has logged a step, and returns when that was."""
        while self.newest_step < step:
            if self.process.poll() is not None or time.perf_counter() - self.begin > DEADLINE:
                raise RuntimeError(f"{self.out}: ended, or did not come to step {step} in {DEADLINE} s")
            time.sleep(0.01)
        return time.perf_counter()

    def kill(self) -> None:
        """Ends it as a machine that goes away does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def training(bench: Bench, out: Path, **options: Any) -> Iterator[Run]:
    """Starts or continues a pretraining run in a folder, and kills it at the end."""
    run = Run(stage_command("training", bench.job(out, "pretrain", rows_per_step=4, **options), out), out)
    try:
        yield run
    finally:
        run.kill()


if __name__ == "__main__":
    main()
