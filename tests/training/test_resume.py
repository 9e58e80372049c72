"""A run that is killed, stopped or damaged ends with the very bytes of a run that was not."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from tiny_training import Command, wait_until

from lineage.files import sha256_file, write_json
from lineage.record import read_record
from lineage.stage import STARTED
from training.telemetry import METRICS, history_digest, read_rows

LONG = {"steps": 60, "rows_per_step": 8, "checkpoint_every": 5, "log_every": 5, "keep_checkpoints": 3, "precision": "bf16"}
WEIGHTS = Path("bundle") / "model.safetensors"


@pytest.fixture(scope="module")
def uninterrupted(packed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, Path, Path]:
    """The command, the job and the finished folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    command = Command(packed_data, folder)
    job = command.job("pretrain", **LONG)
    code, _, errors = command.run(job, folder / "out")
    assert code == 0, errors
    return command, job, folder / "out"


def start_and_signal(command: Command, job: Path, out: Path, number: int) -> "subprocess.Popen[str]":
    """Starts a run and sends it a signal as soon as its first checkpoint is whole."""
    process = command.start(job, out)
    wait_until(lambda: (out / ".checkpoints" / "step-000005").is_dir() or process.poll() is not None)
    process.send_signal(number)
    process.wait(timeout=60)
    assert not (out / "record.json").exists(), "the run was over before the signal came"
    return process


