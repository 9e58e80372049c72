"""A process that hangs is ended, and says where."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tiny_training import ROOT, Command, wait_until

from training.watchdog import Watchdog

SECONDS = 2


def test_it_keeps_still_while_somebody_beats(tmp_path: Path) -> None:
    with Watchdog(1, tmp_path / "stacks") as watchdog:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            watchdog.beat("a step")
            time.sleep(0.05)
    assert not (tmp_path / "stacks").exists()


def test_two_processes_of_which_one_hangs_end_with_the_place_and_a_code_that_says_try_again(
    training_command: Command, tmp_path: Path
) -> None:
    resources = {"processes": 2, "engine": "ddp", "device": "cpu", "hang_seconds": SECONDS}
    job = training_command.job("pretrain", steps=100_000, rows_per_step=4, checkpoint_every=20, resources=resources)
    out = tmp_path / "out"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [start_rank(rank, port, job, out) for rank in (0, 1)]
    try:
        wait_until(lambda: (out / ".checkpoints" / "step-000020").is_dir() or ranks[0].poll() is not None)
        os.kill(ranks[1].pid, signal.SIGSTOP)
        _, errors = ranks[0].communicate(timeout=60)
        assert ranks[0].returncode == os.EX_TEMPFAIL, errors
        assert f"error: nothing happened for {SECONDS} s in step" in errors
        assert "Fix: run the same command again" in errors
        assert "loop.py" in (out / ".hang-0.txt").read_text()
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def start_rank(rank: int, port: int, job: Path, out: Path) -> "subprocess.Popen[str]":
    """Starts one of two processes without torchrun, which would end the hanging one itself."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, "-m", "training", "--config", str(job), "--out", str(out)],
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            **{name: str(value) for name, value in place.items()},
            "MASTER_PORT": str(port),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
