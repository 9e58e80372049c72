"""One update is the same however it is computed: split by accumulation, with activations recomputed, clipped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import TINY_MODEL

from training.batches import PackedRows, rows_of_step, share_of
from training.config import ModelConfig, TrainingConfig
from training.engine import SingleEngine
from training.model import build_model
from training.preference import LOSSES
from training.processes import Processes
from training.scoring import Scorer
from training.stage import make_objective
from training.validate import with_zero_point
from training.vocabulary import Vocabulary


@pytest.fixture
def take_step(packed_data: Path) -> Callable[..., tuple[float, dict[str, torch.Tensor]]]:
    """Takes one step with some options; returns the gradient norm and the weights, or with `gradients` those instead."""

    def take(
        objective: str = "sft", device: str = "cpu", gradients: bool = False, **options: Any
    ) -> tuple[float, dict[str, torch.Tensor]]:
        values = {"objective": objective, "steps": 1, "rows_per_step": 8, "precision": "fp32", **options}
        config = TrainingConfig.model_validate(values)
        data = PackedRows(packed_data, config.objective, "train")
        model = build_model(ModelConfig(**TINY_MODEL), None, Vocabulary(packed_data / "tokenizer"), config, data.seq_len)
        engine = SingleEngine(Scorer(model).train(), config, Processes(0, 1, torch.device(device)))
        loss = make_objective(engine, data, "train")
        if objective == "kto":
            with torch.no_grad():  # away from the reference, where the zero point is above 0
                model.get_input_embeddings().weight.mul_(1.5)
        rows = rows_of_step(data.num_rows, 8, config.seed, 0)
        loss = with_zero_point(engine, loss, rows)
        terms = data.terms(data.batch(rows))
        turns = share_of(rows, 0, 1, config.accumulation)
        for number, turn in enumerate(turns, start=1):
            batch = data.batch(turn).to(engine.processes.device)
            engine.learn(batch, lambda scores, b=batch: loss.loss(b, scores) / terms, last=number == len(turns))
        if gradients:
            return 0.0, {name: p.grad.clone() for name, p in engine.trained.items() if p.grad is not None}
        norm = float(engine.clip())
        engine.apply(0.01)
        return norm, engine.full_weights()

    return take


def difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Returns the largest difference of any weight."""
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@pytest.mark.parametrize("objective", ["pretrain", "sft", "dpo", "kto"])
def test_accumulation_changes_nothing(objective: str, take_step: Callable[..., Any]) -> None:
    _, whole = take_step(objective, gradients=True)
    for accumulation in (2, 8):
        _, parts = take_step(objective, gradients=True, accumulation=accumulation)
        assert difference(parts, whole) < 1e-6


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_accumulation_changes_no_loss_on_pairs(loss: str, take_step: Callable[..., Any]) -> None:
    options = {"dpo_loss": loss, "dpo_nll": 0.1, "dpo_label_smoothing": 0.001 if loss == "exo_pair" else 0.0}
    _, whole = take_step("dpo", gradients=True, **options)
    _, parts = take_step("dpo", gradients=True, accumulation=4, **options)
    assert difference(parts, whole) < 1e-6 * max(float(gradient.abs().max()) for gradient in whole.values()) + 1e-6


def test_clipping_limits_the_update_and_reports_the_norm_before(take_step: Callable[..., Any]) -> None:
    norm, _ = take_step(max_grad_norm=0)
    clipped_norm, clipped = take_step(max_grad_norm=norm / 10)
    assert clipped_norm == pytest.approx(norm)
    _, unclipped = take_step(max_grad_norm=norm * 10)
    _, never = take_step(max_grad_norm=0)
    assert difference(unclipped, never) == 0
    assert difference(clipped, never) > 0


def test_bf16_is_near_fp32_over_fp32_weights(take_step: Callable[..., Any]) -> None:
    norm, weights = take_step(precision="bf16")
    exact_norm, _ = take_step()
    assert norm == pytest.approx(exact_norm, rel=0.02)
    assert norm != exact_norm
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_adapters_alone_are_trained(take_step: Callable[..., Any]) -> None:
    _, weights = take_step("dpo", lora_rank=2)
    assert weights
    assert all("lora_" in name for name in weights)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_takes_the_same_step(take_step: Callable[..., Any]) -> None:
    norm, weights = take_step(device="cuda")
    cpu_norm, on_cpu = take_step()
    assert norm == pytest.approx(cpu_norm, rel=1e-3)
    assert difference(weights, on_cpu) < 1e-3
