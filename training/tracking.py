"""MLflow from a thread of its own: training never waits for a tracking server, and never fails because of one."""

import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_BATCHES = 2.0  # a batch of any size costs one request
SECONDS_TO_FLUSH = 20.0
MAX_BATCH = 1000  # metrics per request, MLflow's limit
RUN_ID_FILE = ".mlflow_run"  # a resumed stage continues its MLflow run


class MlflowRun:
    """One MLflow run: parameters, metrics in batches, and system metrics.

    MLflow's import takes 1.5 s, so that happens in the thread as well. If the server cannot be reached, one line on stderr
    says so and the figures stay in `metrics.jsonl` alone.
    """

    def __init__(self, uri: str, experiment: str, name: str, parameters: dict[str, Any], out: Path) -> None:
        self._uri, self._experiment, self._name = uri, experiment, name
        self._parameters, self._id_file = parameters, out / RUN_ID_FILE
        self._rows: queue.Queue[tuple[int, dict[str, float | int]] | None] = queue.Queue()
        self._finished = False
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @classmethod
    def from_environment(cls, experiment: str, name: str, parameters: dict[str, Any], out: Path) -> "MlflowRun | None":
        """Returns the run at MLFLOW_TRACKING_URI, or None, said on stderr, where the variable is not set."""
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            print("MLFLOW_TRACKING_URI is not set: figures go to metrics.jsonl only", file=sys.stderr)
            return None
        return cls(uri, experiment, name, parameters, out)

    def log(self, row: dict[str, float | int]) -> None:
        """Hands over one history row; returns at once."""
        self._rows.put((int(time.time() * 1000), row))

    def close(self, finished: bool) -> None:
        """Ends the run, as finished or as killed, after at most `SECONDS_TO_FLUSH`."""
        self._finished = finished
        self._rows.put(None)
        self._thread.join(SECONDS_TO_FLUSH)
        if self._thread.is_alive():
            print(f"MLflow at {self._uri} is slow: the last figures may be missing there", file=sys.stderr)

    def _work(self) -> None:
        try:
            self._track()
        except Exception as error:  # whatever a tracking server does, training goes on; it is said, once
            print(f"MLflow at {self._uri} failed ({error}): figures go to metrics.jsonl only", file=sys.stderr)

    def _track(self) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow import MlflowClient
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        client = MlflowClient(self._uri)
        run_id = self._start_run(client)
        monitor = SystemMetricsMonitor(run_id, sampling_interval=5, resume_logging=True, tracking_uri=self._uri)
        monitor.start()
        try:
            while self._log_waiting(client, run_id):
                pass
        finally:
            monitor.finish()
            monitor.publish_metrics(monitor.aggregate_metrics())  # what it had sampled but not sent: all, of a short run
            monitor.mlflow_logger.flush()
            client.set_terminated(run_id, "FINISHED" if self._finished else "KILLED")

    def _start_run(self, client: Any) -> str:
        from mlflow.entities import Param

        if self._id_file.is_file():
            run_id = self._id_file.read_text(encoding="utf-8")
            client.update_run(run_id, status="RUNNING")
            return run_id
        experiment = client.get_experiment_by_name(self._experiment)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(self._experiment)
        run_id = str(client.create_run(experiment_id, run_name=self._name).info.run_id)
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in self._parameters.items()])
        self._id_file.write_text(run_id, encoding="utf-8")
        return run_id

    def _log_waiting(self, client: Any, run_id: str) -> bool:
        """Sends what has come in; returns whether more may come."""
        from mlflow.entities import Metric

        rows, open_still = [], True
        deadline = time.monotonic() + SECONDS_BETWEEN_BATCHES
        while open_still and (left := deadline - time.monotonic()) > 0:
            try:
                item = self._rows.get(timeout=left)
            except queue.Empty:
                break
            if item is None:
                open_still = False
            else:
                rows.append(item)
        metrics = [
            Metric(key, float(value), at, int(row["step"]))
            for at, row in rows
            for key, value in row.items()
            if key != "step"
        ]
        for start in range(0, len(metrics), MAX_BATCH):
            client.log_batch(run_id, metrics[start : start + MAX_BATCH])
        return open_still
