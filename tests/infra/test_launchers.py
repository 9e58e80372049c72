"""The scripts that start training on many nodes, with real training behind them.

`ssh`, `srun` and `scontrol` are stand-ins, which run here what they are told to run elsewhere: the tests say that the
command lines are right and that all ends together, not that a cluster works.
"""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.training.tiny_training import (
    QUICK,
    ROOT,
    TINY_MODEL,
    VOCABULARY,
    pack_row,
    wait_until,
    write_packed,
    write_tokenizer,
)

SSH = """#!/bin/sh
# As sshd does: the words after `-o BatchMode=yes HOST` are one command line for a shell.
shift 3
exec sh -c "$*"
"""
SRUN = """#!/bin/sh
shift
exec "$@"
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$SAID"; fi
"""
pytestmark = pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="the scripts run the checkout's own .venv")


@pytest.fixture
def job_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a job over miniature data, and returns its path."""
    data = tmp_path / "data"
    write_tokenizer(data / "tokenizer", VOCABULARY)
    for seed, split in enumerate(("train", "validation")):
        generator = torch.Generator().manual_seed(seed)
        write_packed(data, "pretrain", split, [pack_row("pretrain", generator) for _ in range(8)])

    def write(processes: int, **training: Any) -> Path:
        resources = {"processes": processes, "engine": "ddp", "device": "cpu"}
        config = {"model": TINY_MODEL, "training": {**QUICK, "objective": "pretrain", **training}}
        job = {"name": "tiny", "version": "1", "stage": "pretrain", "config": config, "parents": {"data": str(data)}}
        path = tmp_path / "job.yaml"
        path.write_text(json.dumps({**job, "resources": resources}))
        return path

    return write


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """An environment with the stand-ins on its PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"ssh": SSH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    said = str(tmp_path / "said")
    return {**os.environ, "OMP_NUM_THREADS": "1", "SAID": said, "PATH": f"{folder}:{os.environ['PATH']}"}


def start(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def start_over_ssh(job: Path, out: Path, environment: dict[str, str]) -> "subprocess.Popen[str]":
    """Starts training on two addresses of this machine, one process each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hosts = {"HOSTS": "127.0.0.1 127.0.0.2", "PROCESSES_PER_HOST": "1", "RENDEZVOUS_PORT": str(port)}
    script = str(ROOT / "infra" / "multinode" / "ssh.sh")
    return start([script, "--config", str(job), "--out", str(out)], environment | hosts)


def trainers(out: Path) -> list[psutil.Process]:
    """Every process that was told to write into a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if str(out) in line and "training" in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_two_hosts_train_together(job_file: Callable[..., Path], programs: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    said, _ = start_over_ssh(job_file(2), out, programs).communicate(timeout=120)
    assert (out / "record.json").is_file(), said
    assert len(list((out / ".checkpoints").glob("step-000006/rank-*.safetensors"))) == 2
    assert '"metrics"' in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_every_host_ends_with_the_script(
    number: int, job_file: Callable[..., Path], programs: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    script = start_over_ssh(job_file(2, steps=100_000, checkpoint_every=20), out, programs)
    wait_until(lambda: any((out / ".checkpoints").glob("step-*")) or script.poll() is not None)
    assert len(trainers(out)) >= 4  # an agent and a process on each host
    script.send_signal(number)
    said, _ = script.communicate(timeout=60)
    wait_until(lambda: not trainers(out))
    assert script.returncode != 0
    assert "SIGTERM: saving a checkpoint, then ending" in said


def sbatch(job: Path, out: Path, environment: dict[str, str]) -> "subprocess.Popen[str]":
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1"}
    command = ["bash", str(ROOT / "infra" / "slurm" / "train.sbatch"), "--config", str(job), "--out", str(out)]
    return start(command, environment | slurm)


def test_a_slurm_job_that_is_out_of_time_saves_and_is_queued_again(
    job_file: Callable[..., Path], programs: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    batch = sbatch(job_file(1, steps=100_000, checkpoint_every=20), out, programs)
    wait_until(lambda: any((out / ".checkpoints").glob("step-*")) or batch.poll() is not None)
    (agent,) = [process for process in trainers(out) if "training.launch" in process.cmdline()]
    agent.send_signal(signal.SIGUSR1)
    said, _ = batch.communicate(timeout=60)
    assert batch.returncode == 128 + signal.SIGUSR1, said
    assert Path(programs["SAID"]).read_text() == f"requeue {os.getpid()}\n"


def test_a_slurm_job_that_is_wrong_is_not_queued_again(
    job_file: Callable[..., Path], programs: dict[str, str], tmp_path: Path
) -> None:
    job = job_file(1)
    job.write_text(job.read_text().replace('"stage": "pretrain"', '"stage": "sft"'))
    said, _ = (batch := sbatch(job, tmp_path / "out", programs)).communicate(timeout=60)
    assert batch.returncode == 2, said
    assert "is not the stage's name `sft`" in said
    assert not Path(programs["SAID"]).exists()


@pytest.mark.parametrize("script", ["multinode/ssh.sh", "slurm/train.sbatch"])
def test_scripts_are_bash(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "infra" / script)], check=True)
