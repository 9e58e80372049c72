"""`goldpath data inspect`: what it prints, and that the section which it gives runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.inspect_source import source_view
from lineage.errors import BadInput

QUESTIONS = [
    {
        "question": f"How many legs have {n} cats and {m} hens?",
        "answer": f"They have {4 * n} + {2 * m} = {4 * n + 2 * m} legs.",
    }
    for n in range(2, 12)
    for m in range(2, 8)
]


def goldpath(*words: str | Path, home: Path) -> "subprocess.CompletedProcess[str]":
    """Runs a command as a person would."""
    environment = os.environ | {"GOLDPATH_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)], capture_output=True, text=True, check=False, env=environment, timeout=200
    )


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Rows whose columns are not those of a row."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return path


def test_what_is_pasted_runs(questions: Path, tmp_path: Path) -> None:
    told = goldpath("flows.cli", "data", "inspect", questions, home=tmp_path / "home")
    assert told.returncode == 0, told.stderr
    assert "60 rows, sft" in " ".join(told.stdout.split())
    section = told.stdout.partition("For a recipe:\n")[2]
    recipe = tmp_path / "elsewhere" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text(f"name: legs\nversion: 1.0.0\n{section.strip()}\n  vocab_size: 400\n")
    done = goldpath("data_contracts", "--config", recipe, "--out", tmp_path / "out", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "funnel.json").read_text())["kinds"]["sft"]["kept"] == len(QUESTIONS)

    # The tokenizer that was trained there counts tokens here.
    told = goldpath(
        "flows.cli", "data", "inspect", questions, "--json", "--rows", "7", "--tokenizer", tmp_path / "out" / "tokenizer",
        home=tmp_path / "home",
    )  # fmt: skip
    view = json.loads(told.stdout)
    assert (view["rows"], view["all_read"], view["tokens_are"]) == (7, False, "counted")
    assert yaml.safe_load(view["recipe"])["data"]["tokenizer"] == str(tmp_path / "out" / "tokenizer")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("none.jsonl", "cannot be read"),
        ("no-org/no-data", "is a data set of the hub, but HF_HUB_OFFLINE is set"),
        ("/no/such/folder", "cannot be read"),
    ],
)
def test_what_is_not_there_is_one_error(where: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=said):
        source_view(where, {})


def test_options_reach_the_source(questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = questions.rename(tmp_path / "questions.log")
    monkeypatch.chdir(tmp_path)
    assert source_view("questions.log", {"format": "jsonl", "split": ""})["rows"] == len(QUESTIONS)
    with pytest.raises(BadInput, match=r"format: .*(got 'xml')"):
        source_view(str(renamed), {"format": "xml"})
    with pytest.raises(BadInput, match=r"tokenizer.json: cannot be read"):
        source_view(str(renamed), {"format": "jsonl"}, tokenizer=tmp_path)
