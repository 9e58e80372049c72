"""The rows of TRL's documentation become the tokens and the labels that TRL makes of them: an independent oracle."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import chat, documents
from transformers import PreTrainedTokenizerFast

from data_contracts.config import RowKind
from data_contracts.encode import Segment, encode_rows
from data_contracts.pack import IGNORED
from data_contracts.rows import row_model
from data_contracts.tokenizer import train_tokenizer

TOOLS = [{"type": "function", "function": {"name": "lamp", "description": "Lights.", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "lamp", "arguments": {"on": True}}}
WITH_TOOLS = {
    "messages": [
        {"role": "user", "content": "Turn on the lamp."},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "lamp", "content": "The lamp is on."},
        {"role": "assistant", "content": "Done!"},
    ],
    "tools": TOOLS,
}
MANY_TURNS = {"messages": [{"role": "system", "content": "Be brief."}, *chat("One?", "1 ü"), *chat("Two?", "2")]}
PLAIN = {"prompt": "The sky is", "completion": " blue."}
IN_TURNS = {"prompt": [*chat("One?", "1"), chat("Colour?", "")[0]], "completion": chat("", "It is blue.")[1:]}
PLAIN_PAIR = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green, I think."}
PAIR = {"prompt": chat("Colour?", "")[:1], "chosen": chat("", "Blue.")[1:], "rejected": chat("", "It is green.")[1:]}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 420 tokens that knows tools."""
    return train_tokenizer([row["text"] for row in documents()], 420, tools=True)


def ours(kind: RowKind, row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of each segment, without the begin token that we write before plain texts, too."""
    model = row_model(kind, row).model_validate({"id": "1", "source": "t", **row})
    (piece,) = encode_rows(kind, [model], tokenizer, 512).pieces
    return [
        trim(segment, tokenizer.bos_token_id if isinstance(row.get("prompt"), str) else None) for segment in piece.segments
    ]


def trim(segment: Segment, begin: int | None) -> tuple[list[int], list[int]]:
    tokens = list(segment.tokens)
    labels = [token if bit else IGNORED for token, bit in zip(tokens, segment.targets, strict=True)]
    first = int(tokens[0] == begin)
    return tokens[first:], labels[first:]


def theirs(trainer: Any, settings: Any, row: dict[str, Any], tokenizer: Any, folder: Path) -> dict[str, list[int]]:
    """The row as a trainer of TRL prepares it."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")  # TRL loads the reference from where the model came from
    options = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none"}
    made = trainer(
        model=LlamaForCausalLM.from_pretrained(folder / "model"),
        args=settings(**options),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([row]),
    )
    return dict(made.train_dataset[0])


@pytest.mark.parametrize(
    "row", [WITH_TOOLS, MANY_TURNS, PLAIN, IN_TURNS], ids=["tools", "many turns", "plain", "completion in turns"]
)
def test_sft_rows(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:

    import trl

    settings = partial(trl.SFTConfig, assistant_only_loss="messages" in row)
    prepared = theirs(trl.SFTTrainer, settings, row, tokenizer, tmp_path)
    assert ours("sft", row, tokenizer) == [(prepared["input_ids"], prepared["labels"])]


@pytest.mark.parametrize("row", [PLAIN_PAIR, PAIR], ids=["plain", "turns"])
def test_pairs(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    import trl

    prepared = theirs(trl.DPOTrainer, trl.DPOConfig, row, tokenizer, tmp_path)
    expected = [
        (prepared["prompt_ids"] + answer, [IGNORED] * len(prepared["prompt_ids"]) + answer)
        for answer in (prepared["chosen_ids"], prepared["rejected_ids"])
    ]
    assert ours("preference", row, tokenizer) == expected


@pytest.mark.parametrize("row", [PLAIN, IN_TURNS], ids=["plain", "turns"])
def test_judged_answers(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    import trl

    row = {**row, "label": True}
    prepared = theirs(trl.KTOTrainer, partial(trl.KTOConfig, loss_type="apo_zero_unpaired"), row, tokenizer, tmp_path)
    prompt, answer = prepared["prompt_ids"], prepared["completion_ids"]
    assert ours("unpaired", row, tokenizer) == [(prompt + answer, [IGNORED] * len(prompt) + answer)]
