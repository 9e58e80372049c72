"""Two real gloo processes, every engine: what each holds, that all learn the same, that each continues any other's run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_steps import Steps
from tiny_training import ROOT, TINY_MODEL

from training.processes import join_processes, leave_processes
from training.resources import Resources

PLACEMENTS: dict[str, dict[str, str]] = {
    "ddp": {"engine": "ddp"},
    "fsdp2": {"engine": "fsdp2"},
    "zero1": {"engine": "zero1"},
    "zero2": {"engine": "zero2"},
    "zero3": {"engine": "zero3"},
    "fsdp2, all offloaded": {"engine": "fsdp2", "offload": "all"},
    "zero1, optimizer offloaded": {"engine": "zero1", "offload": "optimizer"},
    "zero2, optimizer offloaded": {"engine": "zero2", "offload": "optimizer"},
    "zero3, all offloaded": {"engine": "zero3", "offload": "all"},
    "fsdp2, recomputing": {"engine": "fsdp2", "activation_checkpointing": "selective"},
    "zero3, recomputing": {"engine": "zero3", "activation_checkpointing": "full"},
}
HALF: dict[str, Any] = {"precision": "fp16"}
HIGH_SCALE = 2.0**22  # overflows for a few steps
MUON: dict[str, Any] = {"optimizer": "muon"}
STEPS = 3
# On two processes, then on one, then on two again: every engine takes over from another.
RELAYS = [("zero2", "fsdp2"), ("fsdp2", "zero1"), ("zero1", "zero3"), ("zero3", "ddp"), ("ddp", "zero2")]

pytestmark = pytest.mark.slow
Reports = dict[str, list[dict[str, Any]]]


def run_probe(data: Path, out: Path, scenarios: list[dict[str, Any]]) -> Reports:
    """Runs scenarios on two processes; returns the reports of both, by scenario."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    probe = [str(ROOT / "tests" / "training" / "engine_probe.py"), str(data), str(out), json.dumps(scenarios)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*torchrun, *probe], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


@pytest.fixture(scope="module")
def started(packed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reports]:
    """The first steps of every placement, with a checkpoint after them: the folder of the checkpoints, and the reports."""
    out = tmp_path_factory.mktemp("placements")
    scenarios: list[dict[str, Any]] = [{"name": name, "resources": asked} for name, asked in PLACEMENTS.items()]
    for engine in ("ddp", "fsdp2", "zero1", "zero3"):
        half = {"name": f"{engine}, fp16", "resources": {"engine": engine}, "training": HALF, "scale": HIGH_SCALE}
        scenarios.append(half)
    scenarios += [
        {"name": f"{engine}, muon", "resources": {"engine": engine}, "training": MUON} for engine in ("ddp", "fsdp2")
    ]
    for engine in ("ddp", "fsdp2", "zero1", "zero2", "zero3"):
        for offload in ("none", "optimizer") if engine == "zero2" else ("none",):
            asked = {"engine": engine, "offload": offload}
            scenarios.append(
                {"name": f"{engine}, {offload} offloaded, after a bad step", "resources": asked, "passed_over": 1}
            )
    bf16 = {"precision": "bf16"}  # for which DeepSpeed has another optimizer at this stage
    scenarios.append({"name": "zero1 in bf16", "resources": {"engine": "zero1"}, "training": bf16, "passed_over": 1})
    written = [{**one, "steps": 6 if "scale" in one else STEPS, "save": str(out / one["name"])} for one in scenarios]
    return out, run_probe(packed_data, out, written)


@pytest.fixture(scope="module")
def alone(packed_data: Path) -> Steps:
    """One process, after as many steps."""
    steps = Steps(packed_data)
    steps.take(STEPS)
    return steps


@pytest.fixture(scope="module")
def losses(packed_data: Path) -> list[float]:
    """The losses of one process, uninterrupted."""
    return [loss for loss, _ in Steps(packed_data).take(STEPS + 4)]


@pytest.mark.parametrize("name", PLACEMENTS)
def test_each_step_is_that_of_one_process(name: str, started: tuple[Path, Reports], losses: list[float]) -> None:
    for report in started[1][name]:
        assert report["losses"] + report["next"] == pytest.approx(losses[: STEPS + 2], abs=1e-5)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_the_processes_together_hold_every_number_once(name: str, started: tuple[Path, Reports]) -> None:
    reports = started[1][name]
    for part in ("weight", "exp_avg", "exp_avg_sq"):
        assert sum(report["held"].get(part, 0) for report in reports) == reports[0]["whole"], part


