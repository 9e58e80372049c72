"""The peers of training.py, each run as a process of its own: TRL's SFT and DPO trainers, transformers' Trainer.

>>> python -m benchmarks.peers sft --model MODEL --rows chats.jsonl --steps 6 --options '{"packing": true}'
{"tokens_per_second": 2520.1, "step_seconds": 0.8, "ends": [...]}
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

UNCOUNTED = 2  # the first steps warm caches up


def main() -> None:
    """Trains a few steps and prints their median speed over useful tokens: those that are no padding."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("objective", choices=("sft", "dpo", "pretrain"))
    parser.add_argument("--model", type=Path, required=True, help="a folder with weights and tokenizer")
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines in TRL's own form")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--options", type=json.loads, default={}, help="what differs from the trainer's defaults, as JSON")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    parser.add_argument("--uncounted", type=int, default=UNCOUNTED, help=f"first steps to leave out (default: {UNCOUNTED})")
    arguments = parser.parse_args()
    trainer, clock = make_trainer(arguments)
    trainer.train()
    seconds, tokens = clock.seconds[arguments.uncounted :], clock.tokens[arguments.uncounted :]
    speeds = [count / second for count, second in zip(tokens, seconds, strict=True)]
    medians = {"tokens_per_second": statistics.median(speeds), "step_seconds": statistics.median(seconds)}
    print(json.dumps(medians | {"ends": clock.ends, "memory": clock.memory()}))


class Clock:
    """Seconds of every optimizer step, and its useful tokens. `tokens` is filled by the trainer's batches.

    Attributes:
        seconds: of each step.
        tokens: of each step.
        ends: when each step had ended, before anything was saved.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self._begin, self._seen = 0.0, 0

    def see(self, inputs: dict[str, Any]) -> None:
        """Counts a micro-batch's tokens that are no padding."""
        mask = inputs.get("attention_mask")
        self._seen += int(mask.sum()) if mask is not None else int(inputs["input_ids"].numel())

    def begin(self) -> None:
        """A step begins."""
        wait()
        self._begin, self._seen = time.perf_counter(), 0

    def end(self) -> None:
        """A step has ended."""
        wait()
        self.ends.append(time.perf_counter())
        self.seconds.append(self.ends[-1] - self._begin)
        self.tokens.append(self._seen)

    def memory(self) -> int:
        """Returns the peak of a GPU's memory, in bytes; 0 on a CPU."""
        import torch

        return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0


def wait() -> None:
    """Waits for a GPU, so that what is timed is its work and not its orders."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def make_trainer(arguments: argparse.Namespace) -> tuple[Any, Clock]:
    """Returns the peer's trainer, which times itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

    clock = Clock()

    class Timing(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end()

    rows: Any
    if arguments.objective == "pretrain":  # without TRL and datasets, which not every machine has
        configuration, kind = TrainingArguments, Trainer
        blocks = [json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines()]
        rows = [{"input_ids": block, "labels": block} for block in blocks]
    else:
        import trl
        from datasets import load_dataset

        kinds = {"sft": (trl.SFTConfig, trl.SFTTrainer), "dpo": (trl.DPOConfig, trl.DPOTrainer)}
        configuration, kind = kinds[arguments.objective]
        rows = load_dataset("json", data_files=str(arguments.rows), split="train", cache_dir=str(arguments.work / "cache"))

    class Timed(kind):  # type: ignore[valid-type, misc]
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> torch.Tensor:
            clock.see(inputs)
            loss: torch.Tensor = super().training_step(model, inputs, *rest, **named)
            return loss

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    settings = {
        "output_dir": str(arguments.work / "out"),
        "max_steps": arguments.steps,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    trainer = Timed(
        model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32),
        args=configuration(**{**settings, **arguments.options}),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[Timing()],
    )
    return trainer, clock


if __name__ == "__main__":
    sys.exit(main())
