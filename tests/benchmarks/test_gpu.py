"""The GPU's script on a CPU: the same code on a miniature, with nothing installed but torch and transformers."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

from benchmarks import gpu_bench
from training.config import TrainingConfig
from training.resources import Resources

ROOT = Path(__file__).parents[2]
GIVEN = ("torch", "transformers")
# Makes every installed library that torch and transformers do not ask for one that is not installed.
HOOK = """
import runpy, sys
from importlib.abc import MetaPathFinder

class Refusing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in REFUSED:
            found = (finder.find_spec(name, path, target) for finder in FINDERS)
            return next((spec for spec in found if spec), None)

    def find_distributions(self, *where):
        for finder in FINDERS:
            if hasattr(finder, "find_distributions"):
                yield from finder.find_distributions(*where)

REFUSED, FINDERS = frozenset(sys.argv[1].split(",")), list(sys.meta_path)
sys.meta_path[:] = [Refusing()]
sys.argv = ["benchmarks.gpu", *sys.argv[2:]]
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def needed() -> set[str]:
    """The distributions that torch and transformers need, and what these need."""
    found, waiting = set(), list(GIVEN)
    while waiting:
        name = normal(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            asked = requires(name) or []
        except PackageNotFoundError:
            continue  # of another platform
        waiting += [re.split(r"[^\w.-]", one, maxsplit=1)[0] for one in asked if "extra ==" not in one]
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def bare(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs the script as where nothing else is installed."""
    have = needed()
    refused = {
        module
        for module, owners in packages_distributions().items()
        if not have & {normal(owner) for owner in owners} and not (ROOT / module).is_dir()
    }
    refused |= {"pydantic"}  # which newer releases of a library for command lines ask for, and not every machine has
    assert {"prefect", "mlflow", "datasets", "peft", "accelerate", "deepspeed"} <= refused
    command = [sys.executable, "-c", HOOK, ",".join(sorted(refused)), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_it_measures_with_nothing_but_torch_and_transformers() -> None:
    options = ("--tiny", "--device", "cpu", "--runs", "2", "--only")
    done = bare(*options, "eager", "--only", "Liger's kernels", "--only", "TRL")
    assert done.returncode == 0, done.stderr
    figures = {figure["figure"]: figure for figure in map(json.loads, done.stdout.splitlines())}
    assert figures["eager: tokens per second"]["value"] > 0
    assert 0 < figures["eager: of the measured peak"]["value"] < 1
    assert "torch" in figures["eager: tokens per second"]["peer"]
    assert "Liger's kernels: skipped, job.yaml: resources.kernels: `liger` is for GPUs" in done.stderr
    assert "TRL: skipped, trl is not installed" in done.stderr


def test_it_checks_and_one_that_cannot_be_here_is_skipped() -> None:
    names = ("bf16, eager", "bf16, varlen", "FSDP2, one process", "a run resumes", "recomputed activations")
    done = bare("--check", "--device", "cpu", *(part for name in names for part in ("--only", name)))
    assert done.returncode == 0, done.stdout + done.stderr
    results = [line.split(maxsplit=1)[0] for line in done.stdout.splitlines()]
    assert results == ["ok", "skipped", "ok", "ok", "ok"], done.stdout


def test_a_failed_check_does_not_stop_the_rest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from benchmarks import gpu_checks

    def break_down(_device: torch.device) -> str:
        raise RuntimeError("out of order")

    monkeypatch.setattr(gpu_checks, "CHECKS", {"broken": break_down, "whole": lambda _device: "well"})
    assert gpu_checks.check_all(torch.device("cpu"), None) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("FAILED  broken")
    assert first.endswith("RuntimeError: out of order")
    assert second.startswith("ok      whole")


@pytest.mark.parametrize(("plain", "section"), [(gpu_bench.Training, TrainingConfig), (gpu_bench.Resources, Resources)])
def test_its_settings_are_those_of_training(plain: type, section: type) -> None:
    settled = {"precision", "objective"}  # a stage settles `auto`, and has no default objective
    for field in fields(plain):
        assert field.name in section.model_fields
        if field.name not in settled:
            assert field.default == section.model_fields[field.name].default
