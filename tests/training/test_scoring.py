"""Packed rows score as their documents would alone, and the chunked log-softmax is torch's."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_training import TINY_MODEL

from training import scoring
from training.batches import PackedRows
from training.config import ModelConfig, TrainingConfig
from training.model import build_model
from training.scoring import Regularisation, Scorer, log_collisions
from training.vocabulary import Vocabulary


@pytest.fixture
def scorer(packed_data: Path) -> Scorer:
    """A tiny model whose attention matters: its weights are far larger than the initial ones."""
    config = TrainingConfig(objective="pretrain", steps=1)
    model = build_model(ModelConfig(**TINY_MODEL), None, Vocabulary(packed_data / "tokenizer"), config, 48)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return Scorer(model)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_document_sees_its_neighbours_in_the_row(
    scorer: Scorer, packed_rows: Callable[..., PackedRows], attention: str
) -> None:
    scorer.model.set_attn_implementation(attention)
    batch = packed_rows("pretrain").batch([0, 3])
    scores = scorer(batch.input_ids, batch.position_ids, batch.predictors, batch.targets)
    alone = []
    for row, positions in zip(batch.input_ids, batch.position_ids, strict=True):
        starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(row)]
        for start, stop in itertools.pairwise(starts):
            document = row[start:stop]
            if len(document) > 1 and document[0] == 1:  # padding is no document
                logits = scorer.model(input_ids=document[None], use_cache=False).logits[0]
                alone.append(logits.log_softmax(-1)[:-1].gather(1, document[1:, None])[:, 0])
    assert len(alone) > 4
    assert torch.allclose(scores, torch.cat(alone), atol=1e-5)


def test_the_test_above_would_see_a_leak(scorer: Scorer, packed_rows: Callable[..., PackedRows]) -> None:
    batch = packed_rows("pretrain").batch([0])
    scores = scorer(batch.input_ids, batch.position_ids, batch.predictors, batch.targets)
    running = torch.arange(batch.input_ids.shape[1])[None]  # positions that do not restart: one document
    leaked = scorer(batch.input_ids, running, batch.predictors, batch.targets)
    assert (scores - leaked).abs().max() > 1e-2


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_target_log_probabilities_and_their_gradient(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scoring.NUMBERS, "cpu", chunk * 50)
    logits = (torch.randn(20, 50) * 5).requires_grad_()
    targets, weights = torch.randint(0, 50, (20,)), torch.randn(20)
    ours = scoring._TargetLogProbabilities.apply(logits, targets, Regularisation())
    (gradient,) = torch.autograd.grad((ours * weights).sum(), logits)
    theirs = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (expected,) = torch.autograd.grad((theirs * weights).sum(), logits)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("chunk", [7, 1024])
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.1, 0.0), (0.0, 0.01), (0.2, 0.05)])
def test_regularised_scores_and_their_gradient(
    chunk: int, smoothing: float, z_loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scoring.NUMBERS, "cpu", chunk * 50)
    logits = (torch.randn(20, 50) * 5).requires_grad_()
    targets, weights = torch.randint(0, 50, (20,)), torch.randn(20)
    ours = scoring._TargetLogProbabilities.apply(logits, targets, Regularisation(smoothing, z_loss))
    (gradient,) = torch.autograd.grad((ours * weights).sum(), logits)
    smoothed = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    theirs = -smoothed - z_loss * logits.logsumexp(-1) ** 2
    (expected,) = torch.autograd.grad((theirs * weights).sum(), logits)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_validation_leaves_regularisation_out(scorer: Scorer, packed_rows: Callable[..., PackedRows]) -> None:
    batch = packed_rows("pretrain").batch([0])
    inputs = (batch.input_ids, batch.position_ids, batch.predictors, batch.targets)
    plain = scorer.train()(*inputs)
    regularised = Scorer(scorer.model, Regularisation(0.1, 0.01))
    assert torch.equal(regularised.eval()(*inputs), plain)
    assert not torch.allclose(regularised.train()(*inputs), plain)


def test_a_batch_without_targets_has_a_gradient_of_zero(scorer: Scorer, packed_rows: Callable[..., PackedRows]) -> None:
    blank = packed_rows("pretrain").batch([])
    assert (len(blank.targets), blank.tokens, blank.rows) == (0, 0, ())
    scorer(blank.input_ids, blank.position_ids, blank.predictors, blank.targets).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in scorer.parameters())


def test_collisions_are_the_chance_of_drawing_the_same_word_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scoring.NUMBERS, "cpu", 3)
    logits = torch.randn(7, 11) * 4
    assert torch.allclose(log_collisions(logits), logits.softmax(-1).square().sum(-1).log(), atol=1e-5)


def test_collisions_come_with_the_scores_of_training_alone(scorer: Scorer, packed_rows: Callable[..., PackedRows]) -> None:
    batch = packed_rows("dpo").batch([0])
    inputs = (batch.input_ids, batch.position_ids, batch.predictors, batch.targets)
    scorer.collisions = True
    plain = scorer.eval()(*inputs)
    scores, collisions = scorer.train()(*inputs)
    assert torch.equal(scores, plain)
    assert (collisions <= 0).all()
