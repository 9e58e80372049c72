"""The losses against their formulas, written out by hand."""

from collections.abc import Callable

import pytest
import torch

from training.batches import PackedRows
from training.config import TrainingConfig
from training.objectives import PairObjective, answer_scores, next_token_loss
from training.schedule import learning_rate


def test_next_token_loss_is_the_summed_cross_entropy() -> None:
    logits, targets = torch.randn(9, 5), torch.randint(0, 5, (9,))
    scores = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert next_token_loss(scores) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    )


def test_answers_are_summed_by_document(packed_rows: Callable[..., PackedRows]) -> None:
    data = packed_rows("dpo")
    batch = data.batch([4, 1])
    scores = -torch.rand(len(batch.targets))
    sums = answer_scores(batch, scores, data.segments_per_row)
    by_hand = torch.zeros(2 * data.segments_per_row)
    for score, segment in zip(scores, batch.segments, strict=True):
        by_hand[segment] += score
    assert torch.allclose(sums, by_hand)


def test_ranking_counts_pairs_whose_chosen_answer_is_likelier(packed_rows: Callable[..., PackedRows]) -> None:
    data = packed_rows("dpo")
    batch = data.batch([0])
    reference = torch.zeros(data.num_rows, data.segments_per_row)
    objective = PairObjective(data, TrainingConfig(objective="dpo", steps=1), reference)
    favour_chosen = torch.where(batch.segments % 2 == 0, -0.1, -9.0)
    pairs = len(batch.examples)
    assert objective.figures(batch, favour_chosen)["preference_accuracy"] == (pairs, pairs)
    assert objective.figures(batch, -9.1 - favour_chosen)["preference_accuracy"] == (0, pairs)


def test_schedules() -> None:
    def rates(**changes: object) -> list[float]:
        values = {"objective": "sft", "steps": 11, "learning_rate": 1.0, "final_fraction": 0.1, **changes}
        config = TrainingConfig.model_validate(values)
        return [round(learning_rate(config, step), 4) for step in range(11)]

    assert rates(schedule="constant", warmup_steps=3) == [0.25, 0.5, 0.75] + [1.0] * 8
    cosine = rates(schedule="cosine")
    assert (cosine[0], cosine[5], cosine[10]) == (1.0, 0.55, 0.1)
    assert cosine == sorted(cosine, reverse=True)
    assert rates(schedule="wsd", decay_steps=3) == [1.0] * 8 + [0.7, 0.4, 0.1]
