"""Data versions: a real `dvc repro`, a real restore from the remote, and a refusal of what the remote has spoilt."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_corpus import run_data, write_corpus

from lineage.record import read_record

ROOT = Path(__file__).resolve().parents[2]
DVC = Path(sys.executable).with_name("dvc")


def stored_file(home: Path, content: bytes) -> Path:
    """The remote's copy of a file."""
    return next(path for path in (home / "dvc" / "remote").rglob("*") if path.is_file() and path.read_bytes() == content)


def test_a_data_version_comes_back_byte_for_byte_and_spoilt_ones_are_refused(data_run: Path, tmp_path: Path) -> None:
    home, out = tmp_path / "home", data_run / "out"
    shutil.copytree(data_run / "home", home)
    record = read_record(out)
    back = tmp_path / "back"
    done = run_data("--restore", "tiny@1.0.0", "--out", back, home=home)
    assert done.returncode == 0, done.stderr
    assert record.stamp.data_version in done.stdout
    assert record.stamp.data_version.endswith(".dir")
    restored = {path.relative_to(back).as_posix() for path in back.rglob("*") if path.is_file()}
    assert restored == set(record.outputs)
    assert all((back / name).read_bytes() == (out / name).read_bytes() for name in restored)
    assert not list((home / "dvc" / "remote").rglob(".*.tmp"))

    shutil.rmtree(home / "dvc" / "cache")
    stored = stored_file(home, (out / "rows" / "sft" / "train.jsonl").read_bytes())
    stored.chmod(0o644)
    good = stored.read_bytes()
    stored.write_bytes(good.replace(b"house", b"hause", 1))
    done = run_data("--restore", "tiny@1.0.0", "--out", tmp_path / "spoilt", home=home)
    assert done.returncode == 2
    assert "rows/sft/train.jsonl: is not what was versioned" in done.stderr
    assert not (tmp_path / "spoilt").exists()

    stored.write_bytes(good)  # what was mended must not be shadowed by a cache that still holds the spoilt bytes
    assert run_data("--restore", "tiny@1.0.0", "--out", tmp_path / "mended", home=home).returncode == 0


@pytest.mark.parametrize(("address", "said"), [("tiny", "not of the form"), ("tiny@9", "is no data version here")])
def test_restoring_what_there_is_not_is_bad_input(data_run: Path, tmp_path: Path, address: str, said: str) -> None:
    done = run_data("--restore", address, "--out", tmp_path / "x", home=data_run / "home")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_dvc_repro_runs_the_stage_once(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    for room in ("lineage", "data_contracts"):
        shutil.copytree(ROOT / room, project / room, ignore=shutil.ignore_patterns("__pycache__"))
    write_corpus(project / "flows" / "recipes").rename(project / "flows" / "recipes" / "pystdlib.yaml")
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (project / ".venv" / "pyvenv.cfg").write_text("version = 3.11\n")
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)

    first = repro(project)
    assert "Running stage 'data'" in first.stdout
    record = read_record(project / ".goldpath" / "data" / "pystdlib")
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    assert lock["stages"]["data"]["outs"][0]["md5"] == record.stamp.data_version
    assert "didn't change, skipping" in repro(project).stdout

    recipe = project / "flows" / "recipes" / "pystdlib.yaml"
    recipe.write_text(recipe.read_text().replace('"seq_len": 128', '"seq_len": 96'))
    assert "Running stage 'data'" in repro(project).stdout
    changed = read_record(project / ".goldpath" / "data" / "pystdlib")
    assert changed.stamp.data_version != record.stamp.data_version


def repro(project: Path) -> "subprocess.CompletedProcess[str]":
    """Types `dvc repro` at a project's root."""
    environment = {name: value for name, value in os.environ.items() if name != "GOLDPATH_HOME"}
    environment |= {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(project.parent / "dvc"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [DVC, "repro"], cwd=project, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done
