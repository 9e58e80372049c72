"""What gpu.py trains: a Llama of about 1 B parameters on random packed rows, with training's own scorer and engines.

It needs torch and transformers and nothing else: the sections of a job are pydantic models, so here are their plain likes.
"""

import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from training.batches import Batch, PackedRows, rows_of_step, share_of
from training.behaviour import observe
from training.blocks import place_blocks
from training.choices import Attention, Checkpointing, EngineName, Kernels, ObjectiveName, Offload
from training.engine import Engine, make_engine
from training.flops import arithmetic_of
from training.hardware import Precision
from training.objectives import Objective
from training.processes import Processes
from training.scoring import Scorer

LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}  # Llama 3.2 1B's, with its tied embeddings
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


@dataclass(frozen=True)
class Training:
    """What engines, optimizers and blocks read of `training.config.TrainingConfig`, with its defaults."""

    rows_per_step: int = 8
    precision: Precision = "bf16"
    accumulation: int = 1
    learning_rate: float = 1e-3
    objective: ObjectiveName = "pretrain"
    optimizer: str = "adamw"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Resources:
    """What engines and blocks read of `training.resources.Resources`, with its defaults."""

    engine: EngineName = "single"
    offload: Offload = "none"
    activation_checkpointing: Checkpointing = "none"
    compile: bool = False
    attention: Attention = "auto"
    kernels: Kernels = "torch"
    deepspeed_config: str = ""


@dataclass
class Bench:
    """A model's shape, rows to learn from, and a device.

    Attributes:
        shape: the Llama's dimensions.
        seq_len: tokens of a row.
        documents: how many documents a row holds, cut where chance has it.
        num_rows: rows of the file.
    """

    device: torch.device
    folder: Path
    shape: dict[str, int] = field(default_factory=lambda: LARGE)
    seq_len: int = 4096
    documents: int = 1
    num_rows: int = 64

    def model(self, device: torch.device | None = None, **differently: int) -> Any:
        """Returns a new model in fp32; the same numbers each time on one kind of device."""
        from transformers import AutoModelForCausalLM, LlamaConfig

        torch.manual_seed(0)
        shape = {**self.shape, **differently}
        config = LlamaConfig(**shape, max_position_embeddings=self.seq_len, tie_word_embeddings=True)
        with device or self.device:  # drawn there: on a CPU a billion random numbers take a while
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)

    def rows(self) -> PackedRows:
        """Writes random rows as the data stage does, and opens them."""
        path = self.folder / "packed" / "pretrain" / "train.safetensors"
        if not path.is_file():
            path.parent.mkdir(parents=True)
            save_file(self._tensors(), path, metadata={"kind": "pretrain"})
        return PackedRows(self.folder, "pretrain", "train")

    def run(self, training: Training, resources: Resources, starts_like: torch.device | None = None) -> "Run":
        """Builds and places everything as a training stage does.

        Args:
            starts_like: where the weights are drawn, if not on the device itself.
        """
        # How a Llama must be asked does not depend on its size: it is observed on a small one, as a stage does, on a CPU.
        behaviour = observe(self.model(torch.device("cpu"), **SMALL))
        model = self.model(starts_like)
        scorer = Scorer(model, behaviour=behaviour).train()
        flops = partial(arithmetic_of(model).training, seq_len=self.seq_len)
        told_training: Any = training
        told: Any = resources
        place_blocks(model, told_training, told, self.device, self.seq_len)
        engine = make_engine(told, scorer, told_training, Processes(0, 1, self.device))
        return Run(engine, Objective(self.rows()), flops)

    def _tensors(self) -> dict[str, torch.Tensor]:
        chance = torch.Generator().manual_seed(0)
        size = (self.num_rows, self.seq_len)
        ids = torch.randint(3, self.shape["vocab_size"], size, generator=chance, dtype=torch.int32)
        begins = torch.zeros(size, dtype=torch.int32)
        for row in begins:
            row[1 + torch.randperm(self.seq_len - 1, generator=chance)[: self.documents - 1]] = 1
        places = torch.arange(self.seq_len, dtype=torch.int32)
        positions = places - (places * begins).cummax(1).values
        return {
            "input_ids": ids,
            "labels": ids.clone(),
            "position_ids": positions,
            "segment_ids": begins.cumsum(1, dtype=torch.int32),
        }


@dataclass
class Run:
    """An engine at work.

    Attributes:
        flops: of `tokens` of which `targets` are predicted (`training.flops.Arithmetic.training`).
        done: steps taken.
    """

    engine: Engine
    objective: Objective
    flops: Any
    done: int = 0

    def step(self) -> tuple[torch.Tensor, int, int]:
        """Takes one step as `training.loop` does; returns its loss, (), its tokens and its targets."""
        config, data, device = self.engine.config, self.objective.data, self.engine.processes.device
        rows = rows_of_step(data.num_rows, config.rows_per_step, config.seed, self.done)
        everything = data.batch(rows)
        share = partial(self._share, data.terms(everything))
        loss = torch.zeros((), device=device)
        turns = share_of(rows, 0, 1, config.accumulation)
        for number, part in enumerate(turns, start=1):
            batch = data.batch(part).to(device)
            loss += self.engine.learn(batch, partial(share, batch), last=number == len(turns))
        self.engine.clip()
        self.engine.apply(config.learning_rate)
        self.done += 1
        return loss, everything.tokens, len(everything.targets)

    def losses(self, steps: int) -> list[float]:
        """Takes steps and returns their losses."""
        return [float(self.step()[0]) for _ in range(steps)]

    def timed(self, steps: int, warm_up: int) -> list[tuple[float, int, int]]:
        """Returns (seconds, tokens, targets) of every step after the warm-up."""
        return [self._timed_step() for _ in range(warm_up + steps)][warm_up:]

    def _timed_step(self) -> tuple[float, int, int]:
        wait(self.engine.processes.device)
        begin = time.perf_counter()
        _, tokens, targets = self.step()
        wait(self.engine.processes.device)
        return time.perf_counter() - begin, tokens, targets

    def _share(self, terms: float, batch: Batch, scores: torch.Tensor) -> torch.Tensor:
        return self.objective.loss(batch, scores) / terms


@contextmanager
def bench(device: torch.device, tiny: bool, **differently: Any) -> Iterator[Bench]:
    """Yields a bench whose rows lie in a temporary folder; after it the device's memory is free again."""
    size = {"shape": SMALL, "seq_len": 64, "num_rows": 16} if tiny else {}
    with tempfile.TemporaryDirectory(prefix="goldpath-gpu-") as folder:
        try:
            yield Bench(device, Path(folder), **{**size, **differently})
        finally:
            torch._dynamo.reset()
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def wait(device: torch.device) -> None:
    """Returns when the device has done all that it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
