"""Rows to measure with: a data folder of made-up tokens, for a stage whose own data does not exist yet."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from training.batches import NO_TARGET
from training.config import ROW_KINDS, ObjectiveName
from training.estimate import TARGET_SHARE

DOCUMENTS_PER_ROW = 8
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def write_rows(
    folder: Path, objective: ObjectiveName, vocabulary: int, seq_len: int, rows: int, base: Path | None = None
) -> None:
    """Writes what the data stage would write: full rows of random tokens, and a tokenizer.

    Args:
        vocabulary: how many tokens there are.
        rows: training rows; one validation row comes with them.
        base: a model folder whose tokenizer is taken; without it, one of so many made-up words is written.
    """
    if base:
        (folder / "tokenizer").mkdir(parents=True)
        for path in base.glob("*token*"):
            shutil.copy(path, folder / "tokenizer")
    else:
        _write_tokenizer(folder / "tokenizer", vocabulary)
    generator = torch.Generator().manual_seed(0)
    length = max(2, seq_len // DOCUMENTS_PER_ROW)
    place = torch.arange(seq_len)
    positions, segments = place % length, place // length
    for split, count in (("train", rows), ("validation", 1)):
        tokens = torch.randint(len(SPECIAL), vocabulary, (count, seq_len), generator=generator)
        is_prompt = positions < length * (1 - TARGET_SHARE[objective])
        labels = tokens.masked_fill(is_prompt, NO_TARGET)
        path = folder / "packed" / ROW_KINDS[objective] / f"{split}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        every = {"input_ids": tokens, "labels": labels, "position_ids": positions, "segment_ids": segments}
        tensors = {name: values.int().expand(count, seq_len).contiguous() for name, values in every.items()}
        save_file(tensors, path, metadata={"kind": ROW_KINDS[objective], "seq_len": str(seq_len)})


def _write_tokenizer(folder: Path, size: int) -> None:
    words = [*SPECIAL.values(), *(f"w{number}" for number in range(len(SPECIAL), size))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {**SPECIAL, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
