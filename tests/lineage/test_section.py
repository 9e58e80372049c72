"""A wrong recipe is one error that names file, field and fix."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from lineage.errors import BadInput
from lineage.section import Section, parse, read_yaml


class Inner(Section):
    learning_rate: float
    steps: int = 10


class Outer(Section):
    name: str
    inner: Inner
    several: list[Inner] = Field(default_factory=list)


def refusal(value: Any, prefix: str = "") -> BadInput:
    with pytest.raises(BadInput) as caught:
        parse(Outer, value, "recipe.yaml", prefix)
    return caught.value


def test_a_misspelt_key_is_named_with_the_key_that_was_meant() -> None:
    error = refusal({"name": "a", "inner": {"learning_rat": 1.0, "learning_rate": 1.0}})
    assert (error.where, error.field, error.problem) == ("recipe.yaml", "inner.learning_rat", "unknown key")
    assert error.fix == "did you mean `learning_rate`?"


def test_a_key_that_resembles_nothing_is_to_be_removed() -> None:
    assert refusal({"name": "a", "inner": {"learning_rate": 1.0}, "zzz": 1}).fix == "remove it"


def test_a_missing_key_is_named_with_its_path() -> None:
    error = refusal({"name": "a", "inner": {}}, prefix="sft")
    assert (error.field, error.problem, error.fix) == ("sft.inner.learning_rate", "is missing", "add it")


def test_a_misspelt_key_that_must_be_there_is_called_misspelt() -> None:
    error = refusal({"name": "a", "inner": {"learning_rat": 1.0}})
    assert (error.field, error.fix) == ("inner.learning_rat", "did you mean `learning_rate`?")


def test_a_wrong_type_shows_what_was_given() -> None:
    error = refusal({"name": "a", "inner": {"learning_rate": "fast"}})
    assert error.field == "inner.learning_rate"
    assert "'fast'" in error.problem


def test_a_wrong_item_of_a_list_is_named_by_its_place() -> None:
    value = {"name": "a", "inner": {"learning_rate": 1}, "several": [{"learning_rate": 1}, {"learning_rate": 1, "step": 2}]}
    error = refusal(value)
    assert error.field == "several.1.step"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_cannot_hold_are_refused(number: float) -> None:
    assert refusal({"name": "a", "inner": {"learning_rate": number}}).field == "inner.learning_rate"


def test_a_section_cannot_be_changed() -> None:
    section = parse(Inner, {"learning_rate": 1.0}, "x")
    with pytest.raises(ValueError, match="frozen"):
        section.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "field", "problem"),
    [
        (b"a: 1\nb: [1", "line 2", "is not valid YAML"),
        (b"a: 1\nb: \xff", "byte 8", "is not UTF-8"),
        (b"- 1", "", "does not hold a mapping"),
        (b"", "", "does not hold a mapping"),
        (b"a: " + b"[" * 20_000, "", "is nested too deeply"),
        (b"a: " + b"1" * 5_000, "", "holds a value that cannot be read"),
        (b"a: 2024-13-45", "", "holds a value that cannot be read"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes, field: str, problem: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_yaml(path)
    assert caught.value.where == str(path)
    assert caught.value.field == field
    assert problem in caught.value.problem


@pytest.mark.parametrize("written", ["1.10", "010", "0x10", "1:30", "yes", "2024-01-01", "7", "1.0.0", "'1.10'"])
def test_a_version_is_the_text_that_is_written(tmp_path: Path, written: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: n\nversion: {written}\n")
    assert read_yaml(path)["version"] == written.strip("'")


@pytest.mark.parametrize("text", ["version: 1.0\nversion: 1.10\n", "old: &old\n  version: 1.10\n<<: *old\n"])
def test_a_version_that_is_repeated_or_merged_is_the_one_that_yaml_takes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert read_yaml(path)["version"] == "1.10"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_yaml_cannot_name_python_objects(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: !!python/object/apply:os.getcwd []")
    with pytest.raises(BadInput, match="not valid YAML"):
        read_yaml(path)
