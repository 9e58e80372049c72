"""A run that left checkpoints behind is not continued, and not thrown away, with another configuration or other data."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import LONG, start_and_signal
from tiny_training import ROOT, Command, pack_row, wait_until, write_packed

from lineage.changes import Change, find_changes
from training.manifest import FOLDER, find_checkpoints


@pytest.fixture
def killed(packed_data: Path, tmp_path: Path) -> tuple[Command, Path]:
    """A command over data of its own, and the folder of a run that was killed after its first checkpoint."""
    data = tmp_path / "data"
    shutil.copytree(packed_data, data)
    command = Command(data, tmp_path)
    start_and_signal(command, command.job("pretrain", **LONG), tmp_path / "out", signal.SIGKILL)
    return command, tmp_path / "out"


def test_another_configuration_is_refused_with_the_difference(killed: tuple[Command, Path]) -> None:
    command, out = killed
    job = command.job("pretrain", **{**LONG, "learning_rate": 5e-4, "seed": 3})
    code, _, errors = command.run(job, out)
    assert code == 2
    assert "Traceback" not in errors
    assert "training.learning_rate: 0.001 → 0.0005; training.seed: 0 → 3" in errors
    assert "--allow-change FIELD" in errors
    assert list((out / ".checkpoints").glob("step-*")), "the work of the killed run is gone"


def test_a_change_that_is_allowed_by_name_continues_and_the_record_tells(killed: tuple[Command, Path]) -> None:
    command, out = killed
    job = command.job("pretrain", **{**LONG, "steps": 70})
    code, errors = allow(command, job, out, "training.seed")
    assert code == 2, "another field was allowed"
    code, errors = allow(command, job, out, "training.steps")
    assert code == 0, errors
    assert "continuing from step-" in errors
    (change,) = json.loads((out / "changes.json").read_text())["changes"]
    assert change["fields"] == [{"field": "training.steps", "before": 60, "after": 70}]
    assert "changes.json" in json.loads((out / "record.json").read_text())["outputs"]


@pytest.mark.parametrize("damage", ["torn", "missing"])
def test_a_run_whose_start_is_not_on_record_keeps_its_checkpoints(killed: tuple[Command, Path], damage: str) -> None:
    command, out = killed
    if damage == "torn":
        (out / "started.json").write_text('{"finger')
    else:
        (out / "started.json").unlink()
    code, _, errors = command.run(command.job("pretrain", **LONG), out)
    assert code == 0, errors
    assert "continuing from step-" in errors


def test_a_model_of_another_size_takes_no_part_of_a_checkpoint(killed: tuple[Command, Path]) -> None:
    command, out = killed
    job = command.job("pretrain", **LONG)
    job.write_text(job.read_text().replace('"intermediate_size": 64', '"intermediate_size": 32'))
    code, errors = allow(command, job, out, "model")
    assert code == 2
    assert "numbers, but the model has" in errors


def test_other_data_is_refused_unless_allowed(killed: tuple[Command, Path]) -> None:
    command, out = killed
    generator = torch.Generator().manual_seed(99)
    write_packed(command.data, "pretrain", "train", [pack_row("pretrain", generator) for _ in range(12)])
    job = command.job("pretrain", **LONG)
    code, _, errors = command.run(job, out)
    assert code == 2
    assert "data/packed/pretrain/train.safetensors: " in errors
    code, errors = allow(command, job, out, "data")
    assert code == 0, errors


def test_a_change_is_allowed_once(killed: tuple[Command, Path]) -> None:
    command, out = killed
    job = command.job("pretrain", **{**LONG, "steps": 100_000})
    for more in (["--allow-change", "training.steps"], []):
        before = newest(out)
        process = command.start(job, out, more=more)
        wait_until(lambda before=before, process=process: newest(out) > before or process.poll() is not None)
        process.kill()
        _, errors = process.communicate()
        assert newest(out) > before, errors


def test_too_little_memory_says_what_to_change(training_command: Command, tmp_path: Path) -> None:
    job = training_command.job("sft", rows_per_step=64)
    value = json.loads(job.read_text())
    value["config"]["model"] |= {"hidden_size": 2048, "intermediate_size": 16384}
    job.write_text(json.dumps(value))
    limit = partial(resource.setrlimit, resource.RLIMIT_DATA, (2_000_000_000, 2_000_000_000))
    command = [sys.executable, "-m", "training", "--config", str(job), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, preexec_fn=limit, check=False)
    assert done.returncode == 1, done.stderr
    assert "error: out of memory (" in done.stderr
    assert "`accumulation: 2`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("names", "allowed"),
    [(["training.steps"], True), (["training"], True), (["train"], False), (["training.step"], False), ([], False)],
)
def test_names_cover_fields_and_sections(names: list[str], allowed: bool) -> None:
    assert Change("training.steps", 1, 2).allowed_by(names) == allowed


def test_differences_are_found_at_any_depth() -> None:
    before: dict[str, Any] = {"model": None, "training": {"steps": 1, "seed": 0}}
    after: dict[str, Any] = {"model": {"base": "x"}, "training": {"steps": 2, "seed": 0}}
    found = find_changes(before, after, {"data/a": "1" * 64}, {"data/a": "1" * 64, "data/b": "2" * 64})
    assert [str(change) for change in found] == [
        "model: None → absent",
        "model.base: absent → x",
        "training.steps: 1 → 2",
        "data/b: absent → 222222222222",
    ]


def allow(command: Command, job: Path, out: Path, field: str) -> tuple[int, str]:
    """Runs the command with one change allowed; returns its exit code and stderr."""
    process = command.start(job, out, more=["--allow-change", field])
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def newest(out: Path) -> int:
    """Returns the step of a run's newest checkpoint."""
    return max((found.step for found in find_checkpoints(out / FOLDER, verify=False)), default=0)
