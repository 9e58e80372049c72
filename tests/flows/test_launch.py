"""Stages as subprocesses: what a person could type, what they say when they fail, and that none is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from flows.launch import (
    SECONDS_TO_END,
    Meeting,
    StageFailed,
    end_patiently,
    run_stage,
    seconds_to_end,
    stage_command,
    waiting,
)
from flows.processes import GRACE, MARK, end_family, signals_end_with_cleanup
from flows.settings import Settings
from lineage.errors import ExitCode
from lineage.job import Job

DEADLINE = 60.0


def data_job(source):
    config = {"sources": [{"kind": "jsonl", "path": str(source), "rows": "sft"}]}
    return Job(name="m", version="1", stage="data", config=config)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    messages = '{"messages": [{"role": "user", "content": "q %d"}, {"role": "assistant", "content": "a %d"}]}\n'
    path.write_text("".join(messages % (i, i) for i in range(50)))
    return path


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home")


def stage_process(out):
    """Waits for the stage's process to start, and returns it."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if "data_contracts" in line and str(out) in line:
                return process
        time.sleep(0.02)
    raise AssertionError("the stage did not start")


def test_the_command_is_what_a_person_types(tmp_path):
    one = Job(name="m", version="1", stage="sft", config={})
    resources = {"processes": 2, "engine": "ddp", "restarts": 1}
    two = Job(name="m", version="1", stage="sft", config={}, resources=resources)
    assert stage_command(one, tmp_path)[1:3] == ["-m", "training"]
    torchrun = ["-m", "training.launch", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    assert stage_command(two, tmp_path)[1:9] == [*torchrun, "--shutdown-timeout=3600", "-m", "training"]
    four = two.model_copy(update={"resources": {"processes": 4, "nodes": 2, "engine": "ddp"}})
    other = stage_command(four, tmp_path, Meeting("first:29500", "id", is_first=False))
    assert other[3:9] == [
        "--nnodes=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=first:29500",
        "--rdzv-id=id",
        "--rdzv-conf=is_host=0",
        "--nproc-per-node=2",
    ]
    assert "--nproc-per-node=2" not in stage_command(two.model_copy(update={"stage": "evaluate"}), tmp_path)


def test_bad_input_keeps_its_exit_code_and_names_the_file_once(tmp_path, settings, capfd):
    with pytest.raises(StageFailed) as caught:
        run_stage(data_job(tmp_path / "missing.jsonl"), tmp_path / "out", settings)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert not caught.value.interrupted
    assert "missing.jsonl" in str(caught.value)
    assert "Fix:" in str(caught.value)
    assert f"replay: {sys.executable} -m data_contracts" in str(caught.value)
    assert "missing.jsonl" not in capfd.readouterr().err  # the caller prints the exception
    assert not (tmp_path / "out" / "record.json").exists()


def test_threads_spin_only_on_idle_cores(monkeypatch):
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: 3.0)
    assert waiting("sft") == waiting("evaluate") == {"GOMP_SPINCOUNT": "30000"}
    assert waiting("data") == {}  # it computes little, and is not made to wait for a look
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: 98.0)
    assert waiting("sft") == {}


def test_a_killed_stage_is_told_apart_from_bad_input(tmp_path, settings, rows):
    out = tmp_path / "out"
    killer = threading.Thread(target=lambda: stage_process(out).kill())
    killer.start()
    with pytest.raises(StageFailed) as caught:
        run_stage(data_job(rows), out, settings)
    killer.join()
    assert caught.value.interrupted
    assert caught.value.exit_code == ExitCode.ERROR
    assert "signal 9" in str(caught.value)
    assert not (out / "record.json").exists()


def test_a_training_stage_has_as_long_to_save_as_its_own_watchdog_gives_it():
    training = Job(name="m", version="1", stage="sft", config={})
    assert seconds_to_end(training) == 2 * 1800
    assert seconds_to_end(training.model_copy(update={"resources": {"hang_seconds": 100}})) == 200
    assert seconds_to_end(training.model_copy(update={"resources": {"hang_seconds": 0}})) == 86_400
    assert seconds_to_end(training.model_copy(update={"stage": "evaluate"})) == SECONDS_TO_END


SAVES_SLOWLY = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep({0}), print('saved', flush=True), sys.exit(7)))\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)"
)


def start_saver(seconds, **options):
    """Starts a process that takes so long to end when it is asked to."""
    script = [sys.executable, "-c", SAVES_SLOWLY.format(seconds)]
    process = subprocess.Popen(script, stdout=subprocess.PIPE, start_new_session=True, **options)
    assert process.stdout.readline() == b"ready\n"
    return process


def test_who_saves_is_left_its_time_and_who_hangs_is_killed():
    for seconds, grace, code in ((1.0, 30, 7), (30.0, 0.5, -signal.SIGKILL)):
        process = start_saver(seconds)
        end_patiently(process, grace)
        assert process.returncode == code


def test_a_second_ctrl_c_kills():
    process = start_saver(30.0)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        end_patiently(process, 60)
    assert process.returncode == -signal.SIGKILL


def test_the_end_of_a_service_waits_for_the_stage_that_saves():
    service = f"test-{os.getpid()}"
    process = start_saver(2.0, env={**os.environ, MARK: service, GRACE: "60"})
    end_family(service, None, patience=0.2)
    assert process.stdout.read() == b"saved\n"
    process = start_saver(30.0, env={**os.environ, MARK: service})
    end_family(service, None, patience=0.2)
    assert process.stdout.read() == b""


def test_a_second_signal_does_not_break_off_the_clean_up():
    with pytest.raises(SystemExit), signals_end_with_cleanup():  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            cleaned = True
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stage_ends_with_its_starter(tmp_path, number):
    endless = tmp_path / "rows.jsonl"
    os.mkfifo(endless)  # whoever reads it waits for a writer: the stage cannot finish before it is ended
    out, job = tmp_path / "out", data_job(endless)
    script = (
        "import sys; from pathlib import Path; from flows.launch import run_stage; from flows.settings import Settings\n"
        "from lineage.job import Job\n"
        "run_stage(Job.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Settings(home=Path(sys.argv[3])))"
    )
    command = [sys.executable, "-c", script, job.model_dump_json(), str(out), str(tmp_path / "home")]
    starter = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    stage = stage_process(out)
    os.kill(starter.pid, number)
    starter.wait(DEADLINE)
    stage.wait(DEADLINE)  # raises TimeoutExpired where the stage lives on
    assert not (out / "record.json").exists()
