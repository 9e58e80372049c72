"""What the README shows works: its recipe, its rows, its list of commands and of settings."""

import json
import re
from pathlib import Path

import pytest

from data_contracts.config import RowKind
from data_contracts.rows import GoldenLine, row_model
from flows.cli import cli
from flows.recipe import load_recipe
from flows.settings import PREFIX, Settings
from lineage.errors import BadInput

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Every fenced block of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_recipe_is_one(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(blocks("yaml")[0], encoding="utf-8")
    assert load_recipe(str(path)).objectives == ["sft", "dpo"]


def test_the_error_is_the_one_that_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(blocks("yaml")[0].replace("learning_rate", "learnig_rate", 1), encoding="utf-8")
    with pytest.raises(BadInput) as raised:
        load_recipe("my.yaml")
    assert f"error: {raised.value}\n" in README


def test_the_rows_are_rows() -> None:
    shown = [json.loads(line) for block in blocks("") for line in block.splitlines() if line.startswith("{")]
    golden = [value for value in shown if "kind" in value]
    rows = [value for value in shown if "kind" not in value]
    assert len(golden) == 4
    for value in golden:
        GoldenLine.model_validate(value)
    kinds: list[RowKind] = ["pretrain", "sft", "sft", "preference", "unpaired"]
    for kind, value in zip(kinds, rows, strict=True):
        row_model(kind, value).model_validate({"id": "1", "source": "readme"} | value)


def test_every_command_is_listed() -> None:
    listed = set(re.findall(r"^\| `goldpath ([a-z|\\]+)", README, flags=re.MULTILINE))
    assert {name for names in listed for name in names.replace("\\", "").split("|")} == set(cli.commands)


def test_every_setting_is_named() -> None:
    names = {field.validation_alias or PREFIX + name.upper() for name, field in Settings.model_fields.items()}
    assert sorted(str(name) for name in names if f"`{name}`" not in README) == []


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link and not (Path(__file__).parent.parent / link).exists()] == []