def test_kill_minus_9_then_the_same_command_gives_the_same_bits(
    uninterrupted: tuple[Command, Path, Path], tmp_path: Path
) -> None:
    command, job, reference = uninterrupted
    process = start_and_signal(command, job, tmp_path / "out", signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    code, _, errors = command.run(job, tmp_path / "out")
    assert code == 0, errors
    assert "continuing from step-" in errors
    for name in (WEIGHTS, Path("bundle") / "manifest.json", Path("initial") / "model.safetensors"):
        assert sha256_file(tmp_path / "out" / name) == sha256_file(reference / name), name


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_polite_signal_saves_a_checkpoint_first(
    uninterrupted: tuple[Command, Path, Path], tmp_path: Path, number: int, exit_code: int
) -> None:
    command, job, reference = uninterrupted
    process = start_and_signal(command, job, tmp_path / "out", number)
    assert process.returncode == exit_code
    assert "Traceback" not in (process.stderr.read() if process.stderr else "")
    code, _, errors = command.run(job, tmp_path / "out")
    assert code == 0, errors
    assert sha256_file(tmp_path / "out" / WEIGHTS) == sha256_file(reference / WEIGHTS)


def test_a_damaged_checkpoint_is_passed_over(uninterrupted: tuple[Command, Path, Path], tmp_path: Path) -> None:
    command, job, reference = uninterrupted
    out = rewound(reference, tmp_path / "out")
    victim = out / ".checkpoints" / "step-000060" / "rank-00000.safetensors"
    with victim.open("rb+") as file:  # one flipped bit, far inside
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-100, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    (out / ".checkpoints" / "step-000055" / "manifest.json").unlink()
    code, _, errors = command.run(job, out)
    assert code == 0, errors
    assert "step-000060: has other bytes in rank-00000.safetensors" in errors
    assert "step-000055: has no readable manifest" in errors
    assert "continuing from step-000050" in errors
    assert sha256_file(out / WEIGHTS) == sha256_file(reference / WEIGHTS)


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_dpo_of_all_weights_continues_exactly_on_shards(engine: str, packed_data: Path, tmp_path: Path) -> None:
    command = Command(packed_data, tmp_path)
    code, _, errors = command.run(command.job("pretrain"), tmp_path / "base")
    assert code == 0, errors
    resources = {"processes": 2, "engine": engine, "device": "cpu"}
    options = {"steps": 6, "rows_per_step": 4, "checkpoint_every": 3, "learning_rate": 0.01}
    job = command.job("dpo", base=tmp_path / "base", resources=resources, **options)
    code, _, errors = command.run(job, tmp_path / "whole", processes=2)
    assert code == 0, errors
    out = rewound(tmp_path / "whole", tmp_path / "continued")
    shutil.rmtree(out / ".checkpoints" / "step-000006")
    code, _, errors = command.run(job, out, processes=2)
    assert code == 0, errors
    assert "continuing from step-000003" in errors
    assert sha256_file(out / WEIGHTS) == sha256_file(tmp_path / "whole" / WEIGHTS)


def test_a_manifest_with_a_flipped_bit_is_damage(uninterrupted: tuple[Command, Path, Path], tmp_path: Path) -> None:
    command, job, reference = uninterrupted
    out = rewound(reference, tmp_path / "out")
    manifest = out / ".checkpoints" / "step-000060" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tokens": ', '"tokens": 1'))
    shutil.copytree(out / ".checkpoints" / "step-000055", out / ".checkpoints" / "step-000055.bak")
    code, _, errors = command.run(job, out)
    assert code == 0, errors
    assert "step-000060: has a damaged manifest" in errors
    assert sha256_file(out / WEIGHTS) == sha256_file(reference / WEIGHTS)


def test_history_of_work_that_was_lost_is_cut(uninterrupted: tuple[Command, Path, Path], tmp_path: Path) -> None:
    command, job, reference = uninterrupted
    out = rewound(reference, tmp_path / "out")
    shutil.rmtree(out / ".checkpoints" / "step-000060")
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')  # a line that the kill cut short
    code, _, errors = command.run(job, out)
    assert code == 0, errors
    steps = [line.split(",")[0] for line in (out / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert steps == [f'{{"step": {step}' for step in range(5, 61, 5)]


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\n", b'{"loss": 1}\n[]\n'])
def test_history_that_was_lost_or_damaged_comes_back_from_the_checkpoint(
    damage: bytes, uninterrupted: tuple[Command, Path, Path], tmp_path: Path
) -> None:
    command, job, reference = uninterrupted
    out = rewound(reference, tmp_path / "out")
    shutil.rmtree(out / ".checkpoints" / "step-000060")
    (out / METRICS).unlink()
    if damage:
        (out / METRICS).write_bytes(damage)
    code, _, errors = command.run(job, out)
    assert code == 0, errors
    assert history_digest(read_rows(out / METRICS)) == history_digest(read_rows(reference / METRICS))


def test_what_is_no_checkpoint_is_neither_read_nor_deleted(
    uninterrupted: tuple[Command, Path, Path], tmp_path: Path
) -> None:
    command, job, reference = uninterrupted
    out = rewound(reference, tmp_path / "out")
    checkpoints = out / ".checkpoints"
    shutil.rmtree(checkpoints / "step-000060")
    (checkpoints / "step-000060").write_text("where a checkpoint will be")
    (checkpoints / "step-000999").write_text("a file")
    (checkpoints / "step-000998").symlink_to(checkpoints / "step-000050")
    (checkpoints / "step-²").mkdir()
    code, _, errors = command.run(job, out)
    assert code == 0, errors
    assert "continuing from step-000055" in errors
    assert sha256_file(out / WEIGHTS) == sha256_file(reference / WEIGHTS)
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["step-000050", "step-000055", "step-000060", "step-000998", "step-000999", "step-²"]


def test_only_whole_checkpoints_are_kept_and_only_so_many(uninterrupted: tuple[Command, Path, Path]) -> None:
    names = sorted(path.name for path in (uninterrupted[2] / ".checkpoints").iterdir())
    assert names == ["step-000050", "step-000055", "step-000060"]


def rewound(finished: Path, out: Path) -> Path:
    """Returns a copy of a run as it was just before its end: checkpoints and history, but neither bundle nor record."""
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("bundle", "record.json"))
    write_json(out / STARTED, {"fingerprint": read_record(finished).fingerprint})
    return out
