"""Two processes under torchrun: one that dies is started again, one that is wrong is not, and nobody is left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tiny_training import ROOT, Command, wait_until

from lineage.files import sha256_file
from training.last_words import ERROR_FILE, may_speak, was_said

RESOURCES = {"processes": 2, "engine": "ddp", "device": "cpu"}
LONG = {"steps": 150, "checkpoint_every": 10, "log_every": 10, "validation_rows": 1, "resources": RESOURCES}
WEIGHTS = Path("bundle") / "model.safetensors"


def start(job: Path, out: Path, restarts: int, launcher: str = "training.launch") -> "subprocess.Popen[str]":
    """Starts torchrun with two processes."""
    torchrun = [sys.executable, "-m", launcher, "--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    return subprocess.Popen(
        [*torchrun, "-m", "training", "--config", str(job), "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers_after_a_checkpoint(agent: "subprocess.Popen[str]", out: Path) -> list[psutil.Process]:
    """Returns the processes that train, the first rank first, once there is a checkpoint."""
    wait_until(lambda: any((out / ".checkpoints").glob("step-*")) or agent.poll() is not None)
    return sorted(psutil.Process(agent.pid).children(), key=lambda one: int(one.environ()["RANK"]))


@pytest.fixture(scope="module")
def undisturbed(packed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, Path, Path]:
    """The command, the job and the finished folder of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = Command(packed_data, folder)
    job = command.job("pretrain", **LONG)
    code, _, errors = command.run(job, folder / "out", processes=2)
    assert code == 0, errors
    return command, job, folder / "out"


# Plain torchrun leaves the addresses of the dead where the living look for each other.
@pytest.mark.parametrize(("launcher", "rank"), [("training.launch", 0), ("torch.distributed.run", 1)])
def test_a_killed_process_is_started_again_and_the_bytes_are_the_same(
    launcher: str, rank: int, undisturbed: tuple[Command, Path, Path], tmp_path: Path
) -> None:
    _, job, reference = undisturbed
    agent = start(job, tmp_path / "out", 1, launcher)
    workers_after_a_checkpoint(agent, tmp_path / "out")[rank].kill()
    _, errors = agent.communicate(timeout=120)
    assert agent.returncode == 0, errors
    assert "continuing from step-" in errors
    assert "Traceback" not in errors
    assert sha256_file(tmp_path / "out" / WEIGHTS) == sha256_file(reference / WEIGHTS)


def test_without_a_restart_left_the_error_names_who_was_killed(
    undisturbed: tuple[Command, Path, Path], tmp_path: Path
) -> None:
    agent = start(undisturbed[1], tmp_path / "out", 0)
    workers_after_a_checkpoint(agent, tmp_path / "out")[1].kill()
    _, errors = agent.communicate(timeout=120)
    assert agent.returncode == 128 + signal.SIGKILL
    (error,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "rank 1 (process" in error
    assert "was ended by SIGKILL, and no restart was left" in error
    assert "Traceback" not in errors


def test_the_first_process_of_an_attempt_speaks_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for attempt in (0, 1):
        for rank, first in ((1, True), (0, False)):
            file = tmp_path / f"attempt_{attempt}" / str(rank) / "error.json"
            file.parent.mkdir(parents=True)
            monkeypatch.setenv(ERROR_FILE, str(file))
            assert may_speak() == first
            assert was_said(file)
    monkeypatch.delenv(ERROR_FILE)
    assert may_speak()
    assert may_speak()


@pytest.mark.parametrize("launcher", ["training.launch", "torch.distributed.run"])
def test_what_all_meet_before_they_met_is_said_once(launcher: str, training_command: Command, tmp_path: Path) -> None:
    job = training_command.job("pretrain", no_such_option=3, resources=RESOURCES)
    agent = start(job, tmp_path / "out", 1, launcher)
    _, errors = agent.communicate(timeout=120)
    (error,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "no_such_option: unknown key" in error
    assert agent.returncode == (2 if launcher == "training.launch" else 1)


def test_what_would_only_come_again_is_said_once(training_command: Command, tmp_path: Path) -> None:
    job = training_command.job("pretrain", rows_per_step=3, resources=RESOURCES)
    agent = start(job, tmp_path / "out", 3)
    _, errors = agent.communicate(timeout=120)
    assert agent.returncode == 2
    (error,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "rows_per_step: is 3, no multiple of 2 processes" in error
    assert "Traceback" not in errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 138), (signal.SIGTERM, 143)])
def test_a_notice_to_torchrun_reaches_all_who_save(
    number: int, code: int, undisturbed: tuple[Command, Path, Path], tmp_path: Path
) -> None:
    _, job, _ = undisturbed
    agent = start(job, tmp_path / "out", 3)
    workers = workers_after_a_checkpoint(agent, tmp_path / "out")
    agent.send_signal(number)
    _, errors = agent.communicate(timeout=60)
    assert agent.returncode == code, errors
    assert f"ended by {signal.Signals(number).name}; run the same command again to continue" in errors
    assert not any(worker.is_running() for worker in workers)
    newest = max((tmp_path / "out" / ".checkpoints").glob("step-*"))
    assert (newest / "manifest.json").is_file()


def test_a_killed_torchrun_leaves_nobody_behind(undisturbed: tuple[Command, Path, Path], tmp_path: Path) -> None:
    _, job, _ = undisturbed
    agent = start(job, tmp_path / "out", 3, "torch.distributed.run")
    workers = workers_after_a_checkpoint(agent, tmp_path / "out")
    agent.kill()
    agent.communicate(timeout=60)  # the pipes close when the last of them has ended
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert len(gone) == 2
    assert not alive


def test_a_file_that_one_process_misses_is_one_error_for_all(training_command: Command, tmp_path: Path) -> None:
    """Two ranks with a folder of their own each, as on two nodes of which one lacks the data."""
    job = training_command.job("pretrain", resources=RESOURCES)
    script = tmp_path / "one-misses.py"
    script.write_text(
        "import os, runpy, sys\n"
        "from training import batches\n"
        "if os.environ['RANK'] == '1':\n"
        "    batches.ROW_KINDS['pretrain'] = 'lost'\n"
        "sys.argv[0] = 'training'\n"
        "runpy.run_module('training', run_name='__main__')\n"
    )
    torchrun = [sys.executable, "-m", "training.launch", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*torchrun, "--config", str(job), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: rank 1 on ")
    assert "lost/train.safetensors: is missing" in error
