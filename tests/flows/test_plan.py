"""`goldpath plan` says what training will take, in parts that add up; after a calibration the time is this machine's."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.calibrate import FILE, calibrate, share_of_node
from flows.forecast import forecast, place_for, stage_of
from flows.recipe import SHIPPED, Recipe, load_recipe
from flows.settings import Settings
from flows.views import plan_table, plan_view
from lineage.errors import BadInput
from lineage.section import read_yaml
from training.calibration import write_rows
from training.config import TrainingConfig
from training.resources import Resources

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 2,
    "max_positions": 512,
}


@pytest.fixture
def small_recipe(tmp_path: Path) -> Path:
    """The shipped recipe with a model of a few weights."""
    value = read_yaml(SHIPPED / "pystdlib.yaml") | {"model": SMALL}
    value["data"] |= {"vocab_size": 512, "seq_len": 64}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def with_model(recipe: Recipe, **dimensions: Any) -> Recipe:
    """Returns the recipe with another model."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=dimensions)})


def with_stage(recipe: Recipe, objective: str, **values: Any) -> Recipe:
    """Returns the recipe with another training stage."""
    return recipe.model_copy(update={objective: TrainingConfig.model_validate({"objective": objective, **values})})


def test_plan_names_memory_by_part_and_the_optimal_tokens(
    home_settings: Settings, small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("per_hour: {cpu: 36}")
    monkeypatch.setenv("GOLDPATH_PRICES", str(prices))
    view = plan_view(home_settings, str(small_recipe), None)
    by_stage = {row["stage"]: row for row in view["stages"]}
    pretrain = by_stage["pretrain"]
    assert sum(pretrain["memory"].values()) == pretrain["memory_bytes"]
    assert pretrain["tokens"] == 240 * 4 * 64
    assert f"{20 * pretrain['parameters']:,}" in pretrain["hint"]
    assert pretrain["cost"] >= pretrain["seconds"] * 0.01  # a core at least
    assert by_stage["dpo"]["trained_parameters"] < by_stage["dpo"]["parameters"]
    assert "memory" not in by_stage["data"]
    assert plan_table(view)


def test_a_model_that_does_not_fit_is_told_with_what_does(home_settings: Settings, small_recipe: Path) -> None:
    layers = int(psutil.virtual_memory().total / (16 * 268e6)) + 2  # 16 bytes for each of 268 M weights of a layer
    recipe = with_model(load_recipe(str(small_recipe)), hidden_size=4096, intermediate_size=16384, num_layers=layers)
    found = forecast(recipe, "pretrain", home_settings)
    assert "it will not fit; the cheapest setting that does is resources: {processes: " in found["warning"]
    assert "warning" not in forecast(load_recipe(str(small_recipe)), "pretrain", home_settings)


def test_a_calibration_is_remembered_and_used(home_settings: Settings, small_recipe: Path) -> None:
    recipe = load_recipe(str(small_recipe))
    assert forecast(recipe, "dpo", home_settings)["speed"] == "table"
    measured = calibrate(home_settings, stage_of(recipe, "pretrain", home_settings), place_for(recipe.resources))
    found = forecast(recipe, "pretrain", home_settings)
    assert found["speed"] == "calibrated"
    assert found["seconds"] > found["flops"] / measured.flops_per_second
    assert forecast(recipe, "sft", home_settings)["speed"] == "device"
    assert measured.memory_bytes == pytest.approx(found["memory_bytes"], rel=0.25)
    (home_settings.home / FILE).write_text("{torn")
    with pytest.raises(BadInput, match="calibrate again"):
        forecast(recipe, "pretrain", home_settings)


def test_a_calibration_of_judged_answers_runs(home_settings: Settings, small_recipe: Path) -> None:
    recipe = with_stage(load_recipe(str(small_recipe)), "kto", steps=20, rows_per_step=2)
    stage, place = stage_of(recipe, "kto", home_settings), place_for(recipe.resources)
    assert calibrate(home_settings, stage, place).flops_per_second > 0
    assert forecast(recipe, "kto", home_settings)["speed"] == "calibrated"


def test_nodes_divide_the_processes_and_pay_for_all_of_them(
    home_settings: Settings, small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("per_hour: {cpu: 36}")
    monkeypatch.setenv("GOLDPATH_PRICES", str(prices))
    recipe = load_recipe(str(small_recipe))

    def placed(**resources: Any) -> Recipe:
        return recipe.model_copy(update={"resources": Resources.model_validate(resources)})

    one, two = placed(processes=2, engine="ddp"), placed(processes=4, nodes=2, engine="ddp")
    assert place_for(two.resources) == place_for(one.resources)
    on_one, on_two = (forecast(each, "pretrain", home_settings) for each in (one, two))
    assert on_two["seconds"] < on_one["seconds"]
    assert on_two["cost"] / on_two["seconds"] == pytest.approx(2 * on_one["cost"] / on_one["seconds"])
    assert "each of 2 nodes is taken to be like this machine" in on_two["note"]
    stage = stage_of(two, "pretrain", home_settings)
    share = share_of_node(stage)
    assert (share.resources.processes, share.resources.nodes, share.micro_batch) == (2, 1, stage.micro_batch)
    assert share.training.rows_per_step == 2


def test_what_a_launchers_file_says_is_planned_with(home_settings: Settings, small_recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text("{distributed_type: FSDP, num_processes: 2, mixed_precision: 'no', use_cpu: true}")
    value = read_yaml(small_recipe) | {"resources": {"accelerate_config": str(file)}}
    small_recipe.write_text(yaml.safe_dump(value))
    found = forecast(load_recipe(str(small_recipe)), "pretrain", home_settings)
    assert (found["precision"], found["processes"]) == ("fp32", 2)


def test_the_rows_of_a_built_data_version_are_counted(home_settings: Settings, small_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(small_recipe))
    assumed = forecast(recipe, "sft", home_settings)
    assert "rows are taken to be full" in assumed["assumption"]
    data = tmp_path / "data"
    write_rows(data, "sft", 400, 64, rows=10)
    counted = forecast(recipe, "sft", home_settings, data)
    assert "assumption" not in counted
    assert (counted["rows"]["rows"], counted["rows"]["tokens"]) == (10, 640)
    assert counted["rows"]["targets"] == pytest.approx(320, abs=10)
    assert counted["rows"]["steps_per_epoch"] == 2.5
    assert counted["rows"]["epochs"] == 360 * 4 / 10
    assert counted["parameters"] < assumed["parameters"]  # the tokenizer has 400 tokens, not up to 512
    with pytest.raises(BadInput, match=r"preference/train\.safetensors: is missing"):
        forecast(recipe, "dpo", home_settings, data)
    crowd = recipe.model_copy(update={"resources": Resources(processes=20, engine="ddp")})
    with pytest.raises(BadInput, match="fewer than the 20 processes"):
        forecast(crowd, "sft", home_settings, data)


def test_plan_refuses_what_training_refuses(home_settings: Settings, small_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(small_recipe))
    with pytest.raises(BadInput, match="max_positions: is 512, but the packed rows have 1024 tokens"):
        forecast(recipe.model_copy(update={"data": recipe.data.model_copy(update={"seq_len": 1024})}), "sft", home_settings)
    with pytest.raises(BadInput, match=r"config\.json: is missing, so this is no model folder"):
        forecast(with_model(recipe, base=str(tmp_path)), "sft", home_settings)
    value = read_yaml(small_recipe) | {"resources": {"processes": 3, "engine": "ddp"}}
    small_recipe.write_text(yaml.safe_dump(value))
    problem = r"small\.yaml: pretrain\.rows_per_step: is 4, no multiple of 3 processes x accumulation 1. Fix: use 6"
    with pytest.raises(BadInput, match=problem):
        plan_view(home_settings, str(small_recipe), None)


def test_restarts_are_marked_in_the_curves() -> None:
    from flows.charts import loss_curves, speed_curves, time_bars

    rows = [{"step": 0, "validation_loss": 3.0}]
    rows += [
        {"step": step, "loss": 3.0 / step, "learning_rate": 0.1, "restarts": int(step > 2) + int(step > 4)}
        | {"tokens_per_second": 10.0 * step, "mfu": 0.5, "forward_seconds": 1.0, "backward_seconds": 2.0}
        for step in range(1, 7)
    ]
    one, none = loss_curves({"pretrain": rows}), loss_curves({"pretrain": rows[:3]})
    assert one.count("stroke-dasharray") > none.count("stroke-dasharray") == 0
    assert "MFU, %" in speed_curves({"pretrain": rows})
    assert "backward" in time_bars({"pretrain": rows})
    assert json.dumps(one)
