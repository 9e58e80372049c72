"""The loop: one page for pretraining, SFT, DPO and KTO, on one process or many."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from statistics import fmean
from typing import NoReturn

import torch
from torch import Tensor

from lineage.errors import GoldpathError
from training.batches import Batch, rows_of_step, share_of
from training.checkpoint import Checkpoints
from training.config import TrainingConfig
from training.engine import Engine
from training.guard import MOST_IN_A_ROW, StepResult, find_fault, remember
from training.manifest import Progress
from training.objectives import Objective
from training.processes import Processes
from training.schedule import learning_rate
from training.stop import Stopped, StopRequest
from training.telemetry import Span, Telemetry
from training.validate import validate, with_zero_point
from training.watchdog import Watchdog


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
    watchdog: Watchdog
    progress: Progress
    _unread: list["StepFigures"] = field(default_factory=list)

    def run(self) -> None:
        """Trains from `progress` to the last step.

        Raises:
            Stopped: a signal asked for the end; the state is saved.
            GoldpathError: a bad step that the configuration does not pass over, or a checkpoint that cannot be written.
        """
        config = self.config
        if self.progress.step == 0 or self.progress.awaits_validation:
            self.validate()
        if self.progress.step == 0 and config.on_bad_step == "rewind":  # there must be something to go back to
            self.save()
        while self.progress.step < config.steps:
            self.update()
            step = self.progress.step
            signal_number, is_writing = self.processes.highest(self.stop.number, self.checkpoints.is_writing)
            if not is_writing:
                with self.engine.clock("checkpoint"):
                    self.checkpoints.commit()
            last = step == config.steps
            save = last or _due(step, config.checkpoint_every)
            validate = last or _due(step, config.validate_every)
            if save or validate or _due(step, config.log_every):
                self.log()
            if validate:
                self.validate()
            if save:
                self.save()
            if signal_number and not last:
                self.end(signal_number, saved=save)
        self.checkpoints.commit()

    def update(self) -> None:
        """Learns from one step's rows, unless the step is a bad one that the configuration passes over."""
        config, data, step, clock = self.config, self.train.data, self.progress.step, self.engine.clock
        self.watchdog.beat(f"step {step + 1}")
        with clock("data"):
            rows = rows_of_step(data.num_rows, config.rows_per_step, config.seed, step)
            everything = data.batch(rows)
        # The mean is over the terms of *all* processes and micro-batches: any division of the rows gives the same update.
        with clock("forward"):
            objective = with_zero_point(self.engine, self.train, rows)
        share = partial(_mean_share, objective, data.terms(everything) or 1)
        turns = share_of(rows, self.processes.rank, self.processes.world, config.accumulation)
        loss = torch.zeros((), device=self.processes.device)
        for number, part in enumerate(turns, start=1):
            with clock("data"):
                batch = data.batch(part).to(self.processes.device)
            loss += self.engine.learn(batch, partial(share, batch), last=number == len(turns))
        overflows = self.engine.overflows
        with clock("optimizer"):
            norm = self.engine.clip()
        size = (everything.tokens, everything.input_ids.numel(), len(everything.targets))
        figures = StepFigures(step, rows, size, learning_rate(config, step), loss, norm)
        self.progress = self.progress.after(everything.tokens)
        fault = self.judge(figures)
        if fault:
            self.pass_over(already_counted=self.engine.overflows > overflows)
        else:
            with clock("optimizer"):
                self.engine.apply(figures.rate)
            self._unread.append(figures)

    def judge(self, figures: "StepFigures") -> str:
        """Returns what is wrong with a step, "" for a good one. Where nothing could be done about it, `log` looks instead.

        So a GPU is waited for in every step only where the configuration asks for it.
        """
        config = self.config
        if config.on_bad_step == "halt" and not config.spike_deviations:
            return ""
        loss = float(self.processes.sum(figures.loss))
        result, recent = figures.result(loss, float(figures.grad_norm)), self.progress.recent_losses
        fault = find_fault(result, recent, config.spike_deviations)
        if not fault:
            recent = remember(recent, loss) if config.spike_deviations else recent
            self.progress = self.progress.model_copy(update={"recent_losses": recent, "bad_in_a_row": 0})
        elif config.on_bad_step == "halt" or self.progress.bad_in_a_row >= MOST_IN_A_ROW:
            self.halt(result, fault)
        elif self.telemetry:
            self.telemetry.log_bad_step(self.with_sources(result), fault, config.on_bad_step)
        return fault

    def pass_over(self, already_counted: bool) -> None:
        """Leaves the weights as they were before a bad step, or as they were in the newest checkpoint; the data goes on.

        Args:
            already_counted: the loss scale has discarded this very update, and counts it (`Engine.restore`).
        """
        now = self.progress
        self.engine.forget()
        passed_over = now.passed_over + (not already_counted)
        self.progress = now.model_copy(update={"passed_over": passed_over, "bad_in_a_row": now.bad_in_a_row + 1})
        if self.config.on_bad_step == "rewind":
            self.checkpoints.commit()
            before = self.checkpoints.load_newest(self.engine, to_rewind=True)
            gone = {"passed_over": now.step - before.updates, "recent_losses": before.recent_losses}
            self.progress = self.progress.model_copy(update=gone)

    def halt(self, result: StepResult, fault: str) -> NoReturn:
        """Ends the run at a bad step; a checkpoint that is being written is finished first.

        Raises:
            GoldpathError: naming the step and its rows.
        """
        self.checkpoints.commit()
        result, data = self.with_sources(result), self.train.data
        all_of_them = f" ({self.telemetry.keep_bad_step(result, fault)} names all)" if self.telemetry else ""
        file = data.readable if result.sources else data.path
        raise GoldpathError(
            f"{result}{all_of_them}: {fault}. Fix: lower `learning_rate`, lengthen `warmup_steps`, look at those rows of "
            f"{file}, or pass such steps over with `on_bad_step: skip` or `rewind`"
        ).met_together()

    def with_sources(self, result: StepResult) -> StepResult:
        """Returns a bad step with the ids of the rows that it read, as the person's own files have them."""
        return replace(result, sources=self.train.data.sources(result.rows))

    def end(self, signal_number: int, saved: bool) -> NoReturn:
        """Ends the run where it is. What the next log would tell is saved too, so that the history has no seam.

        Raises:
            Stopped: always.
        """
        if not saved:
            self.read_figures()
            self.save()
        self.checkpoints.commit()
        raise Stopped(signal_number)

    def log(self) -> None:
        """Logs what the steps since the last time came to."""
        if not self._unread and not self.progress.unlogged:  # all of them were passed over
            return
        span = self.read_figures()
        steps, losses, norms = zip(*self.progress.unlogged, strict=True)
        self.progress = self.progress.model_copy(update={"unlogged": ()})
        if self.telemetry:
            row = {
                "loss": fmean(losses),
                "learning_rate": learning_rate(self.config, steps[-1]),
                "grad_norm": norms[-1],
                "grad_norm_max": max(norms),
                **self.engine.scale_figures(),
            }
            self.telemetry.log_steps(self.progress, span, row)

    def read_figures(self) -> Span:
        """Reads the losses and norms of the steps since the last time. Only here does the CPU wait for a GPU.

        Returns:
            What this process has measured meanwhile.

        Raises:
            GoldpathError: naming the first step whose loss or gradient is no finite number, and its rows.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return Span(0, 0, 0, 0, self.engine.clock.read())
        losses = self.processes.sum(torch.stack([figures.loss for figures in unread])).tolist()
        norms = torch.stack([figures.grad_norm for figures in unread]).tolist()
        for figures, loss, norm in zip(unread, losses, norms, strict=True):
            result = figures.result(loss, norm)
            if fault := find_fault(result, (), 0.0):
                self.halt(result, fault)
        read = zip((figures.step for figures in unread), losses, norms, strict=True)
        self.progress = self.progress.model_copy(update={"unlogged": (*self.progress.unlogged, *read)})
        tokens, positions, targets = (sum(counts) for counts in zip(*(one.size for one in unread), strict=True))
        return Span(len(unread), tokens, positions, targets, self.engine.clock.read())

    def validate(self) -> None:
        """Scores the validation rows, and logs the result.

        Raises:
            Stopped: a signal asked for the end; the run that continues validates again.
        """
        try:
            with self.engine.clock("validation"):
                figures = validate(self.engine, self.validation, self.beat)
        except Stopped as stopped:
            if self.progress.step == 0:  # nothing was learnt yet
                raise
            self.progress = self.progress.model_copy(update={"awaits_validation": True})
            self.end(stopped.number, saved=False)
        self.progress = self.progress.model_copy(update={"awaits_validation": False})
        if not all(isfinite(figure) for figure in figures.values()):
            self.checkpoints.commit()
            raise GoldpathError(
                f"step {self.progress.step}: the validation gave {figures}. Fix: look at the rows of "
                f"{self.validation.data.path}; where the weights are at fault, lower `learning_rate`"
            ).met_together()
        if self.telemetry:
            self.telemetry.log_validation({"step": self.progress.step, **figures})

    def beat(self, doing: str) -> None:
        """Tells the watchdog what goes on, and heeds a request to end. All processes call it at the same point."""
        self.watchdog.beat(doing)
        self.stop.heed(self.processes)

    def save(self) -> None:
        """Begins a checkpoint; it counts once it is committed."""
        self.watchdog.beat(f"the checkpoint of step {self.progress.step}")
        durable_history = self.telemetry.history.make_durable if self.telemetry else lambda: None
        with self.engine.clock("checkpoint"):
            self.checkpoints.begin(self.engine, self.progress, durable_history)


@dataclass(frozen=True)
class StepFigures:
    """What one step came to: its rows over all processes, its learning rate, and tensors not yet read.

    Attributes:
        size: tokens that are no padding, the same with padding, and targets; over all processes.
        loss: this process's part of the mean loss; the sum over processes is the mean.
        grad_norm: the global norm, the same on all processes.
    """

    step: int
    rows: list[int]
    size: tuple[int, int, int]
    rate: float
    loss: Tensor
    grad_norm: Tensor

    def result(self, loss: float, norm: float) -> StepResult:
        """Returns what there is to judge, with the numbers that were read."""
        return StepResult(self.step, self.rows, loss, norm)


def _mean_share(objective: Objective, terms: float, batch: Batch, scores: Tensor) -> Tensor:
    return objective.loss(batch, scores) / terms


def is_regular(config: TrainingConfig) -> Callable[[int], bool]:
    """Returns which steps a run saves by its configuration, beside the last one: those that it may rewind to."""
    if config.on_bad_step != "rewind":
        return lambda step: True
    return lambda step: not step or _due(step, config.checkpoint_every)


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
