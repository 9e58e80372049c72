"""How a recipe's `model:` reaches the stages: by content, and by the bytes of the base."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.plan import steps_of
from flows.recipe import SHIPPED, load_recipe
from flows.settings import Settings
from lineage.errors import BadInput
from lineage.section import read_yaml

Write = Callable[..., str]


@pytest.fixture
def recipe_with(tmp_path: Path) -> Write:
    """Writes the shipped recipe with another `model:`, and returns its path."""

    def write(model: dict[str, Any], **data: Any) -> str:
        value = read_yaml(SHIPPED / "pystdlib.yaml")
        value["model"] = model
        value["data"] |= data
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(value))
        return str(path)

    return write


def test_a_configuration_file_counts_by_its_content(recipe_with: Write, home_settings: Settings, tmp_path: Path) -> None:
    values = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps(values))
    recipe = load_recipe(recipe_with({"config": "config.json"}))  # relative to the recipe
    assert recipe.model.config == values
    pretrain = next(step for step in steps_of(recipe, home_settings) if step.stage == "pretrain")
    assert pretrain.job.config["model"]["config"] == values
    with pytest.raises(
        BadInput, match=r"recipe.yaml: model.config: cannot be read as a model's config.json \(No such file"
    ):
        load_recipe(recipe_with({"config": "other.json"}))


def test_only_the_first_stage_grows_the_vocabulary(recipe_with: Write, home_settings: Settings, tmp_path: Path) -> None:
    base, own = tmp_path / "base", tmp_path / "own"
    base.mkdir()
    own.mkdir()
    told = {"base": "base", "grow_vocabulary": True}
    steps = {step.stage: step.job for step in steps_of(load_recipe(recipe_with(told)), home_settings)}
    assert steps["pretrain"].config["model"]["grow_vocabulary"] is True
    assert steps["pretrain"].config["model"]["base"] == ""  # what counts is the parent's bytes, not where they are
    assert [steps[stage].config["model"] for stage in ("sft", "dpo")] == [None, None]
    assert steps["data"].parents == {"tokenizer": base}
    steps = {step.stage: step.job for step in steps_of(load_recipe(recipe_with(told, tokenizer="own")), home_settings)}
    assert steps["data"].parents == {}
    assert steps["data"].config["tokenizer"] == str(own)
    steps = {step.stage: step.job for step in steps_of(load_recipe(recipe_with({"base": "base"})), home_settings)}
    assert steps["pretrain"].config["model"] is None


def test_a_base_without_a_chat_template_is_not_asked(recipe_with: Write, home_settings: Settings, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    recipe = load_recipe(recipe_with({"base": "base"}))
    for name, text, asked in (
        ("tokenizer_config.json", "{}", False),
        ("tokenizer_config.json", '{"chat_template": "…"}', True),
        ("chat_template.jinja", "…", True),
    ):
        (base / name).write_text(text)
        evaluate = next(step.job for step in steps_of(recipe, home_settings) if step.stage == "evaluate")
        assert ("base" in evaluate.parents) == asked


def test_there_must_be_a_base_to_grow(recipe_with: Write) -> None:
    with pytest.raises(BadInput, match=r"model.grow_vocabulary: there is no `model.base` to grow"):
        load_recipe(recipe_with({"grow_vocabulary": True}))


def test_a_revision_is_of_a_base(recipe_with: Write) -> None:
    for model in ({}, {"base": "tiny@1.0.0"}):
        with pytest.raises(BadInput, match=r"revision is of a `base` on the hub, and there is none"):
            load_recipe(recipe_with({**model, "revision": "main"}))
