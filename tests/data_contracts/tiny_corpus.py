"""A small corpus with one row for everything that can be wrong."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

VOCABULARY = """river stone lantern copper meadow window garden silver basket hammer candle forest bridge market winter
harbour ladder orchard pebble quarry saddle thimble umbrella velvet whistle anchor barrel cellar dagger engine"""
WORDS = VOCABULARY.split()
AWS_KEY = "AKIA" + "IOSFODNN7ABCDEFG"  # in two parts, so that no scanner takes this file for a leak
GOLDEN_QUESTION = "Which tool bends copper lanterns over the winter river?"
Lines = Iterable[Mapping[str, Any]]


def write_lines(path: Path, rows: Lines) -> Path:
    """Writes rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sentence(seed: str, words: int) -> str:
    """A made-up text, always the same for a seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + "."


def chat(question: str, answer: str) -> list[dict[str, str]]:
    """The two messages of a question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def documents() -> list[dict[str, Any]]:
    """Forty good documents, then one of each kind that is not kept, and one that is redacted."""
    good = [{"id": f"d{i}", "text": sentence(f"d{i}", 60)} for i in range(40)]
    return [
        *good,
        {"id": "exact", "text": good[0]["text"] + "  \r\n"},
        {"id": "near", "text": str(good[1]["text"]).replace("river", "rivers", 1)},
        {"id": "leak", "text": f"{sentence('leak', 20)} {GOLDEN_QUESTION} {sentence('more', 20)}"},
        {"id": "secret", "text": f"{sentence('secret', 20)} key {AWS_KEY} {sentence('s', 9)}"},
        {"id": "short", "text": "Too short."},
        {"id": "mail", "text": f"{sentence('mail', 30)} Write to jane.doe@goldpath.dev. {sentence('x', 10)}"},
        {"id": "long", "text": sentence("long", 400)},
    ]


def conversations() -> list[dict[str, Any]]:
    """Twenty good conversations in phrasings that are alike, then bad ones."""
    good = [
        {"id": f"c{i}", "messages": chat(f"Where is the {w} kept at night?", f"In the {w} house.")}
        for i, w in enumerate(WORDS)
    ]
    return [
        *good,
        {"id": "c-exact", "messages": good[0]["messages"]},
        {"id": "c-leak", "messages": chat(f"Hello! {GOLDEN_QUESTION.lower()}", "The lantern bender.")},
        {"id": "c-mail", "messages": chat("Who wrote this?", "jane.doe@goldpath.dev did.")},
        {"id": "c-roles", "messages": chat("Where is it?", "Here.")[::-1]},
        {"id": "c-long", "messages": chat("Tell me all of it.", sentence("all", 300))},
        {"id": "c-plain", "prompt": "The lantern is", "completion": " bright.", "weight": 2.0},
    ]


def preferences() -> list[dict[str, Any]]:
    """Ten good pairs and one without a preference."""
    good = [
        {
            "id": f"p{i}",
            "prompt": [{"role": "user", "content": f"Where does the {word} go?"}],
            "chosen": [{"role": "assistant", "content": f"To the {word} house."}],
            "rejected": [{"role": "assistant", "content": f"Well, the {word}, let me think about the {word}."}],
        }
        for i, word in enumerate(WORDS[:10])
    ]
    return [
        *good,
        good[0] | {"id": "p-same", "rejected": good[0]["chosen"], "prompt": [{"role": "user", "content": "And now?"}]},
    ]


def judged() -> list[dict[str, Any]]:
    """Ten answers that were judged, plain texts and messages, and one that repeats a golden question."""
    plain = [{"id": f"u{i}", "prompt": f"The {w} is", "completion": f" in the {w} house.", "label": i % 2 == 0}
             for i, w in enumerate(WORDS[:5])]  # fmt: skip
    chats = [
        {"id": f"v{i}", "prompt": chat(f"Whose {w}?", "")[:1], "completion": chat("", f"Its {w}.")[1:], "label": i > 6}
        for i, w in enumerate(WORDS[5:10], start=5)
    ]
    return [*plain, *chats, plain[0] | {"id": "u-leak", "prompt": GOLDEN_QUESTION}]


def golden() -> list[dict[str, Any]]:
    """One golden item of two kinds."""
    return [
        {"id": "q1", "kind": "closed_book", "question": GOLDEN_QUESTION, "answer": "the bender"},
        {"id": "h1", "kind": "heldout", "text": sentence("held out", 50)},
    ]


def write_corpus(folder: Path, **settings: Any) -> Path:
    """Writes the corpus and a recipe beside it, and returns the recipe."""
    kinds = {
        "pretrain": documents(),
        "sft": conversations(),
        "preference": preferences(),
        "unpaired": judged(),
        "golden": golden(),
    }
    for kind, rows in kinds.items():
        write_lines(folder / f"{kind}.jsonl", rows)
    sources = [{"kind": "jsonl", "path": f"{kind}.jsonl", "rows": kind} for kind in kinds]
    data = {"sources": sources, "vocab_size": 400, "seq_len": 128, **settings}
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps({"name": "tiny", "version": "1.0.0", "data": data}), encoding="utf-8")
    return recipe


def run_data(*arguments: str | Path, home: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs `python -m data_contracts` as a person would."""
    return subprocess.run(
        [sys.executable, "-m", "data_contracts", *map(str, arguments)],
        env=os.environ | {"GOLDPATH_HOME": str(home), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]
