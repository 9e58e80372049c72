"""How quick this machine is with this model: a few real steps of the real loop, measured and remembered."""

import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flows.launch import STAGE_ENVIRONMENT, stage_command, waiting
from lineage.errors import BadInput, GoldpathError
from lineage.files import write_atomic, write_json
from lineage.fingerprint import fingerprint
from lineage.job import Job, dump_job
from lineage.privacy import TELEMETRY_OFF
from lineage.section import Section, parse

if TYPE_CHECKING:
    from flows.settings import Settings
    from training.estimate import Place, Stage

FILE = "calibration.json"
STEPS, WARM_UP = 7, 2  # the first steps choose kernels and fill caches
NOT_TRAINING = ("checkpoint_seconds", "validation_seconds")
# What a calibration leaves out of a stage's configuration: it changes how long a run is, not how long a step is.
LENGTH = {"steps", "warmup_steps", "decay_steps", "schedule", "learning_rate", "log_every", "validate_every"} | {
    "checkpoint_every", "keep_checkpoints", "validation_rows", "seed"
}  # fmt: skip


class Calibration(Section):
    """One measurement.

    Attributes:
        stage: the digest of everything that decides how long a step takes.
        kind: device, precision, engine and processes; stages of one kind reach about the same speed.
        flops_per_second: the model's arithmetic, per process.
        memory_bytes: the resident peak of rank 0; on a GPU, of the GPU.
    """

    stage: str
    kind: str
    flops_per_second: float
    memory_bytes: int


class Calibrations(Section):
    """`calibration.json`."""

    calibrations: tuple[Calibration, ...] = ()


def known_speed(settings: "Settings", stage: "Stage", place: "Place") -> tuple[float | None, str]:
    """Returns the measured arithmetic per second of one process, None where nothing was measured, and where it is from."""
    known = _read(settings).calibrations
    if same := [one for one in known if one.stage == _digest(stage, place)]:
        return same[-1].flops_per_second, "calibrated"
    if alike := [one.flops_per_second for one in known if one.kind == _kind(stage, place)]:
        return statistics.median(alike), "device"
    return None, "table"


def calibrate(settings: "Settings", stage: "Stage", place: "Place") -> Calibration:
    """Trains a stage's model for a few steps on made-up rows, in a process of its own, and remembers the speed.

    Raises:
        GoldpathError: the stage ended with an error; it says what the stage said last.
    """
    from training.calibration import write_rows
    from training.flops import arithmetic_of
    from training.telemetry import METRICS, read_rows

    settings.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".calibrate-", dir=settings.home) as folder:  # where there is room for a run
        data, out = Path(folder) / "data", Path(folder) / "out"
        training = stage.training
        write_rows(data, training.objective, stage.vocabulary, stage.seq_len, training.rows_per_step, stage.base)
        short = {"steps": STEPS, "warmup_steps": 0, "decay_steps": 0, "schedule": "constant", "log_every": 1}
        short |= {"validate_every": 0, "checkpoint_every": 0, "validation_rows": 1}
        job = Job(
            name="calibration",
            version="1",
            stage=training.objective,
            config={
                "model": None if stage.base else stage.model.model_dump(mode="json") | {"base": ""},
                "training": training.model_dump(mode="json") | short,
            },
            parents={"data": data} | ({"base": stage.base} if stage.base else {}),
            resources=stage.resources.model_dump(mode="json"),
        )
        _run(job, out)
        rows = [row for row in read_rows(out / METRICS) if "loss" in row]
    seconds = statistics.median(row["step_seconds"] - sum(row[part] for part in NOT_TRAINING) for row in rows[WARM_UP:])
    work = stage.work(arithmetic_of(stage.skeleton()), stage.tokens_per_step)
    found = Calibration(
        stage=_digest(stage, place),
        kind=_kind(stage, place),
        flops_per_second=work / (seconds * stage.resources.processes),
        memory_bytes=rows[-1].get("gpu_memory_bytes") or rows[-1]["memory_bytes"],
    )
    others = [one for one in _read(settings).calibrations if one.stage != found.stage]
    write_json(settings.home / FILE, Calibrations(calibrations=(*others, found)).model_dump(mode="json"))
    return found


def _run(job: Job, out: Path) -> None:
    write_atomic(out / "job.yaml", dump_job(job))
    environment = STAGE_ENVIRONMENT | waiting(job.stage) | os.environ | TELEMETRY_OFF
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(stage_command(job, out), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise GoldpathError(f"the calibration of `{job.stage}` ended with exit code {done.returncode}: {last}")


def _read(settings: "Settings") -> Calibrations:
    path = settings.home / FILE
    try:
        return parse(Calibrations, json.loads(path.read_text(encoding="utf-8")), path)
    except FileNotFoundError:
        return Calibrations()
    except (OSError, ValueError):
        raise BadInput(path, "", "is no file of calibrations", "delete it and calibrate again") from None


def _kind(stage: "Stage", place: "Place") -> str:
    where = f"{_device(place)} {stage.precision(place.gpu)}"
    return f"{where} {stage.resources.engine} x{stage.resources.processes}"


def _digest(stage: "Stage", place: "Place") -> str:
    config = {
        "kind": _kind(stage, place),
        "model": stage.model.model_dump(mode="json"),
        "training": stage.training.model_dump(mode="json", exclude=LENGTH),
        "resources": stage.resources.model_dump(mode="json"),
        "vocabulary": stage.vocabulary,
        "seq_len": stage.seq_len,
    }
    return fingerprint("calibration", config, {"base": str(stage.base or "")})


def _device(place: "Place") -> str:
    if place.gpu:
        import torch

        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "gpu"
    from training.hardware import cpu_name

    return f"{cpu_name()}, {place.threads} threads"
