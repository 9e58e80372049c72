"""How one update is computed: on one process, on copies of the model, or on shards. The loop sees the same six verbs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training.batches import Batch
from training.blocks import require_compiled
from training.choices import ZERO_ENGINES
from training.clock import StepClock
from training.hardware import Precision
from training.loss_scale import LossScale
from training.model import plain_model
from training.optimizers import begin_state, make_optimizers, state_of
from training.placement import require_possible
from training.processes import Processes
from training.scoring import Scorer

if TYPE_CHECKING:
    from training.config import TrainingConfig
    from training.resources import Resources

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}  # fp8: outside its own layers
SCALE = "loss_scale"  # the name under which a checkpoint holds the loss scale, with the fields of `LossScale` as parts


@dataclass(frozen=True)
class Piece:
    """One process's share of one tensor of the training state, as a range of the flattened full tensor.

    Every engine divides tensors into such ranges (one process: the whole), which makes checkpoints independent of the
    engine and of the number of processes.

    Attributes:
        name: the parameter's name in the `Scorer`; `loss_scale` for fp16's.
        part: `weight`, or a state tensor's name in its optimizer (`optimizers.state_of`).
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
        resources: how it is placed.
        scorer: the model as it is trained.
        trained: its trained parameters by name, as the engine left them (shards, for a sharded engine).
        loss_scale: fp16's; None in any other precision.
        clock: where the time goes; `learn` counts `forward` and `backward`, the loop the rest.
    """

    def __init__(
        self, scorer: Scorer, config: "TrainingConfig", processes: Processes, resources: "Resources | None" = None
    ) -> None:
        self.config, self.processes, self.scorer = config, processes, scorer
        if resources is None:
            from training.resources import Resources  # needs pydantic, which benchmarks/gpu.py does without

            resources = Resources()
        self.resources = resources
        assert config.precision != "auto"
        self.precision: Precision = config.precision
        self.clock = StepClock(processes.device)
        self.trained: dict[str, nn.Parameter] = {}
        self.loss_scale = LossScale() if self.precision == "fp16" else None

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
        """Clips the gradients.

        Returns:
            Their global norm before that, (), the same on all processes; 0 where fp16 overflowed, so that `apply` will only
            forget them.
        """

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
            updates: how often `apply` had been called; optimizers correct their moments' bias by that number.
        """

    @abstractmethod
    def full_weights(self) -> dict[str, Tensor]:
        """Gathers the trained weights, fp32 on the CPU, on rank 0; the others get {}. All processes must call it."""

    def mixed_precision(self) -> AbstractContextManager[None]:
        """Matrix products in bf16 or fp16 over fp32 weights, where the run asks for it."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.processes.device.type, AUTOCAST[self.precision])

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Returns the optimizers of the trained parameters."""
        causal = plain_model(self.scorer.model)
        tables = [module for module in causal.modules() if isinstance(module, nn.Embedding)]
        by_token = frozenset(id(p) for module in (*tables, causal.get_output_embeddings()) for p in module.parameters())
        return make_optimizers(self.trained, by_token, self.config)

    @property
    def overflows(self) -> int:
        """How many updates fp16's loss scale has discarded by itself."""
        return self.loss_scale.skipped if self.loss_scale else 0

    def scale_figures(self) -> dict[str, float]:
        """Returns what the history tells of fp16: the loss scale, and how many updates overflowed and were skipped."""
        return {"loss_scale": self.loss_scale.scale, "skipped_updates": self.loss_scale.skipped} if self.loss_scale else {}

    def scale_pieces(self) -> Iterator[Piece]:
        """Yields the loss scale, from the first process."""
        if self.loss_scale and self.processes.is_first:
            for field, value in vars(self.loss_scale).items():
                yield Piece(SCALE, field, 0, torch.tensor([value], dtype=torch.float64))

    def restore_scale(self, read: ReadRange, updates: int) -> int:
        """Puts the loss scale back. Returns how many of the updates were really made, and not skipped."""
        if self.loss_scale is None:
            return updates
        saved = {field: read(SCALE, field, 0, 1).item() for field in vars(self.loss_scale)}
        self.loss_scale = LossScale(saved["scale"], int(saved["quiet"]), int(saved["skipped"]))
        return updates - self.loss_scale.skipped


