"""A recipe is strict: what is wrong is named with file, field and fix, and nothing is guessed."""

from pathlib import Path

import pytest
import yaml

from flows.launch import ROOMS
from flows.plan import steps_of
from flows.recipe import OBJECTIVES, SHIPPED, load_recipe
from flows.report import STAGE_ORDER
from flows.settings import Settings
from lineage.errors import BadInput
from lineage.section import read_yaml

RULE = {"metric": "closed_book.exact_match", "direction": "higher", "floor": 0.2, "margin": 0.1}


@pytest.fixture
def recipe_file(tmp_path):
    """Writes the shipped recipe with changes, and returns its path."""

    def write(**changes):
        value = read_yaml(SHIPPED / "pystdlib.yaml")
        for dotted, new in changes.items():
            *sections, key = dotted.split("__")
            target = value
            for section in sections:
                target = target[section]
            if new is None:
                del target[key]
            else:
                target[key] = new
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(value))
        return str(path)

    return write


def test_every_shipped_recipe_loads():
    for path in SHIPPED.glob("*.yaml"):
        assert load_recipe(path.stem) == load_recipe(str(path))


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"sft__stepz": 3}, "sft.stepz", "did you mean `steps`"),
        ({"gate": None}, "gate", "is missing"),
        ({"release": None}, "release", "is missing"),
        ({"sft__steps": "many"}, "sft.steps", "many"),
        ({"name": "No Spaces"}, "name", "No Spaces"),
        ({"dpo__objective": "sft"}, "dpo.objective", "remove it"),
        ({"pretrain__steps": -1}, "pretrain.steps", "greater than 0"),
        ({"gate__metrics": [RULE | {"metric": "no.such"}]}, "gate.metrics.0.metric", "take one of closed_book.exact_match"),
        ({"gate__metrics": [RULE | {"direction": "lower"}]}, "gate.metrics.0.direction", "write `higher`"),
    ],
)
def test_a_wrong_recipe_names_field_and_fix(recipe_file, changes, field, said):
    path = recipe_file(**changes)
    with pytest.raises(BadInput) as caught:
        load_recipe(path)
    assert caught.value.field == field
    assert caught.value.where == path
    assert said in str(caught.value)


def test_a_missing_file_and_broken_yaml_are_told(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        load_recipe(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("name: [unclosed\n")
    with pytest.raises(BadInput, match="not valid YAML"):
        load_recipe(str(tmp_path / "bad.yaml"))


def test_a_path_with_a_null_byte_is_told(recipe_file):
    with pytest.raises(BadInput, match="a path with a null byte"):
        load_recipe(recipe_file(data__sources=[{"kind": "jsonl", "path": "a\0b", "rows": "sft"}]))


def test_an_unknown_suite_is_told_before_anything_runs(recipe_file):
    with pytest.raises(BadInput, match="there is no such suite"):
        load_recipe(recipe_file(evaluation__suite="nope"))


def test_nothing_to_train_is_refused(recipe_file):
    with pytest.raises(BadInput, match="nothing to train"):
        load_recipe(recipe_file(pretrain=None, sft=None, dpo=None))


def test_unpaired_answers_have_a_stage_of_their_own(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file(dpo=None, kto={"steps": 3, "kto_undesirable_weight": 1.5}))
    assert recipe.objectives[-1] == "kto"
    *_, kto, evaluate = steps_of(recipe, Settings(home=tmp_path))
    assert (kto.stage, kto.job.reads["data"]) == ("kto", ["tokenizer/*", "packed/unpaired/*"])
    assert evaluate.job.parents["candidate"] == kto.out
    assert set(OBJECTIVES) <= set(ROOMS) & set(STAGE_ORDER)


def test_paths_are_relative_to_the_recipe(recipe_file):
    path = recipe_file(data__sources=[{"kind": "jsonl", "path": "rows.jsonl", "rows": "sft"}])
    source = load_recipe(path).data.sources[0]
    assert Path(source.path) == Path(path).parent / "rows.jsonl"


def test_a_numeric_version_is_text(recipe_file):
    assert load_recipe(recipe_file(version=1.5)).version == "1.5"
    assert load_recipe(recipe_file(), version="7").version == "7"


def test_a_launchers_file_beside_the_recipe_says_how_to_execute(recipe_file, tmp_path):
    said = {"distributed_type": "FSDP", "num_processes": 2, "use_cpu": True, "fsdp_config": {"fsdp_offload_params": True}}
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(said))
    resources = load_recipe(recipe_file(resources={"accelerate_config": "accelerate.yaml"})).resources
    assert (resources.processes, resources.engine, resources.offload, resources.device) == (2, "fsdp2", "all", "cpu")
    with pytest.raises(BadInput, match=r"is `fsdp2`, but .*recipe.yaml says resources.engine `ddp`"):
        load_recipe(recipe_file(resources={"accelerate_config": "accelerate.yaml", "engine": "ddp", "processes": 2}))
