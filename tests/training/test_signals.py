"""Signals wherever they come: in the reference's scoring, in a validation, between two logs, in a storm."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_training import ROOT, Command, wait_until

from lineage.files import sha256_file, write_json
from lineage.record import read_record
from lineage.stage import STARTED
from training.manifest import find_checkpoints
from training.telemetry import history_digest, read_rows

WEIGHTS = Path("bundle") / "model.safetensors"
SLOW = """
import runpy, sys, time
from training import checkpoint, engine, reference

def slowly(function, seconds):
    def slow(*arguments, **options):
        time.sleep(seconds)
        return function(*arguments, **options)
    return slow

reference.SECONDS_PER_PIECE = 0
engine.SingleEngine.score = slowly(engine.SingleEngine.score, {score})
engine.SingleEngine.learn = slowly(engine.SingleEngine.learn, {learn})
checkpoint.sync_file = slowly(checkpoint.sync_file, {sync})
sys.argv[0] = "training"
runpy.run_module("training", run_name="__main__")
"""


def start_slowly(
    job: Path, out: Path, processes: int, score: float = 0, learn: float = 0, sync: float = 0
) -> "subprocess.Popen[str]":
    """Starts the command so slowly that a signal meets it where it is meant to."""
    script = out.parent / "slow.py"
    script.write_text(SLOW.format(score=score, learn=learn, sync=sync))
    launcher = ["-m", "training.launch", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), "--config", str(job), "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: "subprocess.Popen[str]", number: int, whole_group: bool = False) -> str:
    """Sends a signal, waits for the end, and returns what was said."""
    if whole_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    return process.communicate(timeout=120)[1]


def same_run(left: Path, right: Path) -> bool:
    """Whether two runs ended with the same weights and the same history."""
    digests = [(sha256_file(out / WEIGHTS), history_digest(read_rows(out / "metrics.jsonl"))) for out in (left, right)]
    return digests[0] == digests[1]


def was_validated(out: Path) -> bool:
    """Whether a run is past its first validation."""
    return bool(read_rows(out / "metrics.jsonl"))


def resources(processes: int) -> dict[str, Any]:
    """What a job says of its processes."""
    return {"processes": processes, "engine": "ddp", "device": "cpu"} if processes > 1 else {}


@pytest.mark.parametrize(("stage", "processes"), [("dpo", 1), ("kto", 2)])
def test_scoring_the_reference_goes_on_where_it_was_killed(
    stage: str, processes: int, training_command: Command, tmp_path: Path
) -> None:
    command, out = training_command, tmp_path / "out"
    code, _, errors = command.run(command.job("pretrain"), tmp_path / "base")
    assert code == 0, errors
    options = {"steps": 4, "rows_per_step": 2, "log_every": 2, "learning_rate": 1e-3}
    job = command.job(stage, base=tmp_path / "base", resources=resources(processes), **options)
    code, _, errors = command.run(job, tmp_path / "whole", processes)
    assert code == 0, errors

    kept = out / ".checkpoints" / "reference"
    process = start_slowly(job, out, processes, score=0.3)
    wait_until(lambda: any(kept.glob("train-*.scores")) or process.poll() is not None)
    errors = end(process, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM, errors
    first = set(kept.iterdir())
    process = start_slowly(job, out, processes, score=0.3)
    wait_until(lambda: set(kept.glob("*.scores")) > first or process.poll() is not None)
    errors = end(process, signal.SIGKILL, whole_group=True)
    assert "rows of train.safetensors keep the reference's scores" in errors
    assert not (out / "metrics.jsonl").exists(), "the run was past its scoring"

    damaged = min(kept.glob("*.scores"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    code, _, errors = command.run(job, out, processes)
    assert code == 0, errors
    assert f"{damaged.name}: is damaged, or of another run; its rows are scored again" in errors
    assert same_run(out, tmp_path / "whole")


def test_scores_of_another_base_are_not_believed(training_command: Command, tmp_path: Path) -> None:
    command, outs = training_command, [tmp_path / name for name in ("first", "second", "expected")]
    bases = [tmp_path / "base-1", tmp_path / "base-2"]
    for seed, base in enumerate(bases):
        code, _, errors = command.run(command.job("pretrain", seed=seed), base)
        assert code == 0, errors
    jobs = [command.job("dpo", base=base, steps=2) for base in bases]
    for job, out in ((jobs[0], outs[0]), (jobs[1], outs[2])):
        code, _, errors = command.run(job, out)
        assert code == 0, errors
    (outs[1] / ".checkpoints").mkdir(parents=True)
    (outs[0] / ".checkpoints" / "reference").rename(outs[1] / ".checkpoints" / "reference")
    write_json(outs[1] / STARTED, {"fingerprint": read_record(outs[2]).fingerprint})
    code, _, errors = command.run(jobs[1], outs[1])
    assert code == 0, errors
    assert "is damaged, or of another run" in errors
    assert same_run(outs[1], outs[2])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_validation_that_a_signal_ends_is_repeated(processes: int, training_command: Command, tmp_path: Path) -> None:
    options = {"steps": 8, "validate_every": 4, "log_every": 3, "checkpoint_every": 3, "resources": resources(processes)}
    job, out = training_command.job("pretrain", **options), tmp_path / "out"
    code, _, errors = training_command.run(job, tmp_path / "whole", processes)
    assert code == 0, errors
    for step in (4, 8):
        process = start_slowly(job, out, processes, score=0.7)
        wait_until(
            lambda step=step, process=process: (
                any(row["step"] == step for row in read_rows(out / "metrics.jsonl")) or process.poll() is not None
            )
        )
        errors = end(process, signal.SIGTERM)
        assert process.returncode == 128 + signal.SIGTERM, errors
        newest = next(find_checkpoints(out / ".checkpoints", verify=True))
        assert newest.manifest is not None
        assert newest.manifest.progress.step == step
        assert newest.manifest.progress.awaits_validation
    code, _, errors = training_command.run(job, out, processes)
    assert code == 0, errors
    assert same_run(out, tmp_path / "whole")


@pytest.mark.parametrize("processes", [1, 3])  # DDP's buckets decide how three numbers are summed
def test_signals_between_two_logs_leave_no_seam_in_the_history(
    processes: int, training_command: Command, tmp_path: Path
) -> None:
    options = {"steps": 20, "rows_per_step": 6, "log_every": 10, "checkpoint_every": 0, "resources": resources(processes)}
    job, out = training_command.job("pretrain", **options), tmp_path / "out"
    code, _, errors = training_command.run(job, tmp_path / "whole", processes)
    assert code == 0, errors
    process = start_slowly(job, out, processes, learn=0.15)
    wait_until(lambda: was_validated(out) or process.poll() is not None)
    errors = end(process, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM, errors
    newest = next(find_checkpoints(out / ".checkpoints", verify=True))
    assert newest.manifest is not None
    assert len(newest.manifest.progress.unlogged) == newest.step % 10 > 0
    code, _, errors = training_command.run(job, out, processes)
    assert code == 0, errors
    assert same_run(out, tmp_path / "whole")


def test_a_storm_of_signals_does_not_break_off_a_checkpoint(training_command: Command, tmp_path: Path) -> None:
    """The agent that torchrun starts would break off its own shutdown at the second signal, and leave its processes."""
    options = {"steps": 400, "log_every": 50, "checkpoint_every": 0, "validation_rows": 1, "resources": resources(2)}
    job, out = training_command.job("pretrain", **options), tmp_path / "out"
    process = start_slowly(job, out, 2, learn=0.05, sync=1.0)
    wait_until(lambda: was_validated(out) or process.poll() is not None)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP) * 3:
        process.send_signal(number)
        time.sleep(0.1)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, errors
    (found,) = find_checkpoints(out / ".checkpoints", verify=True)
    assert not found.problem
    assert not (out / ".checkpoints" / ".writing").exists()
