"""`goldpath checkpoints`: lists them, and with --verify tells the whole ones from the damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lineage.bundle import describe_file
from lineage.files import write_json
from training.manifest import FOLDER, MANIFEST, CheckpointManifest, Progress

WEIGHTS = "rank-00000.safetensors"


def plant(stage: Path, step: int) -> Path:
    """Writes what a checkpoint of one process looks like to a reader of manifests."""
    folder = stage / FOLDER / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(b"weights of step " + str(step).encode())
    manifest = CheckpointManifest(
        fingerprint="a" * 64,
        precision="fp32",
        progress=Progress(step=step, tokens=10 * step),
        files={WEIGHTS: describe_file(folder / WEIGHTS)},
    )
    write_json(folder / MANIFEST, manifest.sealed().model_dump(mode="json"))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a version that trained in two stages."""
    run = tmp_path / "home/runs/tiny/1"
    for stage, steps in (("pretrain", (5, 10)), ("sft", (3,))):
        for step in steps:
            plant(run / stage, step)
    return tmp_path / "home"


def checkpoints(home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "flows.cli", "checkpoints", *words]
    environment = os.environ | {"GOLDPATH_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def rows(home: Path, *words: str, code: int = 0) -> list[dict[str, object]]:
    done = checkpoints(home, *words, "--json")
    assert done.returncode == code, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)["checkpoints"]
    return found


def test_a_versions_checkpoints_are_listed_the_newest_of_each_stage_first(home: Path) -> None:
    found = rows(home, "tiny@1")
    assert [(row["stage"], row["step"], row["tokens"]) for row in found] == [
        ("pretrain", 10, 100),
        ("pretrain", 5, 50),
        ("sft", 3, 30),
    ]
    assert not any(row["verified"] for row in found)  # nobody asked
    assert [row["step"] for row in rows(home, str(home / "runs/tiny/1/sft"), "--verify")] == [3]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / WEIGHTS).write_bytes(b"Weights of step 10"), f"has other bytes in {WEIGHTS}"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"misses {WEIGHTS}"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "has no readable manifest"),
    ],
)
def test_a_damaged_checkpoint_is_found_and_named(home: Path, damage, problem) -> None:  # type: ignore[no-untyped-def]
    assert all(row["verified"] for row in rows(home, "tiny@1", "--verify"))
    damage(home / "runs/tiny/1/pretrain" / FOLDER / "step-000010")
    newest, *others = rows(home, "tiny@1", "--verify", code=1)
    assert str(newest["problem"]).startswith(problem)
    assert all(row["verified"] for row in others)


def test_an_unknown_run_is_bad_input(home: Path) -> None:
    for name in ("tiny@9", "nothing", str(home)):
        done = checkpoints(home, name)
        assert done.returncode == 2
        assert f"error: {name}: has no checkpoints. Fix:" in done.stderr


def test_people_get_a_table(home: Path) -> None:
    assert "not read: --verify does" in checkpoints(home, "tiny@1").stdout
    assert "whole" in checkpoints(home, "tiny@1", "--verify").stdout
