"""Suites, and what one item is worth."""

import math
from pathlib import Path

import pytest

from evaluation.config import EvaluationConfig
from evaluation.scoring import accuracy, bits_per_byte, exact_match, match
from evaluation.suite import SHIPPED, load_suite, suite_digests
from lineage.errors import BadInput


def test_shipped_suite() -> None:
    suite = load_suite("fast")
    names = ["closed_book.exact_match", "choice.accuracy", "heldout.bits_per_byte", "format.match"]
    assert [task.full_name for task in suite.tasks] == names
    assert [task.direction for task in suite.tasks] == ["higher", "higher", "lower", "higher"]
    assert suite_digests(EvaluationConfig()) == {}  # shipped suites are code


def test_own_suite_by_path(tmp_path: Path) -> None:
    own = (SHIPPED / "choice.yaml").read_text().replace("task: choice", "task: riddles")
    (tmp_path / "riddles.yaml").write_text(own)
    (tmp_path / "mine.yaml").write_text("name: mine\ntasks: [riddles, heldout]\n")
    suite = load_suite(str(tmp_path / "mine.yaml"))
    assert [(task.name, task.golden) for task in suite.tasks] == [("riddles", "choice"), ("heldout", "heldout")]
    before = suite_digests(EvaluationConfig(suite=str(tmp_path / "mine.yaml")))
    assert sorted(before) == ["suite/heldout.yaml", "suite/mine.yaml", "suite/riddles.yaml"]
    (tmp_path / "riddles.yaml").write_text(own + "# changed\n")
    assert suite_digests(EvaluationConfig(suite=str(tmp_path / "mine.yaml"))) != before


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "there is no such suite. Fix: take one of fast, likelihood, or a file"),
        ({"s.yaml": "name: s\ntasks: []\n"}, "tasks"),
        ({"s.yaml": "name: s\ntasks: [nowhere]\n"}, "there is no nowhere.yaml"),
        ({"s.yaml": "name: s\ntask: [choice]\n"}, "did you mean `tasks`"),
        ({"s.yaml": "name: s\ntasks: [own]\n", "own.yaml": "task: other\n"}, "name it `own` like its file"),
        ({"s.yaml": "name: s\ntasks: [own]\n", "own.yaml": "task: own\n"}, "does not hold exactly one metric"),
        ({"s.yaml": "name: s\ntasks: [own]\n", "own.yaml": "task: [\n"}, "is not a readable task file"),
    ],
)
def test_bad_suite(files: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(BadInput) as refused:
        load_suite(str(tmp_path / "s.yaml"))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("textwrap", 1),
        (" textwrap\n", 1),
        ("`textwrap`.", 1),
        ("Textwrap", 0),
        ("textwrap textwrap", 0),
        ("textwrap, I think", 0),
        ("", 0),
    ],
)
def test_exact_match(said: str, right: float) -> None:
    assert exact_match({"answer": "textwrap"}, [said]) == {"exact_match": right}


def test_format_must_match_the_whole_answer() -> None:
    assert match({"pattern": "yes|no"}, [" yes "]) == {"match": 1}
    assert match({"pattern": "yes|no"}, ["yes, indeed"]) == {"match": 0}


def test_accuracy_and_what_is_not_a_number() -> None:
    assert accuracy({"answer": 1}, [(-2.0, False), (-1.0, False)]) == {"accuracy": 1}
    assert accuracy({"answer": 0}, [(-2.0, False), (-1.0, False)]) == {"accuracy": 0}
    assert math.isnan(accuracy({"answer": 0}, [(math.nan, False), (-1.0, False)])["accuracy"])


def test_bytes_are_of_utf8() -> None:
    assert bits_per_byte({"text": "grün"}, [-3.0]) == {"bits_per_byte": (-3.0, 5)}
