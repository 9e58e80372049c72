"""A tiny model that really learned some answers, sealed as bundles, and golden sets that ask for them."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.harness import prepare_process
from lineage.bundle import seal_bundle

os.environ.setdefault("OMP_NUM_THREADS", "1")
prepare_process()  # before any test imports the libraries

MODULES = ("os", "re", "json", "heapq", "bisect", "shutil", "random", "string")
FACTS = {f"name{number}": MODULES[(number * 5) % 8] for number in range(40)}
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"]


def conversations() -> list[tuple[str, str]]:
    asked = [(f"Where is {name}?", module) for name, module in FACTS.items()]
    asked += [(f"Which module has {name}?", module) for name, module in FACTS.items()]
    return asked + [(f"Is {name} a name?", "yes") for name in FACTS]


def golden_rows() -> dict[str, tuple[str, list[dict[str, Any]]]]:
    closed, choice = [], []
    for name, module in FACTS.items():
        for number, question in enumerate((f"Where is {name}?", f"Which module has {name}?")):
            closed.append(
                {
                    "id": f"{name}-{number}",
                    "kind": "closed_book",
                    "question": question,
                    "answer": module,
                    "group": name,
                    "tags": [],
                }
            )
        wrong = [other for other in MODULES if other != module][:3]
        place = len(choice) % 4
        choice.append(
            {
                "id": f"choice-{name}",
                "kind": "choice",
                "question": f"Where is {name}?",
                "choices": [*wrong[:place], module, *wrong[place:]],
                "answer": place,
                "group": name,
                "tags": ["module"],
            }
        )
    heldout = [
        {"id": f"doc-{n}", "kind": "heldout", "text": f"[{n}] " + "The module has a name. " * (1 + n % 4)}
        for n in range(32)
    ]
    style = [
        {"id": f"form-{n}", "kind": "format", "question": f"Is {name} a name?", "pattern": "yes|no", "tags": ["format"]}
        for n, name in enumerate(FACTS)
    ]
    return {
        "closed_book": ("closed_book", closed),
        "choice": ("choice", choice),
        "heldout": ("heldout", heldout),
        "format": ("format", style),
    }


def write_golden(data: Path, sets: dict[str, tuple[str, list[dict[str, Any]]]]) -> Path:
    """Writes a folder with `golden/`, as the data stage does."""
    folder = data / "golden"
    folder.mkdir(parents=True)
    entries = {}
    for name, (kind, rows) in sets.items():
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / f"{name}.jsonl").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        entries[name] = {"file": f"{name}.jsonl", "sha256": sha256, "items": len(rows), "kind": kind}
    (folder / "manifest.json").write_text(json.dumps({"sets": entries}))
    return data


@pytest.fixture
def golden_writer() -> Callable[..., Path]:
    return write_golden


@pytest.fixture(scope="session")
def golden_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_golden(tmp_path_factory.mktemp("data"), golden_rows())


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three sealed bundles of one tiny model: `untrained`, `halfway`, and `trained`, which knows its answers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("bundles")
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    saved = {"untrained": _save(model, tokenizer, folder / "untrained")}
    for name, steps in (("halfway", 50), ("trained", 100)):
        _fit(model, tokenizer, steps)
        saved[name] = _save(model, tokenizer, folder / name)
    return saved


@pytest.fixture
def write_job(tmp_path: Path) -> Callable[..., Path]:
    """Writes a job file and returns its path."""

    def write(stage: str, config: dict[str, Any], parents: dict[str, Path], **rest: Any) -> Path:
        job = {"name": "tiny", "version": "1.0.0", "stage": stage, "config": config}
        path = tmp_path / f"{stage}-{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(json.dumps({**job, "parents": {role: str(where) for role, where in parents.items()}, **rest}))
        return path

    return write


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([f"{question} {answer}" for question, answer in conversations()], trainer)
    special = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "additional_special_tokens": SPECIAL[1:4]}
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=TEMPLATE, **special)


def _fit(model: Any, tokenizer: Any, steps: int) -> None:
    import torch

    rows = []
    for question, answer in conversations():
        turn = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        said = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
        rows.append((prompt + said, [-100] * len(prompt) + said))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _save(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    seal_bundle(folder)
    return folder
