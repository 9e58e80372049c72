"""History and MLflow: figures arrive where they should, and a tracking server that fails does not stop training."""

import json
import socket
from pathlib import Path

import pytest
from tiny_training import Command

from training.telemetry import History


def test_history_is_what_the_checkpoint_holds(tmp_path: Path) -> None:
    path, saved = tmp_path / "metrics.jsonl", tmp_path / "saved.jsonl"
    rows = [json.dumps({"step": step, "loss": 1.0 / (step + 1)}) + "\n" for step in range(5)]
    path.write_text("".join(rows) + '{"step": 5, "lo')
    saved.write_text("".join(rows[:4]))
    history = History(path, saved)
    history.append({"step": 4, "loss": 0.5})
    history.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3, 4]
    assert history.values("loss")[-1] == 0.5
    assert History(path, None).rows == []  # from the start again: nothing of it holds


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
