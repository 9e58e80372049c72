"""The whole data stage on a small corpus: what is kept, what is not and why, and that equal input gives equal bytes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import AWS_KEY, GOLDEN_QUESTION, documents, read_lines, run_data, write_corpus, write_lines
from tokenizers import Tokenizer

EXPECTED = {
    ("exact", "duplicates", "exact"),
    ("near", "duplicates", "near"),
    ("leak", "contaminated", "phrase"),
    ("secret", "quarantined", "secret"),
    ("short", "quarantined", "too_short"),
    ("c-exact", "duplicates", "exact"),
    ("c-leak", "contaminated", "phrase"),
    ("c-mail", "quarantined", "personal_data"),
    ("c-roles", "quarantined", "roles"),
    ("c-long", "quarantined", "too_long"),
    ("p-same", "quarantined", "no_preference"),
    ("u-leak", "contaminated", "phrase"),
}
FILES = {"quarantined": "quarantine.jsonl", "duplicates": "duplicates.jsonl", "contaminated": "contaminated.jsonl"}


def test_every_bad_row_is_removed_for_its_own_reason_and_no_other_row_is(data_run: Path) -> None:
    removed = {
        (row["id"], outcome, row["rule"]) for outcome, name in FILES.items() for row in read_lines(data_run / "out" / name)
    }
    assert removed == EXPECTED


def test_the_funnel_adds_up_and_counts_what_is_on_disk(data_run: Path) -> None:
    out = data_run / "out"
    funnel = json.loads((out / "funnel.json").read_text())
    for kind, counts in funnel["kinds"].items():
        removed = counts["quarantined"] + counts["duplicates"] + counts["contaminated"]
        assert counts["rows_in"] == len(read_lines(data_run / f"{kind}.jsonl")) == counts["kept"] + removed
        for part in ("train", "validation"):
            assert counts[part] == len(read_lines(out / "rows" / kind / f"{part}.jsonl")) > 0
        assert counts["kept"] == counts["train"] + counts["validation"]
    assert sum(funnel["rules"].values()) == len(EXPECTED)


def test_no_secret_and_no_address_leaves_the_snapshot_of_the_inputs(data_run: Path) -> None:
    for path in (data_run / "out").rglob("*"):
        if path.is_file() and "raw" not in path.parts:
            content = path.read_bytes()
            assert AWS_KEY.encode() not in content, path
            assert b"jane.doe" not in content, path
    kept = [row["text"] for row in read_lines(data_run / "out" / "rows" / "pretrain" / "train.jsonl")]
    assert any("Write to <email>." in text for text in kept)


def test_golden_questions_are_frozen_and_absent_from_all_rows(data_run: Path) -> None:
    out = data_run / "out"
    proof = json.loads((out / "proof.json").read_text())
    manifest = json.loads((out / "golden" / "manifest.json").read_text())
    assert proof["golden"] == {name: entry["sha256"] for name, entry in manifest["sets"].items()}
    assert set(proof["intersections"].values()) == {0}
    assert GOLDEN_QUESTION.lower() not in (out / "rows" / "sft" / "train.jsonl").read_text().lower()
    assert sum(proof["rows_checked"].values()) == sum(
        counts["kept"] for counts in json.loads((out / "funnel.json").read_text())["kinds"].values()
    )


def test_data_docs_open_without_a_network(data_run: Path) -> None:
    for name in ("index", "pretrain", "sft", "preference", "unpaired"):
        page = (data_run / "out" / "data_docs" / f"{name}.html").read_text()
        assert "<script" not in page
        assert "<link" not in page
        assert "<img" not in page
    assert "too_short" in (data_run / "out" / "data_docs" / "index.html").read_text()


def test_equal_inputs_give_equal_bytes_and_an_equal_data_version(data_run: Path, tmp_path: Path) -> None:
    recipe = data_run / "recipe.json"
    done = run_data("--config", recipe, "--out", tmp_path / "again", home=tmp_path / "home", PYTHONHASHSEED="2")
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((folder / "record.json").read_text()) for folder in (data_run / "out", tmp_path / "again"))
    assert first["outputs"] == second["outputs"]
    assert first["stamp"]["data_version"] == second["stamp"]["data_version"] != ""
    assert first["fingerprint"] == second["fingerprint"]


def test_a_finished_stage_is_reused_and_says_so(data_run: Path) -> None:
    before = (data_run / "out" / "record.json").read_bytes()
    done = run_data("--config", data_run / "recipe.json", "--out", data_run / "out", home=data_run / "home")
    assert done.returncode == 0
    assert "already finished, reused" in done.stderr
    assert (data_run / "out" / "record.json").read_bytes() == before
    assert json.loads(done.stdout) == json.loads((data_run / "stdout").read_text())


def test_the_job_file_of_a_flow_is_the_same_run_as_the_recipe(data_run: Path, tmp_path: Path) -> None:
    record = json.loads((data_run / "out" / "record.json").read_text())
    job = {"name": "tiny", "version": "1.0.0", "stage": "data", "config": record["config"]}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    done = run_data("--config", tmp_path / "job.yaml", "--out", data_run / "out", home=data_run / "home")
    assert done.returncode == 0
    assert "reused" in done.stderr


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "sft.jsonl").unlink(), ["sft.jsonl", "data.sources[1].path", "cannot be read"]),
        (
            lambda folder: (folder / "sft.jsonl").write_text('{"messages": [}\n'),
            ["sft.jsonl", "line 1", "is not JSON", "on_bad_line: quarantine"],
        ),
        (
            lambda folder: write_lines(folder / "pretrain.jsonl", [*documents(), {"text": "x", "txet": "y"}]),
            ["pretrain.jsonl", "line 48", "txet", "unknown key"],
        ),
        (
            lambda folder: write_lines(
                folder / "golden.jsonl", [{"kind": "choice", "question": "?", "choices": [], "answer": 0}]
            ),
            ["golden.jsonl", "line 1", "choices"],
        ),
    ],
)
def test_bad_input_is_one_line_that_names_file_place_and_fix(tmp_path: Path, spoil: object, said: list[str]) -> None:
    recipe = write_corpus(tmp_path)
    assert callable(spoil)
    spoil(tmp_path)
    done = run_data("--config", recipe, "--out", tmp_path / "out", home=tmp_path / "home")
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert "Traceback" not in done.stderr
    for words in said:
        assert words in error
    assert not (tmp_path / "out" / "record.json").exists()


@pytest.mark.parametrize(
    ("policy", "code", "truncated", "dropped"), [("drop", 0, None, 1), ("truncate", 0, 1, None), ("stop", 2, None, None)]
)
def test_rows_longer_than_the_context(
    tmp_path: Path, policy: str, code: int, truncated: int | None, dropped: int | None
) -> None:
    recipe = write_corpus(tmp_path, on_too_long=policy)
    done = run_data("--config", recipe, "--out", tmp_path / "out", home=tmp_path / "home")
    assert done.returncode == code, done.stderr
    if policy == "stop":
        assert "source sft: c-long: " in done.stderr
        assert "Fix: raise `seq_len`, or set `on_too_long: drop` or `truncate`" in done.stderr
        return
    rules = json.loads((tmp_path / "out" / "funnel.json").read_text())["rules"]
    assert (rules.get("pack.truncated"), rules.get("pack.too_long")) == (truncated, dropped)


def test_rows_that_call_tools_bring_their_tokens(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "lamp", "arguments": {"on": True}}}]}
    turns = [{"role": "user", "content": "Light!"}, call, {"role": "tool", "content": "on"}]
    rows = [
        {"messages": [*turns, {"role": "assistant", "content": f"Done {i}."}], "tools": [{"name": "lamp"}]}
        for i in range(4)
    ]
    recipe = write_corpus(tmp_path)
    write_lines(tmp_path / "sft.jsonl", rows)
    done = run_data("--config", recipe, "--out", tmp_path / "out", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "funnel.json").read_text())["kinds"]["sft"]["kept"] == 4
    assert '"<|call|>"' in (tmp_path / "out" / "tokenizer" / "tokenizer.json").read_text()
    assert "tool_calls" in (tmp_path / "out" / "rows" / "sft" / "train.jsonl").read_text()


def test_contamination_can_stop_the_stage(tmp_path: Path) -> None:
    recipe = write_corpus(tmp_path, on_contamination="stop")
    done = run_data("--config", recipe, "--out", tmp_path / "out", home=tmp_path / "home")
    assert done.returncode == 2
    assert "leak: repeats golden item closed_book/q1" in done.stderr


def run_with(data_run: Path, folder: Path, **changes: Any) -> "subprocess.CompletedProcess[str]":
    """Runs the stage on the small corpus with changed settings, into `<folder>/out`."""
    recipe = json.loads((data_run / "recipe.json").read_text())
    data = recipe.get("data", recipe)
    for source in data["sources"]:
        source["path"] = str(data_run / Path(source["path"]).name)
    data |= changes
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return run_data("--config", folder / "recipe.json", "--out", folder / "out", home=folder / "home")


def test_tokens_are_added_after_those_that_a_tokenizer_has(data_run: Path, tmp_path: Path) -> None:
    done = run_with(data_run, tmp_path, add_tokens=["<|tool|>", "qubit"], tokenizer=str(data_run / "out" / "tokenizer"))
    assert done.returncode == 0, done.stderr
    before, after = (Tokenizer.from_file(str(folder / "out/tokenizer/tokenizer.json")) for folder in (data_run, tmp_path))
    size = before.get_vocab_size()
    assert after.get_vocab() == before.get_vocab() | {"<|tool|>": size, "qubit": size + 1}
    assert after.encode("a qubit").ids[-1] == size + 1


def test_tokens_need_a_tokenizer_to_be_added_to(data_run: Path, tmp_path: Path) -> None:
    done = run_with(data_run, tmp_path, add_tokens=["qubit"])
    assert done.returncode == 2
    assert "data: add_tokens: there is no tokenizer to add them to" in done.stderr


def test_a_template_needs_a_tokenizer_whose_own_it_replaces(data_run: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{% generation %}")
    done = run_with(data_run, tmp_path, chat_template=str(tmp_path / "chat.jinja"))
    assert done.returncode == 2
    assert "data: chat_template: there is no tokenizer whose template it replaces" in done.stderr
