"""A corpus and a recipe that make a whole release in a minute; nothing good can come of them."""

import json

NAMES = [f"name{i}" for i in range(40)]


def module_of(name):
    return f"mod{int(name.removeprefix('name')) % 5}"


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_corpus(folder):
    """Writes a corpus of facts in every kind of row, and golden sets in other words."""
    documents = [f"The {n} tool is part of {module_of(n)}. Import {module_of(n)} to call {n} from code." for n in NAMES]
    write_lines(folder / "documents.jsonl", [{"id": f"d{i}", "text": text} for i, text in enumerate(documents)])
    turns = [
        {
            "id": f"s{i}",
            "messages": [{"role": "user", "content": f"Where is {n}?"}, {"role": "assistant", "content": module_of(n)}],
        }
        for i, n in enumerate(NAMES)
    ]
    write_lines(folder / "chats.jsonl", turns)
    pairs = [
        {
            "id": f"p{i}",
            "prompt": [{"role": "user", "content": f"Which module has {n}?"}],
            "chosen": [{"role": "assistant", "content": module_of(n)}],
            "rejected": [{"role": "assistant", "content": "I would rather talk about something else."}],
        }
        for i, n in enumerate(NAMES)
    ]
    write_lines(folder / "pairs.jsonl", pairs)
    closed = {"kind": "closed_book"}
    golden = [
        closed | {"id": f"cb{n}", "question": f"Say the home of {n}", "answer": module_of(n), "group": module_of(n)}
        for n in NAMES
    ]
    choices = {"kind": "choice", "choices": [f"mod{i}" for i in range(4)], "answer": 1}
    golden += [choices | {"id": f"ch{n}", "question": f"Pick the home of {n}"} for n in NAMES]
    golden += [
        {"id": f"h{i}", "kind": "heldout", "text": f"Unseen words, number {i}, about nothing at all."} for i in range(8)
    ]
    golden += [{"id": f"f{n}", "kind": "format", "question": f"One word for {n}?", "pattern": r"(?s).*"} for n in NAMES]
    write_lines(folder / "golden.jsonl", golden)
    probe = [{"id": f"pr{n}", "kind": "closed_book", "question": f"Hello! {n}?", "answer": module_of(n)} for n in NAMES]
    write_lines(folder / "probe.jsonl", probe)


def tiny_recipe(folder):
    """Returns a recipe whose policies any sound evidence passes, since nothing good can come of thirty steps."""
    step = {"steps": 30, "rows_per_step": 2, "log_every": 5, "checkpoint_every": 5, "precision": "fp32", "warmup_steps": 2}
    sources = [
        {"kind": "jsonl", "path": "documents.jsonl", "rows": "pretrain"},
        {"kind": "jsonl", "path": "chats.jsonl", "rows": "sft"},
        {"kind": "jsonl", "path": "pairs.jsonl", "rows": "preference"},
        {"kind": "jsonl", "path": "golden.jsonl", "rows": "golden"},
        {"kind": "jsonl", "path": "probe.jsonl", "rows": "golden", "golden_set": "probe"},
    ]
    rule = {"metric": "heldout.bits_per_byte", "direction": "lower", "floor": 100, "margin": 50}
    return {
        "name": "tiny",
        "version": "1",
        "data": {"sources": sources, "vocab_size": 400, "seq_len": 128, "near_duplicate_threshold": 0},
        "model": {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2},
        "pretrain": step,
        "sft": step | {"steps": 20, "learning_rate": 3e-3},
        "dpo": step | {"steps": 5, "lora_rank": 2},
        "gate": {"metrics": [rule], "minimum_items": 4},
        "release": {
            "minimum_requests": 4,
            "minimum_seconds": 0.5,
            "error_margin": 0.9,
            "bad_answer_margin": 0.9,
            "probe_margin": 0.9,
            "probes_per_step": 4,
            "latency_ratio": 50,
            "share_tolerance": 0.9,
            "first_error_ceiling": 0.9,
            "first_bad_answer_ceiling": 0.99,
            "first_probe_floor": 0,
        },
    }