@pytest.mark.parametrize("name", PLACEMENTS)
def test_what_a_process_holds(name: str, started: tuple[Path, Reports], alone: Steps) -> None:
    whole = alone.held_bytes()
    for report in started[1][name]:
        share = report["held_bytes"] / whole
        if name.startswith(("fsdp2", "zero3")):  # weights, gradients and optimizer state
            assert share <= 0.6, share
        elif name.startswith("zero"):  # optimizer state alone: two of the three numbers per weight
            assert 0.6 < share < 0.9, share
        else:
            assert share == 1
        # A GPU must hold one block more than its share, not the whole model.
        assert (report["moved_whole"] == 0) == name.startswith(("fsdp2", "zero3"))
        assert report["all_dtensors"] == name.startswith("fsdp2")
        assert (report["resident"] == 0) == name.startswith("zero3")


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero1", "zero3"])
def test_fp16_skips_what_overflows_without_a_trace(engine: str, started: tuple[Path, Reports], packed_data: Path) -> None:
    reports = started[1][f"{engine}, fp16"]
    assert reports[0]["scale"] == reports[1]["scale"]
    skipped = reports[0]["scale"]["skipped_updates"]
    assert 0 < skipped < 6
    assert reports[0]["scale"]["loss_scale"] == HIGH_SCALE / 2**skipped
    late = Steps(packed_data, training=HALF)  # begins where the first update was made
    late.done = skipped
    expected = [loss for loss, _ in late.take(6 - skipped)]
    for report in reports:
        assert [norm == 0 for norm in report["norms"]] == [step < skipped for step in range(6)]
        assert report["losses"][skipped:] == pytest.approx(expected, abs=1e-3)


def test_a_step_that_is_passed_over_leaves_no_trace(started: tuple[Path, Reports], packed_data: Path) -> None:
    late, roughly = Steps(packed_data), Steps(packed_data, training={"precision": "bf16"})
    late.done = roughly.done = 1
    expected = [loss for loss, _ in late.take(STEPS + 2)]
    for name, reports in started[1].items():
        for report in reports if name.endswith("after a bad step") else ():
            assert report["losses"] + report["next"] == pytest.approx(expected, abs=1e-5), name
    expected = [loss for loss, _ in roughly.take(STEPS + 2)]
    for report in started[1]["zero1 in bf16"]:
        assert report["losses"] + report["next"] == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_muon_takes_whole_matrices_on_every_engine(engine: str, started: tuple[Path, Reports], packed_data: Path) -> None:
    expected = [loss for loss, _ in Steps(packed_data, training=MUON).take(STEPS + 2)]
    for report in started[1][f"{engine}, muon"]:
        assert report["losses"] + report["next"] == pytest.approx(expected, abs=1e-5)


def test_small_weights_that_deepspeed_keeps_whole_are_restored_too(
    started: tuple[Path, Reports], packed_data: Path, losses: list[float], tmp_path: Path
) -> None:
    file = tmp_path / "zero3.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 100}}))
    asked = {"engine": "zero3", "deepspeed_config": str(file)}
    # It computes a step with other weights first, so that it holds some when the saved ones come.
    scenario = {"name": "kept", "resources": asked, "load": str(started[0] / "zero1"), "passed_over_before": 1, "steps": 2}
    for report in run_probe(packed_data, tmp_path, [scenario])["kept"]:
        assert 0 < report["resident"] < report["whole"]
        assert report["losses"] == pytest.approx(losses[STEPS : STEPS + 2], abs=1e-5)


def test_every_engine_continues_what_another_began(
    started: tuple[Path, Reports], packed_data: Path, losses: list[float], tmp_path: Path
) -> None:
    """From two processes to one and back to two, with another engine each time."""
    scenarios: list[dict[str, Any]] = []
    kinds: list[tuple[str, dict[str, Any]]] = [("", {}), (", fp16", HALF), (", muon", MUON)]
    for suffix, training in kinds:
        relays = {", fp16": [("zero3", "ddp")], ", muon": [("fsdp2", "ddp")]}.get(suffix, RELAYS)
        for first, then in relays:
            middle = Steps(packed_data, training=training)
            middle.load(started[0] / f"{first}{suffix}")
            if middle.engine.loss_scale:  # away from the edge, where engines differ in what overflows
                middle.engine.loss_scale.scale /= 16
            expected = started[1][f"{first}{suffix}"][0]["next"]
            assert [loss for loss, _ in middle.take(2)] == pytest.approx(expected, abs=1e-3 if suffix == ", fp16" else 1e-5)
            folder = tmp_path / f"{first} {then}{suffix}"
            middle.save(folder)
            scenarios.append({
                "name": folder.name, "resources": {"engine": then}, "training": training, "load": str(folder), "steps": 2,
                "expected": [loss for loss, _ in middle.take(2)],
            })  # fmt: skip
    reports = run_probe(packed_data, tmp_path, scenarios)
    for scenario in scenarios:
        near = 1e-3 if "fp16" in scenario["name"] else 1e-5
        for report in reports[scenario["name"]]:
            assert report["losses"] == pytest.approx(scenario["expected"], abs=near), scenario["name"]
            if not scenario["training"]:
                assert report["losses"] == pytest.approx(losses[STEPS + 2 :], abs=near), scenario["name"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_a_gpu_never_holds_the_whole_model(engine: str, packed_data: Path) -> None:
    """With all weights on the CPU between their uses, building the engine needs one block's room."""
    large = {**TINY_MODEL, "hidden_size": 512, "intermediate_size": 2048, "num_layers": 24}
    processes = join_processes(Resources.model_validate({"engine": engine, "offload": "all"}), Path("test"))
    try:
        torch.cuda.reset_peak_memory_stats()
        steps = Steps(packed_data, {"engine": engine, "offload": "all"}, processes=processes, model=large)
        whole = 4 * sum(steps.num_weights.values())
        assert torch.cuda.max_memory_allocated() < whole / 4
        assert all(torch.isfinite(torch.tensor(loss)) for loss, _ in steps.take(2))
    finally:
        leave_processes()
