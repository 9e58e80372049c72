"""What a user can get wrong is one line that names the file, the field and the fix."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import TINY_MODEL, VOCABULARY, Command, write_tokenizer

from lineage.errors import BadInput, Tampered
from lineage.files import write_json
from lineage.job import load_stage
from lineage.section import parse
from lineage.stage import STARTED
from training.batches import PackedRows
from training.config import ModelConfig, TrainingConfig, TrainingJob
from training.model import build_model
from training.placement import require_possible
from training.processes import Processes, join_processes
from training.resources import Resources
from training.scoring import Scorer
from training.stage import check_division
from training.vocabulary import Vocabulary


def training(**changes: object) -> TrainingConfig:
    """A valid configuration with changes."""
    return TrainingConfig.model_validate({"objective": "sft", "steps": 2, **changes})


@pytest.fixture
def small_base(packed_data: Path, tmp_path: Path) -> Path:
    """A plain Hugging Face folder of a tiny model and its tokenizer."""
    model = build_model(ModelConfig(**TINY_MODEL), None, Vocabulary(packed_data / "tokenizer"), training(), 48)
    model.save_pretrained(tmp_path / "base")
    shutil.copytree(packed_data / "tokenizer", tmp_path / "base", dirs_exist_ok=True)
    return tmp_path / "base"


def load(base: Path, data: Path, **changes: object) -> torch.nn.Module:
    """Builds the model of an SFT job."""
    return build_model(None, base, Vocabulary(data / "tokenizer"), training(**changes), 48)


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"lerning_rate": 1}, "config.training.lerning_rate", "unknown key"),
        ({"steps": 0}, "config.training.steps", "greater than 0"),
        ({"gradient_checkpointing": True}, "config.training", "is `activation_checkpointing: full` under `resources:`"),
        ({"accumulation": 3}, "config.training", "not divisible by accumulation 3"),
        ({"warmup_steps": 9}, "config.training", "exceed steps 2"),
        ({"schedule": "wsd"}, "config.training", "needs decay_steps"),
        ({"lora_rank": 2, "lora_targets": []}, "config.training", "lora_targets is empty"),
    ],
)
def test_configuration(changes: dict[str, object], field: str, problem: str) -> None:
    value = {"training": {"objective": "sft", "steps": 2, **changes}}
    with pytest.raises(BadInput, match=problem) as caught:
        parse(TrainingJob, value, "job.yaml", "config")
    assert caught.value.field == field


def test_dimensions_that_do_not_divide() -> None:
    for changes in ({"hidden_size": 30, "num_heads": 4}, {"num_heads": 4, "num_kv_heads": 3}):
        with pytest.raises(BadInput, match="not divisible"):
            parse(ModelConfig, changes, "job.yaml")
    with pytest.raises(BadInput, match="must be even"):
        parse(ModelConfig, {"hidden_size": 12, "num_heads": 4}, "job.yaml")


def test_single_engine_with_many_processes() -> None:
    with pytest.raises(BadInput, match="choose ddp, fsdp2 or zero3"):
        parse(Resources, {"processes": 2}, "job.yaml")


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"engine": "single", "offload": "optimizer"}, "cannot offload `optimizer`: choose zero1 or zero2 or zero3"),
        ({"engine": "fsdp2", "offload": "optimizer"}, "cannot offload `optimizer`: choose zero1"),
        ({"engine": "zero2", "offload": "all"}, "cannot offload `all`: choose fsdp2 or zero3"),
        ({"engine": "zero3", "compile": True}, "cannot compile blocks: choose single, ddp or fsdp2"),
        ({"engine": "zero4"}, "Input should be 'single', 'ddp', 'fsdp2', 'zero1', 'zero2' or 'zero3'"),
    ],
)
def test_what_an_engine_cannot_do(asked: dict[str, object], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        parse(Resources, asked, "job.yaml")


@pytest.mark.parametrize(
    ("engine", "optimizer", "library"), [("zero1", "adamw", "deepspeed"), ("single", "adamw_8bit", "bitsandbytes")]
)
def test_a_library_that_is_not_installed(
    engine: str, optimizer: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.placement.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=rf"needs {library}, which is not installed\. Fix: install it, or choose"):
        require_possible(Resources.model_validate({"engine": engine}), training(optimizer=optimizer))


def test_sharded_engines_do_not_take_eight_bit_state() -> None:
    with pytest.raises(BadInput, match="blocks of whole weights, and engine `fsdp2` divides them"):
        require_possible(Resources(engine="fsdp2"), training(optimizer="adamw_8bit"))


def test_an_absent_gpu_is_an_error_and_not_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(BadInput, match="asks for a GPU, but this machine has 0"):
        join_processes(Resources(device="cuda"), Path("job.yaml"))


def test_processes_that_were_not_started() -> None:
    with pytest.raises(BadInput, match=r"is 2, but 1 process.* were started\. Fix: start it with `torchrun"):
        join_processes(Resources(processes=2, engine="ddp"), Path("job.yaml"))


def test_rows_that_cannot_be_divided(packed_data: Path) -> None:
    rows = PackedRows(packed_data, "sft", "train")
    with pytest.raises(BadInput, match=r"is 6, no multiple of 2 processes x accumulation 2. Fix: use 8"):
        check_division(training(rows_per_step=6, accumulation=2), Processes(0, 2, torch.device("cpu")), rows)


def test_more_processes_than_rows(packed_data: Path) -> None:
    rows = PackedRows(packed_data, "sft", "train")
    check_division(training(rows_per_step=10), Processes(0, 10, torch.device("cpu")), rows)
    with pytest.raises(BadInput, match=r"train.safetensors: holds 10 packed rows, fewer than the 11 processes"):
        check_division(training(rows_per_step=11), Processes(0, 11, torch.device("cpu")), rows)


def test_unknown_adapter_target(small_base: Path, packed_data: Path) -> None:
    with pytest.raises(BadInput, match=r"`q_prj` is no linear layer of the model. Fix: did you mean `q_proj`"):
        load(small_base, packed_data, lora_rank=2, lora_targets=["q_prj"])


@pytest.mark.parametrize("size", [VOCABULARY + 1, VOCABULARY - 1])
def test_tokenizer_of_another_model(small_base: Path, tmp_path: Path, size: int) -> None:
    write_tokenizer(tmp_path / "tokenizer", size)
    with pytest.raises(BadInput, match="has another vocabulary"):
        load(small_base, tmp_path)


def test_a_base_without_a_tokenizer(small_base: Path, packed_data: Path) -> None:
    (small_base / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"base: tokenizer.json: is missing"):
        load(small_base, packed_data)


def test_pickled_weights_are_refused_unread(small_base: Path, packed_data: Path) -> None:
    (small_base / "pytorch_model.bin").write_bytes(b"this would run code")
    with pytest.raises(BadInput, match=r"pytorch_model.bin: can run code"):
        load(small_base, packed_data)
    (small_base / "pytorch_model.bin").unlink()
    (small_base / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="holds no safetensors"):
        load(small_base, packed_data)


def test_a_base_that_is_no_model(small_base: Path, packed_data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no model folder"):
        load(tmp_path / "empty", packed_data)
    for config, problem in (
        ("{", "is not JSON"),
        ('{"model_type": "llamma"}', "is `llamma`, which transformers does not know. Fix"),
        ('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}', "brings code of its own, which is never run"),
        ('{"model_type": "vit"}', "is no model that can be loaded"),
        ('{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}', "says that the weights are quantised"),
    ):
        (small_base / "config.json").write_text(config)
        with pytest.raises(BadInput, match=problem):
            load(small_base, packed_data)


def test_a_base_whose_weights_are_not_all_there(small_base: Path, packed_data: Path) -> None:
    weights = load_file(small_base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, small_base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"holds no weights for model.layers.1.mlp.up_proj.weight\. Fix"):
        load(small_base, packed_data)
    (small_base / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(BadInput, match="is no model that can be loaded"):
        load(small_base, packed_data)


def test_a_model_that_sees_ahead(packed_data: Path) -> None:
    encoder = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
               "intermediate_size": 64, "is_decoder": False}  # fmt: skip
    model = build_model(ModelConfig(config=encoder), None, Vocabulary(packed_data / "tokenizer"), training(), 48)
    with pytest.raises(BadInput, match="BertLMHeadModel sees the tokens that it is to predict"):
        Scorer(model)


def test_a_model_with_a_broken_weight(packed_data: Path) -> None:
    model = build_model(
        ModelConfig(hidden_size=32, num_layers=1), None, Vocabulary(packed_data / "tokenizer"), training(), 48
    )
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 5] = float("nan")
    with pytest.raises(BadInput, match="weights: give predictions that are no finite numbers"):
        Scorer(model)


def test_a_configuration_file_that_describes_no_model(packed_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text, problem in (("{", "is not JSON"), ("{}", "names no `model_type`"), ("[1]", "valid dictionary")):
        path.write_text(text)
        with pytest.raises(BadInput, match=problem):
            parse(ModelConfig, {"config": str(path)}, "my.yaml")
    with pytest.raises(BadInput, match="No such file"):
        parse(ModelConfig, {"config": str(tmp_path / "absent.json")}, "my.yaml")
    for more, problem in (({"base": "x"}, "two models"), ({"num_layers": 9}, "num_layers is what config says")):
        with pytest.raises(BadInput, match=problem):
            parse(ModelConfig, {"config": {"model_type": "gpt2"}, **more}, "my.yaml")
    for values, problem in (
        ({"model_type": "gpt9"}, "which transformers does not know"),
        ({"model_type": "gpt2", "n_layer": "many"}, r"is not valid \(Validation error for field 'n_layer': TypeError"),
        ({"model_type": "gpt2", "n_embd": 30, "n_head": 4}, "makes no causal language model"),
        ({"model_type": "vit"}, "makes no causal language model"),
    ):
        with pytest.raises(BadInput, match=problem):
            build_model(ModelConfig(config=values), None, Vocabulary(packed_data / "tokenizer"), training(), 48)


def test_a_bundle_whose_bytes_changed(small_base: Path, packed_data: Path) -> None:
    from lineage.bundle import seal_bundle

    seal_bundle(small_base)
    config = small_base / "config.json"
    config.write_text(config.read_text().replace("silu", "gelu"))
    with pytest.raises(Tampered, match="changed after the bundle was sealed"):
        load(small_base, packed_data)


def test_rows_longer_than_the_model(small_base: Path, packed_data: Path) -> None:
    with pytest.raises(BadInput, match="is 64, but the packed rows have 65 tokens"):
        build_model(None, small_base, Vocabulary(packed_data / "tokenizer"), training(), 65)


def test_neither_base_nor_dimensions(packed_data: Path) -> None:
    for config in (None, ModelConfig(base="tiny@1")):
        with pytest.raises(BadInput, match="does not describe a new model"):
            build_model(config, None, Vocabulary(packed_data / "tokenizer"), training(), 48)


def test_the_command_says_it_in_one_line_with_exit_code_2(training_command: Command, tmp_path: Path) -> None:
    job = training_command.job("sft")
    job.write_text(job.read_text().replace('"stage": "sft"', '"stage": "pretrain"'))
    code, said, errors = training_command.run(job, tmp_path / "out")
    assert (code, said) == (2, {})
    assert errors.startswith(f"error: {job}: config.training.objective: is not the stage's name `pretrain`")
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_loss_that_explodes_names_step_and_rows(training_command: Command, tmp_path: Path) -> None:
    job = training_command.job("pretrain", learning_rate=1e30, warmup_steps=0, schedule="constant", checkpoint_every=1)
    out = tmp_path / "out"
    code, _, errors = training_command.run(job, out)
    assert code == 1
    message = next(line for line in errors.splitlines() if line.startswith("error: "))
    assert "step 2: loss " in message
    assert "packed rows " in message
    assert "Traceback" not in errors
    assert [path.name for path in (out / ".checkpoints").iterdir()] == ["step-000001"]
    assert not (out / "record.json").exists()


def test_the_checkpoint_of_another_model(training_command: Command, tmp_path: Path) -> None:
    options = {"steps": 2, "validation_rows": 1}
    code, _, errors = training_command.run(training_command.job("pretrain", **options), tmp_path / "narrow")
    assert code == 0, errors
    path, out = training_command.job("pretrain", **options), tmp_path / "wide"
    told = json.loads(path.read_text())
    told["config"]["model"]["intermediate_size"] = 96
    path.write_text(json.dumps(told))
    job, _ = load_stage(path, TrainingJob)
    shutil.copytree(tmp_path / "narrow" / ".checkpoints", out / ".checkpoints")
    write_json(out / STARTED, {"fingerprint": job.fingerprint(job.inputs())})
    code, _, errors = training_command.run(path, out)
    assert code == 2
    assert "fingerprint: belongs to another configuration or other inputs" in errors
