"""A tiny sealed Llama bundle, and endpoints and gateways as the real processes that they are."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from lineage.bundle import seal_bundle

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEXT = ["which module defines quote?", "urllib.parse", "what does json.dumps return? äöü 😀", "a str", "def f(x): return x"]
DEADLINE = 60.0


def make_bundle(folder: Path, seed: int = 0, context: int = 256) -> str:
    """Writes and seals a two-layer Llama of hidden size 32 with random weights; returns its digest."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXT * 4,
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            initializer_range=0.4,  # wide, so that the random model's choices differ from token to token
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder)
    return seal_bundle(folder)


@dataclass
class Running:
    """A started server process: its base URL and a client for it."""

    url: str
    process: "subprocess.Popen[bytes]"
    http: httpx.Client

    def status(self, model: str = "m") -> dict[str, dict[str, object]]:
        return dict(self.http.get("/goldpath/status").json()["models"].get(model) or {})

    def observations(self, after: int = 0) -> list[dict[str, object]]:
        return list(self.http.get("/goldpath/observations", params={"after": after}).json()["observations"])


@contextmanager
def running(*arguments: str) -> Iterator[Running]:
    """Starts `python -m serving …` and waits for the line that says it is ready."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, "-m", "serving", *arguments], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with httpx.Client(base_url=url, timeout=DEADLINE, trust_env=False) as http:
            yield Running(url, process, http)
    finally:
        process.terminate()
        process.wait(timeout=DEADLINE)
        assert process.stdout is not None
        process.stdout.close()


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Waits for a condition, with a deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)
