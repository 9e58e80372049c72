"""A data folder as the data stage leaves it, in miniature, and the command that trains on it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from data_contracts.encode import Piece, Segment
from data_contracts.pack import arrange, fill_rows, mismatch
from data_contracts.pack import write_packed as write_tensors
from training.batches import NO_TARGET

ROOT = Path(__file__).resolve().parents[2]
SEQ_LEN, VOCABULARY, PAD = 48, 96, 0
TINY_MODEL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "max_positions": 64,
}
QUICK = {"steps": 6, "rows_per_step": 4, "precision": "fp32", "log_every": 1, "checkpoint_every": 2, "warmup_steps": 1}


def write_tokenizer(folder: Path, size: int) -> None:
    """Writes a Hugging Face tokenizer folder of `size` one-word tokens; the first three are special."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


def write_packed(folder: Path, kind: str, split: str, rows: list[dict[str, list[int]]]) -> None:
    """Writes packed rows as the data stage does."""
    path = folder / "packed" / kind / f"{split}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.tensor([row[name] for row in rows], dtype=torch.int32) for name in rows[0]}
    save_file(tensors, path, metadata={"kind": kind, "seq_len": str(SEQ_LEN)})


def pack_row(kind: str, generator: torch.Generator) -> dict[str, list[int]]:
    """Packs documents of random length into one row; the last few places are padding."""
    row: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": [], "segment_ids": []}
    segment = 0
    while len(row["input_ids"]) < SEQ_LEN - 20:
        length = int(torch.randint(4, 9, (), generator=generator))
        start = int(torch.randint(3, 40, (), generator=generator))
        for rejected in (False, True) if kind == "preference" else (False,):
            # Documents count up. The preferred answers count down: the opposite of what the base model has learnt.
            down = kind == "preference" and not rejected
            tokens = [1, start] + [max(3, start + (-i if down else i)) for i in range(1, length)] + [2]
            learnt = tokens if kind == "pretrain" else [NO_TARGET, NO_TARGET, *tokens[2:]]
            row["input_ids"] += tokens
            row["labels"] += learnt
            row["position_ids"] += range(len(tokens))
            row["segment_ids"] += [segment] * len(tokens)
            segment += 1
    padding = SEQ_LEN - len(row["input_ids"])
    row["input_ids"] += [PAD] * padding
    row["labels"] += [NO_TARGET] * padding
    row["position_ids"] += range(padding)
    row["segment_ids"] += [-1] * padding
    return row


def judged_answers(generator: torch.Generator, number: int) -> list[Piece]:
    """Prompts of one word with answers: those that count down are good, those that count up, as the base does, are bad."""
    pieces = []
    for position in range(number):
        length, start = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((3, 8), (10, 40)))
        step = -1 if position % 2 else 1
        tokens = [1, start, *(start + step * i for i in range(1, length)), 2]
        segment = Segment(tokens, [False, False] + [True] * (len(tokens) - 2))
        pieces.append(Piece((segment,), desirable=bool(position % 2)))
    return pieces


def write_unpaired(folder: Path, split: str, pieces: list[Piece]) -> None:
    """Writes judged answers, and the mismatched ones beside them, with the data stage's own packer."""
    rows = arrange(pieces, SEQ_LEN)
    for name, packed in ((split, rows), (f"{split}-mismatched", mismatch(rows, SEQ_LEN))):
        path = folder / "packed" / "unpaired" / f"{name}.safetensors"
        write_tensors(path, "unpaired", fill_rows(packed, SEQ_LEN, PAD), len(pieces))


class Command:
    """The stage command as a person types it, over one data folder."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder

    def job(
        self, stage: str, *, base: Path | None = None, resources: dict[str, Any] | None = None, **training: Any
    ) -> Path:
        """Writes a job file and returns its path."""
        config = {"model": None if base else TINY_MODEL, "training": {**QUICK, "objective": stage, **training}}
        parents = {"data": str(self.data)} | ({"base": str(base)} if base else {})
        job = {"name": "tiny", "version": "1", "stage": stage, "config": config, "parents": parents}
        number = len(list(self.folder.glob("job-*.yaml")))
        path = self.folder / f"job-{number}.yaml"
        path.write_text(json.dumps({**job, "resources": resources or {}}))
        return path

    def start(
        self, job: Path, out: Path, processes: int = 1, more: Sequence[str] = (), **environment: str
    ) -> "subprocess.Popen[str]":
        """Starts the command, under torchrun for several processes, with more arguments at its end."""
        launcher = ["-m", "training"]
        if processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *launcher]
        return subprocess.Popen(
            [sys.executable, *launcher, "--config", str(job), "--out", str(out), *more],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, job: Path, out: Path, processes: int = 1, **environment: str) -> tuple[int, dict[str, Any], str]:
        """Runs the command to its end; returns its exit code, the JSON line, and stderr."""
        process = self.start(job, out, processes, **environment)
        try:
            said, errors = process.communicate(timeout=240)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, json.loads(said.splitlines()[-1]) if said.strip() else {}, errors


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for a condition, and fails when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