class SingleEngine(Engine):
    """One process holds everything."""

    def __init__(
        self, scorer: Scorer, config: "TrainingConfig", processes: Processes, resources: "Resources | None" = None
    ) -> None:
        super().__init__(scorer, config, processes, resources)
        self.forward: nn.Module = self.place()
        self.trained = {name: p for name, p in self.scorer.named_parameters() if p.requires_grad}
        self.optimizers = self.make_optimizers()

    def place(self) -> nn.Module:
        """Moves the scorer to its device, and returns the module to call: the scorer, or what wraps it."""
        return self.scorer.to(self.processes.device)

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
        if self.resources.compile:
            require_compiled()
        scale = self.processes.world * (self.loss_scale.scale if self.loss_scale else 1.0)  # engines average over processes
        with self.clock("backward"):
            (loss * scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def clip(self) -> Tensor:
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        if self.loss_scale:
            torch._foreach_mul_(gradients, 1 / self.loss_scale.scale)
        norm = torch.nn.utils.get_total_norm(gradients)
        whole = self.whole_norm(norm)
        if self.loss_scale and not self.loss_scale.accept(whole):
            self.forget()
            return torch.zeros_like(whole)
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.trained.values(), self.config.max_grad_norm, norm)
        return whole

    def apply(self, learning_rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
        self.forget()

    def forget(self) -> None:
        for parameter in self.trained.values():
            parameter.grad = None

    def whole_norm(self, norm: Tensor) -> Tensor:
        """Returns the norm over all processes, from what `get_total_norm` gives."""
        return norm

    def pieces(self) -> Iterator[Piece]:
        for name, parameter in self.trained.items():
            for part, tensor in {"weight": parameter, **state_of(self.optimizers, parameter)}.items():
                start, values = self.local_range(tensor.detach())
                yield Piece(name, part, start, values)
        yield from self.scale_pieces()

    def restore(self, read: ReadRange, updates: int) -> None:
        updates = self.restore_scale(read, updates)
        for optimizer in self.optimizers:
            optimizer.state.clear()  # a run that goes back may go back to before the first update
        for name, parameter in self.trained.items():
            if updates:
                begin_state(self.optimizers, parameter, updates)
            for part, tensor in {"weight": parameter, **state_of(self.optimizers, parameter)}.items():
                start, values = self.local_range(tensor.detach())
                values.copy_(read(name, part, start, start + values.numel()))

    def local_range(self, tensor: Tensor) -> tuple[int, Tensor]:
        """Returns where this process's part of a state tensor starts, and a flat view of that part."""
        return 0, tensor.view(-1)

    def full_weights(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu() for name, p in self.trained.items()} if self.processes.is_first else {}


class DdpEngine(SingleEngine):
    """Every process holds everything; gradients are averaged (Li et al. 2020, PyTorch Distributed).

    After its first backward pass DDP puts the gradients into new buckets, in the order in which they came (section 3.2.3 of
    that paper). Three or more numbers are summed in an order that depends on where in a bucket they lie, so the first step
    of a resumed run would round as no step of an undisturbed one does: the first pass is taken twice.
    """

    _has_its_buckets = False

    def place(self) -> nn.Module:
        device = self.processes.device
        return nn.parallel.DistributedDataParallel(
            super().place(), device_ids=[device] if device.type == "cuda" else None, forward_sync_buffers=False
        )

    def learn(self, batch: Batch, loss_of: LossOf, last: bool) -> Tensor:
        assert isinstance(self.forward, nn.parallel.DistributedDataParallel)
        if self.processes.world > 2 and not self._has_its_buckets:
            self._has_its_buckets = True
            super().learn(batch, loss_of, last)
            self.forget()
        with nullcontext() if last else self.forward.no_sync():
            return super().learn(batch, loss_of, last)

    def pieces(self) -> Iterator[Piece]:
        return super().pieces() if self.processes.is_first else iter(())  # the others hold the same


def make_engine(resources: "Resources", scorer: Scorer, config: "TrainingConfig", processes: Processes) -> Engine:
    """Returns the engine that is asked for, with the model placed; it is asserted that the placement really happened.

    Raises:
        BadInput: it cannot be.
    """
    require_possible(resources, config)
    if resources.engine == "fsdp2":
        from training.sharded import Fsdp2Engine

        return Fsdp2Engine(scorer, config, processes, resources)
    if resources.engine in ZERO_ENGINES:
        from training.zero import ZeroEngine

        return ZeroEngine(scorer, config, processes, resources)
    return (DdpEngine if resources.engine == "ddp" else SingleEngine)(scorer, config, processes, resources)
