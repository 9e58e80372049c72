"""accelerate's and DeepSpeed's files are taken as they are; what contradicts the recipe or cannot be is one error."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_training import Command

from lineage.errors import BadInput
from training.config import TrainingConfig
from training.deepspeed_file import execution_options
from training.launch_files import settle
from training.resources import Resources

FILES = Path(__file__).parent / "launch_files"
RECIPE = {"objective": "sft", "steps": 8, "rows_per_step": 4, "accumulation": 2, "learning_rate": 3e-3, "warmup_steps": 1}


def settled(name: Path | str, resources: dict[str, Any] | None = None, **training: Any) -> tuple[Resources, TrainingConfig]:
    """Settles what one file says over a recipe."""
    path = FILES / name
    key = "deepspeed_config" if path.suffix == ".json" else "accelerate_config"
    asked = Resources.model_validate({key: str(path), **(resources or {})})
    return settle(asked, TrainingConfig.model_validate({**RECIPE, **training}), "recipe.yaml")


def edited(name: str, folder: Path, **changes: Any) -> Path:
    """Writes a file with some of its top-level keys changed."""
    values = yaml.safe_load((FILES / name).read_text())
    path = folder / name
    path.write_text(json.dumps({**values, **changes}))
    return path


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("accelerate-fsdp2.yaml", "bf16",
         {"processes": 2, "engine": "fsdp2", "offload": "all", "device": "cpu", "activation_checkpointing": "full"}),
        ("accelerate-gpus.yaml", "fp16", {"processes": 8, "engine": "ddp", "device": "cuda", "compile": True}),
        ("accelerate-one.yaml", "fp32", {"processes": 1, "engine": "single", "device": "cpu"}),
        ("accelerate-zero3.yaml", "bf16", {"processes": 2, "engine": "zero3", "offload": "all", "device": "cpu"}),
        ("accelerate-zero-file.yaml", "auto", {"processes": 2, "engine": "zero2", "offload": "optimizer"}),
        ("zero2.json", "auto", {"engine": "zero2", "offload": "optimizer"}),
    ],
)  # fmt: skip
def test_a_file_says_how_to_execute(name: str, precision: str, expected: dict[str, Any]) -> None:
    training = {"rows_per_step": 16} if "gpus" in name else {}
    resources, recipe = settled(name, **training)
    assert {key: getattr(resources, key) for key in expected} == expected
    assert recipe.precision == precision
    assert settle(resources, recipe, "job.yaml") == (resources, recipe)  # as a stage that a flow started reads it again


def test_numbers_that_agree_are_accepted() -> None:
    resources, recipe = settled("zero3.json", {"processes": 2})
    assert (resources.engine, resources.offload, recipe.precision) == ("zero3", "none", "bf16")


def test_deepspeeds_own_settings_reach_it_as_written() -> None:
    assert execution_options("") == {}
    assert execution_options(str(FILES / "zero2.json"))["zero_optimization"] == {
        "allgather_partitions": True, "allgather_bucket_size": 2e8, "overlap_comm": True, "reduce_scatter": True,
        "reduce_bucket_size": 2e8, "contiguous_gradients": True,
    }  # fmt: skip
    assert "reduce_bucket_size" not in execution_options(str(FILES / "zero3.json"))["zero_optimization"]


def test_what_has_no_effect_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    settled("accelerate-gpus.yaml", rows_per_step=16)
    told = capsys.readouterr().err
    assert "accelerate-gpus.yaml: without effect here: " in told
    assert "main_process_ip" in told
    assert "num_machines" in told
    settled("accelerate-one.yaml")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("resources", "training", "field", "problem"),
    [
        ({"processes": 2}, {"learning_rate": 1e-4}, "optimizer.params.lr", "says learning_rate `0.0001`"),
        ({"processes": 2}, {"max_grad_norm": 0.5}, "gradient_clipping", "says max_grad_norm `0.5`"),
        ({"processes": 2}, {"accumulation": 1}, "gradient_accumulation_steps", "says accumulation `1`"),
        ({}, {}, "train_micro_batch_size_per_gpu", "says rows of each process at a time `2`"),
        ({"processes": 2}, {"rows_per_step": 8}, "train_batch_size", "says rows_per_step `8`"),
        ({"processes": 2}, {"optimizer": "muon"}, "optimizer.type", "is `adamw`, but recipe.yaml says optimizer `muon`"),
        ({"processes": 2}, {"schedule": "constant"}, "scheduler.type", "says schedule `constant`"),
        ({"processes": 2}, {"warmup_steps": 0}, "scheduler.params.warmup_num_steps", "says warmup_steps `0`"),
        ({"processes": 2}, {"precision": "fp32"}, "bf16.enabled", "is `bf16`, but recipe.yaml says precision `fp32`"),
        ({"processes": 2, "engine": "fsdp2"}, {}, "zero_optimization.stage", "says resources.engine `fsdp2`"),
    ],
)
def test_a_contradiction_names_both_places(
    resources: dict[str, Any], training: dict[str, Any], field: str, problem: str
) -> None:
    with pytest.raises(BadInput, match=problem) as caught:
        settled("zero3.json", resources, **training)
    assert caught.value.where == str(FILES / "zero3.json")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("zero2.json", {"zero_optimisation": {}}, r"no option that Goldpath knows\. Fix: did you mean `zero_optimization`"),
        ("zero2.json", {"zero_optimization": 2}, "and no section"),
        ("zero2.json", {"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, "optimizer: is `cpu`"),
        ("zero2.json", {"optimizer": {"type": "AdamW", "params": [1]}}, "optimizer.params: is"),
        ("zero2.json", {"scheduler": {"params": "none"}}, "scheduler.params: is `none`, and no section"),
        ("zero2.json", {"fp16": {"enabled": "true"}}, "fp16.enabled: is `true`, which"),
        ("zero2.json", {"bf16": {"enabled": [1]}}, "bf16.enabled: is"),
        ("accelerate-fsdp2.yaml", {"fsdp_config": "foo"}, "fsdp_config: is `foo`, and no section"),
        ("accelerate-one.yaml", {"dynamo_config": "inductor"}, "dynamo_config: is `inductor`, and no section"),
        ("accelerate-zero3.yaml", {"deepspeed_config": "ds.json"}, "deepspeed_config: is `ds.json`, and no section"),
        ("zero2.json", {"zero_optimization": {"stage": 4}}, "is `4`, which Goldpath does not have"),
        ("zero2.json", {"zero_optimization": {"stage": [2]}}, "which Goldpath does not have"),
        ("zero2.json", {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "is `nvme`"),
        ("zero2.json", {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "no option that"),
        ("zero2.json", {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"},
                                              "offload_param": {"device": "cpu"}}}, "cannot offload `all`"),
        ("zero2.json", {"optimizer": {"type": "Lamb"}}, "is `Lamb`"),
        ("zero2.json", {"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "and so is bf16.enabled"),
        ("zero2.json", {"fp16": {"enabled": True, "loss_scale": 128}}, "is a fixed scale"),
        ("accelerate-one.yaml", {"distributed_type": "MEGATRON_LM"}, "is `MEGATRON_LM`, which Goldpath does not have"),
        ("accelerate-one.yaml", {"mixed_precision": "int8"}, "is `int8`"),
        ("accelerate-one.yaml", {"compute_environment": "AMAZON_SAGEMAKER"}, "AMAZON_SAGEMAKER"),
        ("accelerate-one.yaml", {"num_procs": 2}, "unknown key"),
        ("accelerate-one.yaml", {"num_processes": 0}, "greater than 0"),
        ("accelerate-one.yaml", {"num_processes": 2}, "is one process, but processes is 2"),
        ("accelerate-one.yaml", {"megatron_lm_config": {"megatron_lm_tp_degree": 2}}, "is for what Goldpath does not have"),
        ("accelerate-one.yaml", {"dynamo_config": {"dynamo_backend": "CUDAGRAPHS"}}, "is `cudagraphs`"),
        ("accelerate-fsdp2.yaml", {"fsdp_config": {"fsdp_sharding_strategy": "HYBRID_SHARD"}}, "is `HYBRID_SHARD`"),
        ("accelerate-fsdp2.yaml", {"fsdp_config": {"fsdp_ofload_params": True}}, "unknown key"),
        ("accelerate-zero3.yaml", {"deepspeed_config": {"zero_stage": 5}}, "is `5`"),
        ("accelerate-zero-file.yaml", {}, "cannot be read"),  # zero2.json is not in the other folder
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(name: str, changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=problem):
        settled(edited(name, tmp_path, **changes))


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "\x00"])
@pytest.mark.parametrize("name", ["broken.json", "broken.yaml"])
def test_files_that_are_none(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput):
        settled(tmp_path / name)


@pytest.mark.slow
def test_a_stage_trains_as_a_deepspeed_file_says(training_command: Command, tmp_path: Path) -> None:
    resources = {"processes": 2, "device": "cpu", "deepspeed_config": str(FILES / "zero2.json")}
    job = training_command.job("sft", resources=resources, steps=2)
    code, said, errors = training_command.run(job, tmp_path / "out", processes=2)
    assert code == 0, errors
    assert "zero2 on cpu in fp32" in errors
    assert errors.count("zero2.json: without effect here: ") == 1
    assert said["metrics"]["steps"] == 2
