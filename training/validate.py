"""Scoring rows without learning from them: validation, and DPO's reference; divided over the processes."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from training.batches import Batch, PackedRows
from training.config import WITHOUT_REFERENCE
from training.engine import Engine
from training.objectives import Objective, answer_scores

Beat = Callable[[str], None]  # `Watchdog.beat`


def _unheard(_doing: str) -> None:
    """Where no watchdog listens."""


def score_rows(
    engine: Engine, data: PackedRows, rows: Sequence[int], beat: Beat = _unheard
) -> Iterator[tuple[Batch, Tensor]]:
    """Yields this process's batches of the rows with the scores of their targets; calls `beat` with every batch.

    Sharded engines communicate in every forward pass, so every process makes the same number of them; one that runs out
    of rows scores a blank one.
    """
    config, processes = engine.config, engine.processes
    size = max(1, config.rows_per_step // (config.accumulation * processes.world))
    for start in range(0, len(rows), size * processes.world):
        mine = rows[start + processes.rank * size :][:size] if start + processes.rank * size < len(rows) else []
        batch = data.batch(mine).to(processes.device)
        beat(f"row {start} of {data.path}")
        yield batch, engine.score(batch)


def validation_rows(engine: Engine, data: PackedRows) -> range:
    """Returns the rows that every validation scores: the first `validation_rows`, or all."""
    return range(min(engine.config.validation_rows or data.num_rows, data.num_rows))


def validate(engine: Engine, objective: Objective, beat: Beat = _unheard) -> dict[str, float]:
    """Returns `validation_loss`, the mean over terms of the validation rows, and for DPO `preference_accuracy`."""
    data = objective.data
    rows = validation_rows(engine, data)
    sums = torch.zeros(3, dtype=torch.float64)  # loss, pairs ranked right, terms
    engine.scorer.eval()
    for batch, scores in score_rows(engine, data, rows, beat):
        terms = data.terms(batch)
        sums += torch.tensor([float(objective.loss(batch, scores)), objective.ranked_right(batch, scores), terms])
    engine.scorer.train()
    loss, right, terms = engine.processes.sum(sums).tolist()
    result = {"validation_loss": loss / max(1.0, terms)}
    return result | {"preference_accuracy": right / max(1.0, terms)} if objective.reference is not None else result


def reference_scores(engine: Engine, data: PackedRows, rows: Sequence[int], beat: Beat = _unheard) -> Tensor:
    """Returns the summed log-probabilities of every answer in these rows, (rows of the file, segments_per_row) fp32.

    Called before the first step, when the policy still is the reference. A resumed run calls it before it restores its
    weights, and gets the same numbers. Computing it once saves a forward pass of every step (Rafailov et al. 2023 score the
    reference in every step). Losses without reference get zeros, at no cost.
    """
    table = torch.zeros(data.num_rows, data.segments_per_row)
    if engine.config.dpo_loss in WITHOUT_REFERENCE:
        return table
    engine.scorer.eval()
    for batch, scores in score_rows(engine, data, rows, beat):
        if batch.rows:
            sums = answer_scores(batch, scores, data.segments_per_row)
            table[list(batch.rows)] = sums.view(len(batch.rows), -1).cpu()
    engine.scorer.train()
    return engine.processes.sum(table).float()
