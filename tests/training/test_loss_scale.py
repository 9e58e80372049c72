"""fp16: an overflow costs a step and nothing else, and a run that was interrupted goes on with the same scale."""

import json
from pathlib import Path

import pytest
import torch
from engine_steps import Steps
from safetensors.torch import load_file
from test_engines import history, unfinish
from tiny_training import Command

from lineage.errors import GoldpathError
from training.loss_scale import GROW_AFTER, LossScale

HALF = {"precision": "fp16"}


def test_the_scale_halves_and_doubles() -> None:
    scale = LossScale()
    assert not scale.accept(torch.tensor(float("inf")))
    assert not scale.accept(torch.tensor(float("nan")))
    assert (scale.scale, scale.skipped) == (2.0**14, 2)
    assert all(scale.accept(torch.tensor(1.0)) for _ in range(GROW_AFTER))
    assert (scale.scale, scale.quiet, scale.skipped) == (2.0**15, 0, 2)


def test_gradients_that_are_never_finite_end_the_run() -> None:
    scale = LossScale(2.0)
    assert not scale.accept(torch.tensor(float("inf")))
    with pytest.raises(GoldpathError, match="no finite numbers, even without loss scaling"):
        scale.accept(torch.tensor(float("inf")))


def test_fp16_is_near_fp32_over_fp32_weights(packed_data: Path) -> None:
    half, exact = Steps(packed_data, training=HALF), Steps(packed_data)
    assert [loss for loss, _ in half.take(5)] == pytest.approx([loss for loss, _ in exact.take(5)], abs=1e-3)
    assert all(weight.dtype == torch.float32 for weight in half.engine.full_weights().values())


def test_half_precision_really_computes_in_half_precision(packed_data: Path) -> None:
    steps, seen = Steps(packed_data, training=HALF), []
    head = steps.engine.scorer.model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    steps.take(1)
    assert seen == [torch.float16]


def test_a_checkpoint_among_overflows_continues_to_the_bit(packed_data: Path, tmp_path: Path) -> None:
    def start() -> Steps:
        steps = Steps(packed_data, training=HALF)
        assert steps.engine.loss_scale is not None
        steps.engine.loss_scale.scale = 2.0**24
        return steps

    uninterrupted = start()
    losses = uninterrupted.take(9)
    assert 2 < uninterrupted.engine.scale_figures()["skipped_updates"] < 8
    for done in (2, 8):  # before the first update, and after some
        first, second = start(), Steps(packed_data, training=HALF)
        first.take(done)
        first.save(tmp_path / str(done))
        second.load(tmp_path / str(done))
        assert second.take(9 - done) == losses[done:]
        expected = uninterrupted.engine.full_weights()
        assert all(torch.equal(weight, expected[name]) for name, weight in second.engine.full_weights().items())


def test_a_stage_in_fp16_tells_its_scale_and_resumes(training_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = training_command.job("pretrain", steps=8, checkpoint_every=4, **HALF)
    code, said, errors = training_command.run(job, out)
    assert code == 0, errors
    assert said["metrics"]["precision"] == "fp16"
    assert set(history(out, "loss_scale")) == {2.0**16}
    assert set(history(out, "skipped_updates")) == {0}
    weights = load_file(out / "bundle" / "model.safetensors")
    unfinish(out)
    code, _, errors = training_command.run(job, out)
    assert code == 0, errors
    assert "continuing from step-000004" in errors
    again = load_file(out / "bundle" / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert json.loads((out / ".checkpoints" / "step-000008" / "manifest.json").read_text())["precision"] == "fp16"
