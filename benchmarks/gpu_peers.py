"""The peers of gpu.py on the same rows and a model of the same shape, each as a process of its own (peers.py)."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_bench import Bench, bench

WARM_UP = 4
# TRL recomputes activations unless it is told not to; here there is memory enough, for them as for us.
QUICK: dict[str, Any] = {"bf16": True, "gradient_checkpointing": False}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "TRL": ("sft", QUICK),
    "TRL, compiled": ("sft", QUICK | {"torch_compile": True}),
    "transformers' Trainer": ("pretrain", QUICK),
    "transformers' Trainer, compiled": ("pretrain", QUICK | {"torch_compile": True}),
}
NEEDS = {"sft": ("trl", "datasets", "accelerate"), "pretrain": ("accelerate",)}


class Absent(Exception):
    """What is to be measured is not installed here."""


def measure_peer(name: str, device: torch.device, tiny: bool, runs: int, rows: int) -> dict[str, float]:
    """Returns a peer's `tokens_per_second` and `memory` (bytes; 0 on a CPU).

    Raises:
        Absent: it, or what it needs, is not installed.
    """
    objective, options = PEERS[name]
    missing = [library for library in NEEDS[objective] if find_spec(library) is None]
    if missing:
        raise Absent(f"{missing[0]} is not installed")
    with bench(device, tiny) as here:
        save_model(here, here.folder / "model")
        save_rows(here, here.folder / "rows.jsonl", named=objective == "sft")
        told = options | {"per_device_train_batch_size": rows, "use_cpu": device.type == "cpu"}
        told |= {"max_length": here.seq_len} if objective == "sft" else {}
        command = [sys.executable, "-m", "benchmarks.peers", objective]
        command += ["--model", str(here.folder / "model"), "--rows", str(here.folder / "rows.jsonl")]
        command += ["--work", str(here.folder / "work"), "--steps", str(WARM_UP + runs), "--uncounted", str(WARM_UP)]
        done = subprocess.run(
            [*command, "--options", json.dumps(told)], stdout=subprocess.PIPE, text=True, check=True, timeout=480
        )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def save_model(here: Bench, folder: Path) -> None:
    """Writes the model, and a tokenizer, without which trainers do not begin."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    here.model().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)


def save_rows(here: Bench, path: Path, named: bool) -> None:
    """Writes the tokens of all rows, for TRL under the name of their column."""
    data = here.rows()
    rows = (data.batch([number]).input_ids[0].tolist() for number in range(data.num_rows))
    lines = (json.dumps({"input_ids": row} if named else row) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
