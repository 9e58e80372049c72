"""`goldpath plan` says what training will take, in parts that add up; after a calibration the time is this machine's."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.calibrate import FILE, calibrate
from flows.forecast import forecast, place_for, stage_of
from flows.recipe import SHIPPED, Recipe, load_recipe
from flows.settings import Settings
from flows.views import plan_table, plan_view
from lineage.errors import BadInput
from lineage.section import read_yaml

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
