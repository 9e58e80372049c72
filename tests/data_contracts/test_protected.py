"""Files of texts that must not be trained on: what is read of them, and that it stays out of the rows."""

import json
from pathlib import Path

import pytest
from tiny_corpus import chat, read_lines, run_data, sentence, write_corpus, write_lines

from data_contracts.protected import read_protected
from lineage.errors import BadInput

KEPT_OUT = "Why did an old lamp hum above the customs house, and why had nobody dared to ask?"


def test_what_a_line_is_compared_by(tmp_path: Path) -> None:
    lines = [
        {"question": "Which one?", "answer": "This."},
        {"prompt": [{"role": "user", "content": "Why so?"}]},
        {"messages": [*chat("Hi", "Hello"), {"role": "user", "content": "Tell me about rivers."}]},
        {"id": 4, "text": "Some text."},
    ]
    path = write_lines(tmp_path / "bench.jsonl", lines)
    (tmp_path / "bench.txt").write_text("\ufeffFirst one\n\n  Second one\n", encoding="utf-8")
    assert read_protected([str(path), str(tmp_path / "bench.txt")]) == {
        str(path): [
            ("bench.jsonl:1", "Which one?"),
            ("bench.jsonl:2", "Why so?"),
            ("bench.jsonl:3", "Tell me about rivers."),
            ("bench.jsonl:4", "Some text."),
        ],
        str(tmp_path / "bench.txt"): [("bench.txt:1", "First one"), ("bench.txt:3", "  Second one")],
    }


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"x", "is neither .jsonl nor .txt"),
        ("a.jsonl", b"", "holds no texts"),
        ("a.jsonl", b'{"answer": "x"}\n', "line 1: has no words to compare"),
        ("a.jsonl", b'{"question": "?!"}\n', "line 1: has no words to compare"),
        ("a.jsonl", b'{"question": 3}\n', "line 1: has no words to compare"),
        ("a.jsonl", b"[1]\n", "line 1: has no words to compare"),
        ("a.jsonl", b'{"question"\n', "line 1: is not JSON"),
        ("a.jsonl", b'{"messages": [{"rolle": "user"}]}\n', "line 1: messages"),
        ("a.txt", b"\xff\xfe", "byte 0 is not UTF-8"),
        ("none.txt", None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_compared_with(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=said):
        read_protected([str(tmp_path / name)])


def test_the_stage_keeps_other_files_out_and_proves_it(tmp_path: Path) -> None:
    recipe = write_corpus(tmp_path, decontaminate_against=["bench/test.jsonl"], quality=["fineweb"], toxicity="own.txt")
    write_lines(tmp_path / "bench" / "test.jsonl", [{"question": KEPT_OUT}])
    leak = f"{sentence('x', 30)} {KEPT_OUT.lower().replace('an old', 'one').replace('dared', 'wished')} {sentence('y', 30)}"
    write_lines(tmp_path / "pretrain.jsonl", [*read_lines(tmp_path / "pretrain.jsonl"), {"id": "d-leak", "text": leak}])
    (tmp_path / "own.txt").write_text("quarry dagger thimble\n")
    rows = read_lines(tmp_path / "sft.jsonl")
    write_lines(
        tmp_path / "sft.jsonl", [*rows, {"id": "c-toxic", "messages": chat("And now?", "Quarry, dagger: thimble!")}]
    )
    done = run_data("--config", recipe, "--out", tmp_path / "out", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    removed = {row["id"]: row for row in read_lines(tmp_path / "out" / "contaminated.jsonl")}
    assert (removed["d-leak"]["rule"], "test.jsonl:1" in removed["d-leak"]["reason"]) == ("near", True)
    quarantined = {row["id"]: (row["stage"], row["rule"]) for row in read_lines(tmp_path / "out" / "quarantine.jsonl")}
    assert quarantined["c-toxic"] == ("quality", "toxicity")
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert [entry["file"] for entry in proof["protected"]] == ["test.jsonl"]
    assert proof["intersections"] == {"phrase": 0, "ngram": 0, "near": 0}
    inputs = json.loads((tmp_path / "out" / "record.json").read_text())
    assert "data.decontaminate_against[0]" in json.dumps(inputs)

    write_lines(tmp_path / "bench" / "test.jsonl", [{"question": "Another question altogether, is it not?"}])
    again = run_data("--config", recipe, "--out", tmp_path / "out", home=tmp_path / "home")
    assert again.returncode != 0  # the file is part of what the run is
