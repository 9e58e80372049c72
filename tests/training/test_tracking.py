"""History and MLflow: figures arrive where they should, and a tracking server that fails does not stop training."""

import json
import socket
from pathlib import Path

import pytest
from tiny_training import Command

from training.config import ModelConfig, Resources, TrainingConfig
from training.estimate import count, estimate, read_dimensions
from training.telemetry import History


def test_history_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "lo')
    history = History(path, step=3)
    history.append({"step": 4, "loss": 0.5})
    history.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3, 4]
    assert history.values("loss")[-1] == 0.5
    assert History(path, step=0).rows == []  # from the start again: nothing of it holds


@pytest.mark.slow
def test_mlflow_gets_parameters_metrics_and_system_metrics(training_command: Command, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    environment = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1"}
    code, said, errors = training_command.run(training_command.job("pretrain"), tmp_path / "out", **environment)
    assert code == 0, errors
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tiny")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("1/pretrain", "FINISHED")
    assert run.data.params["learning_rate"] == "0.001"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4, 5, 6]
    assert run.data.metrics["validation_loss"] == pytest.approx(said["metrics"]["validation_loss"])
    assert any(key.startswith("system/cpu") for key in run.data.metrics)


def test_a_dead_tracking_server_does_not_stop_training(training_command: Command, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: every connection is refused
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        out = tmp_path / "out"
        code, _, errors = training_command.run(training_command.job("pretrain"), out, MLFLOW_TRACKING_URI=uri)
    assert code == 0, errors
    assert f"MLflow at {uri}" in errors
    assert (out / "record.json").is_file()


def test_estimate_counts_the_weights_exactly(packed_data: Path, tmp_path: Path) -> None:
    from training.model import Vocabulary, build_model, count_parameters

    model_config = ModelConfig(hidden_size=48, intermediate_size=80, num_layers=3, num_heads=4, num_kv_heads=2)
    vocabulary = Vocabulary(packed_data / "tokenizer")
    for changes in ({}, {"lora_rank": 4}, {"lora_rank": 2, "lora_targets": ["q_proj", "down_proj"]}):
        config = TrainingConfig.model_validate({"objective": "sft", "steps": 1, **changes})
        model = build_model(model_config, None, vocabulary, config, 48)
        assert count_parameters(model) == count(model_config, config, vocabulary.size)
    model.save_pretrained(tmp_path)


def test_estimate_follows_from_what_is_asked(tmp_path: Path) -> None:
    def of(resources: Resources | None = None, **changes: object) -> tuple[int, float]:
        config = TrainingConfig.model_validate({"objective": "pretrain", "steps": 1000, "rows_per_step": 32, **changes})
        model = ModelConfig(hidden_size=1024, intermediate_size=4096, num_layers=24, num_heads=16, num_kv_heads=16)
        result = estimate(model, config, resources or Resources(), vocabulary=32000, seq_len=512, threads=2, gpu=False)
        return result.memory_bytes, result.seconds

    memory, seconds = of()
    assert of(gradient_checkpointing=True)[0] < memory / 2
    assert of(gradient_checkpointing=True)[1] > seconds
    assert of(accumulation=8)[0] < memory / 2
    assert of(accumulation=8)[1] == seconds
    sharded = of(Resources(processes=4, engine="fsdp2"))
    assert sharded[0] < of(Resources(processes=4, engine="ddp"))[0] < memory
    assert sharded[1] == pytest.approx(seconds / 4, rel=0.01)


def test_dimensions_are_read_from_a_folder(tmp_path: Path) -> None:
    values = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**values, "num_key_value_heads": 2, "max_position_embeddings": 99}))
    found = read_dimensions(tmp_path)
    assert (found.hidden_size, found.num_layers, found.num_kv_heads, found.max_positions) == (64, 2, 2, 99)
