"""Rows to measure with: a data folder of made-up tokens, for a stage whose own data does not exist yet."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from training.batches import NO_TARGET
from training.choices import ROW_KINDS, ObjectiveName
from training.export import TOKENIZER_FILES
from training.row_shape import DOCUMENTS, TARGET_SHARE
from training.vocabulary import Vocabulary

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def write_rows(
    folder: Path, objective: ObjectiveName, vocabulary: int, seq_len: int, rows: int, base: Path | None = None
) -> None:
    """Writes what the data stage would write: a tokenizer, and full rows of random tokens, divided as `plan` assumes it.

    Args:
        vocabulary: how many tokens there are; those of the base, where there is one.
        rows: training rows; one validation row comes with them.
        base: a model folder whose tokenizer is taken; without it, one of so many made-up words is written.
    """
    if base:
        (folder / "tokenizer").mkdir(parents=True)
        for path in (path for name in TOKENIZER_FILES if (path := base / name).is_file()):
            shutil.copy(path, folder / "tokenizer")
        vocabulary = Vocabulary(folder / "tokenizer").size  # a base may have more rows than tokens
    else:
        _write_tokenizer(folder / "tokenizer", vocabulary)
    generator = torch.Generator().manual_seed(0)
    length = seq_len // DOCUMENTS[objective]
    place = torch.arange(seq_len)
    positions, segments = place % length, place // length
    for split, count in (("train", rows), ("validation", 1)):
        every = {"position_ids": positions, "segment_ids": segments}
        answered = [split, f"{split}-mismatched"] if objective == "kto" else [split]
        for name in answered:
            tokens = torch.randint(min(len(SPECIAL), vocabulary - 1), vocabulary, (count, seq_len), generator=generator)
            is_prompt = positions < length * (1 - TARGET_SHARE[objective])
            every |= {"input_ids": tokens, "labels": tokens.masked_fill(is_prompt | (positions == 0), NO_TARGET)}
            tensors = {key: values.int().expand(count, seq_len).contiguous() for key, values in every.items()}
            if objective == "kto":
                judgements = torch.arange(count * (int(segments.max()) + 1)) % 2  # good and bad ones in turn
                tensors["desirable"] = judgements.view(count, -1).to(torch.int8)
            path = folder / "packed" / ROW_KINDS[objective] / f"{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path, metadata={"kind": ROW_KINDS[objective], "seq_len": str(seq_len)})


def _write_tokenizer(folder: Path, size: int) -> None:
    words = [*SPECIAL.values(), *(f"w{number}" for number in range(len(SPECIAL), size))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {**SPECIAL, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
