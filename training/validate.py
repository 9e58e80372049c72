"""Scoring rows without learning from them: validation, KTO's zero point; divided over the processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from training.batches import Batch, PackedRows
from training.engine import Engine
from training.objectives import Objective, UnpairedObjective

# Called by all processes before every batch: the watchdog hears of it, and a request to end is heeded (`Stopped`).
Beat = Callable[[str], None]


def unheard(_doing: str) -> None:
    """Where nobody listens."""


def score_rows(
    engine: Engine, data: PackedRows, rows: Sequence[int], beat: Beat = unheard
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


def validate(engine: Engine, objective: Objective, beat: Beat = unheard) -> dict[str, float]:
    """Returns the means over the validation rows of the objective's figures: `validation_loss`, and what it adds."""
    rows = validation_rows(engine, objective.data)
    objective = with_zero_point(engine, objective, rows, beat)
    sums: dict[str, Tensor] = {}
    engine.scorer.eval()
    for batch, scores in score_rows(engine, objective.data, rows, beat):
        for name, figures in objective.figures(batch, scores).items():
            sums[name] = sums.get(name, torch.zeros(2, dtype=torch.float64)) + torch.tensor(figures, dtype=torch.float64)
    engine.scorer.train()
    totals = engine.processes.sum(torch.stack(list(sums.values()))).tolist()
    return {name: total / (count or 1.0) for name, (total, count) in zip(sums, totals, strict=True)}


def with_zero_point(engine: Engine, objective: Objective, rows: Sequence[int], beat: Beat = unheard) -> Objective:
    """Returns the objective for these rows: KTO's with the zero point that they share, any other as it is.

    The zero point is the mean log-ratio of their mismatched answers, at least 0: an estimate of the KL divergence of the
    policy from the reference (Ethayarajh et al. 2024, section 4.1). It is taken over *all* rows of a step, whatever the
    processes and micro-batches, so any division of the rows gives the same update.
    """
    if not isinstance(objective, UnpairedObjective) or objective.mismatched is None:
        return objective
    mismatched, sums = objective.mismatched, torch.zeros(2, dtype=torch.float64)
    engine.scorer.eval()
    for batch, scores in score_rows(engine, mismatched.data, rows, beat):
        if batch.rows:
            sums += torch.tensor([float(mismatched.ratios(batch, scores).sum()), len(batch.examples)], dtype=torch.float64)
    engine.scorer.train()
    total, count = engine.processes.sum(sums).tolist()
    return replace(objective, zero_point=max(0.0, total / max(1.0, count)))
