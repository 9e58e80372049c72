"""The stage on two real gloo processes with each engine: it learns what one process learns, and it resumes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import Command, wait_until

from lineage.files import write_json
from lineage.record import read_record
from lineage.stage import STARTED

ENGINES = ("ddp", "fsdp2", "zero2", "zero3")
TRAINING = {"steps": 8, "checkpoint_every": 4, "accumulation": 2, "learning_rate": 3e-3}
WEIGHTS = Path("bundle") / "model.safetensors"


def unfinish(out: Path) -> None:
    """Puts a finished run back to just after step 4, as a kill would leave it."""
    write_json(out / STARTED, {"fingerprint": read_record(out).fingerprint})
    (out / "record.json").unlink()
    shutil.rmtree(out / "bundle")
    shutil.rmtree(out / ".checkpoints" / "step-000008")


@pytest.fixture(scope="module")
def alone(packed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, Path]:
    """The command, and a finished run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    command = Command(packed_data, folder)
    code, _, errors = command.run(command.job("pretrain", **TRAINING), folder / "out")
    assert code == 0, errors
    return command, folder / "out"


def history(out: Path, key: str) -> list[float]:
    """Returns a figure of every row that has it."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_learn_what_one_learns_and_resume(engine: str, alone: tuple[Command, Path], tmp_path: Path) -> None:
    command, reference = alone
    job = command.job("pretrain", resources={"processes": 2, "engine": engine, "device": "cpu"}, **TRAINING)
    out = tmp_path / "out"
    code, said, errors = command.run(job, out, processes=2)
    assert code == 0, errors
    for key in ("loss", "grad_norm", "validation_loss"):
        assert history(out, key) == pytest.approx(history(reference, key), abs=2e-5), key
    uninterrupted = load_file(out / WEIGHTS)
    assert_close(uninterrupted, load_file(reference / WEIGHTS))

    unfinish(out)
    code, again, errors = command.run(job, out, processes=2)
    assert code == 0, errors
    assert "continuing from step-000004" in errors
    assert again["metrics"]["validation_loss"] == said["metrics"]["validation_loss"]
    resumed = load_file(out / WEIGHTS)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed)

    # The same checkpoint continues on one process: it belongs to no engine.
    unfinish(out)
    code, _, errors = command.run(command.job("pretrain", **TRAINING), out)
    assert code == 0, errors
    assert "continuing from step-000004" in errors
    assert_close(load_file(out / WEIGHTS), uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_adapters_train_on_shards(engine: str, alone: tuple[Command, Path], tmp_path: Path) -> None:
    command, base = alone
    options = {"steps": 3, "lora_rank": 2, "learning_rate": 0.01, "validation_rows": 3}
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    code, _, errors = command.run(command.job("dpo", base=base, **options), single)
    assert code == 0, errors
    resources = {"processes": 2, "engine": engine, "device": "cpu"}
    code, _, errors = command.run(command.job("dpo", base=base, resources=resources, **options), sharded, processes=2)
    assert code == 0, errors
    for key in ("loss", "validation_loss", "preference_accuracy"):
        assert history(sharded, key) == pytest.approx(history(single, key), abs=2e-5), key
    assert_close(load_file(sharded / WEIGHTS), load_file(single / WEIGHTS))


@pytest.mark.slow
def test_an_error_on_the_first_rank_ends_all(alone: tuple[Command, Path], tmp_path: Path) -> None:
    command, _ = alone
    job = command.job("pretrain", resources={"processes": 2, "engine": "ddp", "device": "cpu"}, **TRAINING)
    out = tmp_path / "out"
    out.write_text("a file where the folder should be")
    code, _, errors = command.run(job, out, processes=2)
    assert code == 1  # torchrun's own
    assert f"error: {out}: cannot be written" in errors
    assert f"rank 1: {out}: cannot be written" not in errors  # it is said once


@pytest.mark.slow
def test_ending_torchrun_politely_saves_a_checkpoint_that_all_continue_from(
    alone: tuple[Command, Path], tmp_path: Path
) -> None:
    command, _ = alone
    options = {"steps": 400, "checkpoint_every": 0, "log_every": 50, "validation_rows": 1}
    job = command.job("pretrain", resources={"processes": 2, "engine": "fsdp2", "device": "cpu"}, **options)
    process = command.start(job, tmp_path / "out", processes=2)
    history_file = tmp_path / "out" / "metrics.jsonl"
    wait_until(lambda: process.poll() is not None or (history_file.exists() and "tokens" in history_file.read_text()), 120)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    (checkpoint,) = (tmp_path / "out" / ".checkpoints").glob("step-*")
    assert sorted(path.name for path in checkpoint.glob("*.safetensors")) == [
        "rank-00000.safetensors",
        "rank-00001.safetensors",
    ]
    assert "ended by SIGTERM; run the same command again to continue" in errors
    code, said, errors = command.run(job, tmp_path / "out", processes=2)
    assert code == 0, errors
    assert f"continuing from {checkpoint.name}" in errors
    assert said["metrics"]["steps"] == 400


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Two models are the same up to the order in which fp32 sums were taken."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.allclose(tensor, right[name], atol=2e-5), name
