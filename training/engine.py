"""How one update is computed: on one process, on copies of the model, or on shards. The loop sees the same six verbs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.batches import Batch
from training.clock import StepClock
from training.config import EngineName, TrainingConfig
from training.hardware import Precision
from training.processes import Processes
from training.scoring import Scorer

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state per weight, in torch's names
KEPT = ("weight", *MOMENTS)


@dataclass(frozen=True)
class Piece:
    """One process's share of one tensor of the training state, as a range of the flattened full tensor.

    Every engine divides tensors into such ranges (one process: the whole), which makes checkpoints independent of the
    engine and of the number of processes.

    Attributes:
        name: the parameter's name in the `Scorer`.
        part: `weight`, `exp_avg` or `exp_avg_sq`.
        start: the range's first element in the flattened full tensor.
        values: (length,) the elements.
    """

    name: str
    part: str
    start: int
    values: Tensor


LossOf = Callable[[Tensor], Tensor]  # (targets,) log-probabilities → ()
ReadRange = Callable[[str, str, int, int], Tensor]  # (name, part, start, stop) → (stop - start,)


class Engine(ABC):
    """The seam to single-process torch, DDP, FSDP2 and DeepSpeed.

    Attributes:
        processes: who computes.
        precision: what matrix products are computed in; the caller has settled `auto` (`stage.settle_precision`).
        scorer: the model as it is trained.
        trained: its trained parameters by name, as the engine left them (shards, for a sharded engine).
        clock: where the time goes; `learn` counts `forward` and `backward`, the loop the rest.
    """

    def __init__(self, scorer: Scorer, config: TrainingConfig, processes: Processes) -> None:
        self.config, self.processes, self.scorer = config, processes, scorer
        assert config.precision != "auto"
        self.precision: Precision = config.precision
        self.clock = StepClock(processes.device)
        self.trained: dict[str, nn.Parameter] = {}

    @abstractmethod
    def score(self, batch: Batch) -> Tensor:
        """Returns the log-probabilities of a batch's targets, (targets,) fp32, without gradients."""

    @abstractmethod
    def learn(self, batch: Batch, loss_of: LossOf, last: bool) -> Tensor:
        """Adds the gradients of `loss_of(scores of the batch)`, which are *summed* over micro-batches and processes.

        Args:
            last: whether this is the update's last micro-batch.

        Returns:
            This process's loss, (), detached.
        """

    @abstractmethod
    def clip(self) -> Tensor:
        """Clips the gradients. Returns their global norm before that, (), the same on all processes."""

    @abstractmethod
    def apply(self, learning_rate: float) -> None:
        """Updates the weights, and forgets the gradients."""

    @abstractmethod
    def forget(self) -> None:
        """Forgets the gradients of a step that is passed over; weights and optimizer state stay as they are."""

    @abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """Yields this process's share of trained weights and optimizer state."""

    @abstractmethod
    def restore(self, read: ReadRange, updates: int) -> None:
        """Puts saved state back. After it, the next step computes what it would have computed without the interruption.

        Args:
            updates: how often the optimizer had changed the weights; it corrects its moments' bias by that number.
        """

    @abstractmethod
    def full_weights(self) -> dict[str, Tensor]:
        """Gathers the trained weights, fp32 on the CPU, on rank 0; the others get {}. All processes must call it."""

    def mixed_precision(self) -> AbstractContextManager[None]:
        """Matrix products in bf16 over fp32 weights, where the run asks for it."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.processes.device.type, torch.bfloat16)

    def make_optimizer(self) -> torch.optim.AdamW:
        """Returns AdamW (Loshchilov & Hutter 2019) over the trained parameters: matrices decay, vectors do not."""
        matrices = [p for p in self.trained.values() if p.ndim > 1]
        vectors = [p for p in self.trained.values() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=self.config.betas, fused=True)


class SingleEngine(Engine):
    """One process holds everything."""

    def __init__(self, scorer: Scorer, config: TrainingConfig, processes: Processes) -> None:
        super().__init__(scorer.to(processes.device), config, processes)
        self.forward: nn.Module = self.place()
        self.trained = {name: p for name, p in self.scorer.named_parameters() if p.requires_grad}
        self.optimizer = self.make_optimizer()

    def place(self) -> nn.Module:
        """Returns the module to call: the scorer, or what wraps it."""
        return self.scorer

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        with self.mixed_precision():
            scores: Tensor = self.scorer(batch.input_ids, batch.position_ids, batch.predictors, batch.targets)
        return scores

    def learn(self, batch: Batch, loss_of: LossOf, last: bool) -> Tensor:
        with self.clock("forward"):
            with self.mixed_precision():
                scores = self.forward(batch.input_ids, batch.position_ids, batch.predictors, batch.targets)
            loss = loss_of(scores)
        with self.clock("backward"):
            (loss * self.processes.world).backward()  # type: ignore[no-untyped-call]  # engines average over processes
        return loss.detach()

    def clip(self) -> Tensor:
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.trained.values(), self.config.max_grad_norm, norm)
        return norm

    def apply(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def forget(self) -> None:
        self.optimizer.zero_grad()

    def pieces(self) -> Iterator[Piece]:
        for name, parameter in self.trained.items():
            state = self.optimizer.state.get(parameter, {})
            for part, tensor in [("weight", parameter), *((moment, state[moment]) for moment in MOMENTS if state)]:
                start, values = self.local_range(tensor.detach())
                yield Piece(name, part, start, values)

    def restore(self, read: ReadRange, updates: int) -> None:
        for name, parameter in self.trained.items():
            state: dict[str, Any] = {moment: torch.zeros_like(parameter) for moment in MOMENTS if updates}
            for part, tensor in {"weight": parameter.detach(), **state}.items():
                start, values = self.local_range(tensor)
                values.copy_(read(name, part, start, start + values.numel()))
            if updates:
                state["step"] = torch.tensor(float(updates), device=self.processes.device)
                self.optimizer.state[parameter] = state

    def local_range(self, tensor: Tensor) -> tuple[int, Tensor]:
        """Returns where this process's part of a state tensor starts, and a flat view of that part."""
        return 0, tensor.view(-1)

    def full_weights(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu() for name, p in self.trained.items()} if self.processes.is_first else {}


class DdpEngine(SingleEngine):
    """Every process holds everything; gradients are averaged (Li et al. 2020, PyTorch Distributed)."""

    def place(self) -> nn.Module:
        device = self.processes.device
        return nn.parallel.DistributedDataParallel(
            self.scorer, device_ids=[device] if device.type == "cuda" else None, forward_sync_buffers=False
        )

    def learn(self, batch: Batch, loss_of: LossOf, last: bool) -> Tensor:
        assert isinstance(self.forward, nn.parallel.DistributedDataParallel)
        with nullcontext() if last else self.forward.no_sync():
            return super().learn(batch, loss_of, last)

    def pieces(self) -> Iterator[Piece]:
        return super().pieces() if self.processes.is_first else iter(())  # the others hold the same


def make_engine(name: EngineName, scorer: Scorer, config: TrainingConfig, processes: Processes) -> Engine:
    """Returns the engine of that name with the model placed; it is asserted that the placement really happened."""
    if name == "fsdp2":
        from training.sharded import Fsdp2Engine

        return Fsdp2Engine(scorer, config, processes)
    if name == "zero3":
        from training.zero3 import Zero3Engine

        return Zero3Engine(scorer, config, processes)
    return (DdpEngine if name == "ddp" else SingleEngine)(scorer, config, processes)
