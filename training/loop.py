"""The loop: one page for pretraining, SFT and DPO, on one process or many."""

import signal
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lineage.errors import GoldpathError
from training.batches import Batch, rows_of_step, share_of
from training.checkpoint import Checkpoints
from training.config import TrainingConfig
from training.engine import Engine
from training.manifest import Progress
from training.objectives import Objective
from training.processes import Processes, StopRequest
from training.schedule import learning_rate
from training.telemetry import Telemetry
from training.validate import validate


class Stopped(Exception):
    """The run was asked to end by a signal, and has saved its state."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"ended by {signal.Signals(number).name}; run the same command again to continue")


@dataclass
class Loop:
    """One training run, on this process.

    Attributes:
        train, validation: the loss, over the rows to learn from and over those to validate with.
        telemetry: on rank 0 only.
        progress: steps and tokens done.
    """

    config: TrainingConfig
    processes: Processes
    engine: Engine
    train: Objective
    validation: Objective
    checkpoints: Checkpoints
    telemetry: Telemetry | None
    stop: StopRequest
    progress: Progress
    _unread: list["StepFigures"] = field(default_factory=list)

    def run(self) -> None:
        """Trains from `progress` to the last step.

        Raises:
            Stopped: a signal asked for the end; the state is saved.
            GoldpathError: the loss or the gradient is no number any more.
        """
        config = self.config
        if self.progress.step == 0:
            self.validate()
        while self.progress.step < config.steps:
            self.update()
            step, signal_number = self.progress.step, self.stop.agreed(self.processes)
            last = step == config.steps
            save = last or signal_number or _due(step, config.checkpoint_every)
            validate = last or _due(step, config.validate_every)
            if save or validate or _due(step, config.log_every):
                self.log()
            if validate:
                self.validate()
            if save:
                self.save()
            if signal_number and not last:
                raise Stopped(signal_number)

    def update(self) -> None:
        """Learns from one step's rows."""
        config, data, step = self.config, self.train.data, self.progress.step
        rows = rows_of_step(data.num_rows, config.rows_per_step, config.seed, step)
        everything = data.batch(rows)
        # The mean is over the terms of *all* processes and micro-batches: any division of the rows gives the same update.
        share = partial(_mean_share, self.train, max(1, data.terms(everything)))
        turns = share_of(rows, self.processes.rank, self.processes.world, config.accumulation)
        loss = torch.zeros((), device=self.processes.device)
        for number, part in enumerate(turns, start=1):
            batch = data.batch(part).to(self.processes.device)
            loss += self.engine.learn(batch, partial(share, batch), last=number == len(turns))
        rate = learning_rate(config, step)
        self._unread.append(StepFigures(step, rows, everything.tokens, rate, loss, self.engine.step(rate)))
        self.progress = Progress(step=step + 1, tokens=self.progress.tokens + everything.tokens)

    def log(self) -> None:
        """Reads the figures of the steps since the last time. Only here does the CPU wait for a GPU.

        Raises:
            GoldpathError: naming the first step whose loss or gradient is no finite number, and its rows.
        """
        unread, self._unread = self._unread, []
        losses = self.processes.sum(torch.stack([figures.loss for figures in unread]))
        norms = torch.stack([figures.grad_norm for figures in unread]).cpu()
        for figures, loss, norm in zip(unread, losses.tolist(), norms.tolist(), strict=True):
            figures.require_finite(loss, norm)
        if self.telemetry:
            row = {"loss": float(losses.mean()), "learning_rate": unread[-1].rate, "grad_norm": float(norms[-1])}
            self.telemetry.log_steps(self.progress, sum(figures.tokens for figures in unread), row)

    def validate(self) -> None:
        """Scores the validation rows, and logs the result."""
        figures = validate(self.engine, self.validation)
        if self.telemetry:
            self.telemetry.log_validation({"step": self.progress.step, **figures})

    def save(self) -> None:
        """Writes a checkpoint."""
        if self.telemetry:
            self.telemetry.history.make_durable()
        self.checkpoints.save(self.engine, self.progress)
        if self.telemetry:
            self.telemetry.resume_clock()


@dataclass(frozen=True)
class StepFigures:
    """What one step came to: its rows and tokens over all processes, its learning rate, and tensors not yet read.

    Attributes:
        loss: this process's part of the mean loss; the sum over processes is the mean.
        grad_norm: the global norm, the same on all processes.
    """

    step: int
    rows: list[int]
    tokens: int
    rate: float
    loss: Tensor
    grad_norm: Tensor

    def require_finite(self, loss: float, norm: float) -> None:
        """Raises GoldpathError if the step's loss or gradient norm is no finite number."""
        if not torch.isfinite(torch.tensor([loss, norm])).all():
            raise GoldpathError(
                f"step {self.step + 1}: loss {loss}, gradient norm {norm} with training rows {self.rows}. "
                "Fix: lower `learning_rate`, lengthen `warmup_steps`, or look at those rows"
            )


def _mean_share(objective: Objective, terms: int, batch: Batch, scores: Tensor) -> Tensor:
    return objective.loss(batch, scores) / terms


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
