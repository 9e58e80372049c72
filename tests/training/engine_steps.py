"""Some steps of an engine over the miniature rows, without the stage around it: what its losses are and what it holds."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tiny_training import TINY_MODEL
from torch import Tensor
from torch.distributed.tensor import DTensor

from training.batches import PackedRows, rows_of_step, share_of
from training.blocks import place_blocks
from training.checkpoint import Checkpoints
from training.config import ModelConfig, TrainingConfig
from training.engine import Engine, make_engine
from training.manifest import Progress
from training.model import build_model, plain_model
from training.objectives import Objective
from training.processes import Processes
from training.resources import Resources
from training.scoring import Scorer
from training.vocabulary import Vocabulary

ALONE = Processes(0, 1, torch.device("cpu"))


class Steps:
    """An engine and its rows.

    Args:
        data: a data stage's folder.
        resources, training: what a job would say, beside the defaults of a quick run.
    """

    def __init__(
        self,
        data: Path,
        resources: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        processes: Processes = ALONE,
        model: dict[str, int] = TINY_MODEL,
    ) -> None:
        quick = {"objective": "sft", "steps": 100, "rows_per_step": 4, "precision": "fp32", "learning_rate": 3e-3}
        self.config = TrainingConfig.model_validate({**quick, **(training or {})})
        self.resources = Resources.model_validate(resources or {})
        self.rows, self.processes = PackedRows(data, self.config.objective, "train"), processes
        vocabulary = Vocabulary(data / "tokenizer")
        built = build_model(ModelConfig(**model), None, vocabulary, self.config, self.rows.seq_len)
        self.num_weights = {f"model.{name}": p.numel() for name, p in built.named_parameters()}
        scorer = Scorer(built).train()  # before its blocks are placed, as in a stage
        place_blocks(plain_model(built), self.config, self.resources, processes.device, self.rows.seq_len)
        self.engine: Engine = make_engine(self.resources, scorer, self.config, processes)
        self.objective, self.done = Objective(self.rows), 0

    def take(self, count: int) -> list[tuple[float, float]]:
        """Takes steps; returns the loss and the gradient norm of each."""
        return [self._take_one() for _ in range(count)]

    def pass_over(self) -> None:
        """Computes a step's gradients and forgets them, as the guard does with a bad step."""
        self._learn()
        self.engine.clip()
        self.engine.forget()

    def _take_one(self) -> tuple[float, float]:
        loss = self._learn()
        norm = float(self.engine.clip())
        self.engine.apply(self.config.learning_rate)
        return loss, norm

    def _learn(self) -> float:
        config, processes = self.config, self.processes
        rows = rows_of_step(self.rows.num_rows, config.rows_per_step, config.seed, self.done)
        terms = self.rows.terms(self.rows.batch(rows))
        loss = torch.zeros(())
        turns = share_of(rows, processes.rank, processes.world, config.accumulation)
        for number, turn in enumerate(turns, start=1):
            batch = self.rows.batch(turn).to(processes.device)
            loss_of = partial(lambda batch, scores: self.objective.loss(batch, scores) / terms, batch)
            loss += self.engine.learn(batch, loss_of, last=number == len(turns)).cpu()
        self.done += 1
        return float(processes.sum(loss))

    def save(self, folder: Path) -> None:
        """Writes a checkpoint."""
        checkpoints = self._checkpoints(folder)
        checkpoints.begin(self.engine, Progress(step=self.done))
        checkpoints.commit()

    def load(self, folder: Path) -> None:
        """Continues from a folder's newest checkpoint, with the steps that follow."""
        self.done = self._checkpoints(folder).load_newest(self.engine).step

    def _checkpoints(self, folder: Path) -> Checkpoints:
        return Checkpoints(folder, ("0" * 64,), 2, self.processes)

    def held_bytes(self) -> int:
        """Returns the bytes of all storage that weights, gradients and optimizer state of this process lie in."""
        storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in self._state_tensors())}
        return sum(storages.values())

    def _state_tensors(self) -> Iterator[Tensor]:
        zero = getattr(self.engine, "_optimizer", None)
        optimizers = [zero.optimizer] if zero else self.engine.optimizers  # type: ignore[attr-defined]
        tensors: list[Any] = [*self.engine.scorer.parameters(), *(p.grad for p in self.engine.scorer.parameters())]
        tensors += [getattr(p, "ds_tensor", None) for p in self.engine.scorer.parameters()]
        for optimizer in optimizers:
            tensors += [p for group in optimizer.param_groups for p in group["params"]]
            tensors += [value for state in optimizer.state.values() for value in state.values()]
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                yield tensor._local_tensor if isinstance(tensor, DTensor) else tensor
