"""How quick this machine is with this model: a few real steps of the real loop, measured and remembered."""

import json
import os
import statistics
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.launch import STAGE_ENVIRONMENT, said_error, stage_command, waiting
from lineage.child import die_with_parent
from lineage.errors import BadInput, ExitCode, GoldpathError
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
        kind: device, precision, engine and processes of a node; stages of one kind reach about the same speed.
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


class CalibrationFailed(GoldpathError):
    """A calibration ended early. It says what the stage said; input that the stage refuses is bad input here too."""

    def __init__(self, stage: str, code: int, said: str) -> None:
        self.exit_code = ExitCode.BAD_INPUT if code == ExitCode.BAD_INPUT else ExitCode.ERROR
        super().__init__(f"the calibration of `{stage}` ended with exit code {code}: {said}")


def known_speed(settings: "Settings", stage: "Stage", place: "Place") -> tuple[float | None, str]:
    """Returns the measured arithmetic per second of one process, None where nothing was measured, and where it is from."""
    known = _read(settings).calibrations
    if same := [one for one in known if one.stage == _digest(stage, place)]:
        return same[-1].flops_per_second, "calibrated"
    if alike := [one.flops_per_second for one in known if one.kind == _kind(stage, place)]:
        return statistics.median(alike), "device"
    return None, "table"


def calibrate(settings: "Settings", stage: "Stage", place: "Place") -> Calibration:
    """Trains a stage's model for a few steps, in processes of its own, and remembers the speed.

    The rows are those of the stage's data version, else made-up ones. Of several nodes one node's share is trained here.

    Raises:
        GoldpathError: the stage ended with an error; it says what the stage said last.
    """
    from training.calibration import write_rows
    from training.flops import arithmetic_of
    from training.telemetry import METRICS, read_rows

    one = share_of_node(stage)
    settings.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".calibrate-", dir=settings.home) as folder:  # where there is room for a run
        data, out = stage.rows.folder, Path(folder) / "out"
        if data is None:
            data = Path(folder) / "data"
            training = one.training
            write_rows(data, training.objective, stage.vocabulary, stage.seq_len, training.rows_per_step, stage.base)
        _run(_job(one, data, Path(folder)), out)
        rows = [row for row in read_rows(out / METRICS) if "loss" in row]
    seconds = statistics.median(row["step_seconds"] - sum(row[part] for part in NOT_TRAINING) for row in rows[WARM_UP:])
    work = one.computed(arithmetic_of(one.skeleton()))
    found = Calibration(
        stage=_digest(stage, place),
        kind=_kind(stage, place),
        flops_per_second=work / (seconds * one.resources.processes),
        memory_bytes=rows[-1].get("gpu_memory_bytes") or rows[-1]["memory_bytes"],
    )
    others = [one for one in _read(settings).calibrations if one.stage != found.stage]
    write_json(settings.home / FILE, Calibrations(calibrations=(*others, found)).model_dump(mode="json"))
    return found


def share_of_node(stage: "Stage") -> "Stage":
    """Returns what one node of a stage trains: its processes, with the rows that each of them has at a time."""
    nodes = stage.resources.nodes
    resources = stage.resources.model_copy(update={"nodes": 1, "processes": stage.resources.processes // nodes})
    rows = stage.micro_batch * stage.training.accumulation * resources.processes
    return replace(stage, resources=resources, training=stage.training.model_copy(update={"rows_per_step": rows}))


def _job(stage: "Stage", data: Path, folder: Path) -> Job:
    """Returns a few steps of a stage as a job.

    Args:
        folder: where DeepSpeed's settings are written, where there are any.
    """
    short = {"steps": STEPS, "warmup_steps": 0, "decay_steps": 0, "schedule": "constant", "log_every": 1}
    short |= {"validate_every": 0, "checkpoint_every": 0, "validation_rows": 1}
    resources = stage.resources.model_dump(mode="json") | {"accelerate_config": ""}  # it is settled what that file says
    if path := resources["deepspeed_config"]:
        resources["deepspeed_config"] = str(folder / "deepspeed.json")
        write_json(folder / "deepspeed.json", _how_deepspeed_goes_about_it(stage, path))
    model: dict[str, Any] | None = stage.model.model_dump(mode="json")
    if stage.base:
        model = {"grow_vocabulary": True} if stage.counted and stage.model.grow_vocabulary else None
    return Job(
        name="calibration",
        version="1",
        stage=stage.training.objective,
        config={"model": model, "training": stage.training.model_dump(mode="json") | short},
        parents={"data": data} | ({"base": stage.base} if stage.base else {}),
        reads={"data": ["tokenizer/*"]},  # what else it reads is no identity: nobody asks for this run again
        resources=resources,
    )


def _how_deepspeed_goes_about_it(stage: "Stage", path: str) -> dict[str, Any]:
    """Returns a DeepSpeed file without what it says of the recipe, such as its steps, which are fewer here."""
    from training.deepspeed_file import execution_options

    options, offload = execution_options(path), stage.resources.offload
    engine = stage.resources.engine
    placed: dict[str, Any] = {"stage": int(engine[-1]) if engine.startswith("zero") else 0}
    if offload != "none":
        placed["offload_optimizer"] = {"device": "cpu"}
    if offload == "all":
        placed["offload_param"] = {"device": "cpu"}
    return options | {"zero_optimization": options["zero_optimization"] | placed}


def _run(job: Job, out: Path) -> None:
    write_atomic(out / "job.yaml", dump_job(job))
    environment = STAGE_ENVIRONMENT | waiting(job.stage) | os.environ | TELEMETRY_OFF
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = stage_command(job, out)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, preexec_fn=die_with_parent()
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise CalibrationFailed(job.stage, done.returncode, said_error(said) or f"it last said: {said[-1]}")


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
    return f"{where} {stage.resources.engine} x{stage.resources.processes // stage.resources.nodes}"


def _digest(stage: "Stage", place: "Place") -> str:
    config = {
        "kind": _kind(stage, place),
        "model": stage.model.model_dump(mode="json"),
        "training": stage.training.model_dump(mode="json", exclude=LENGTH),
        "resources": stage.resources.model_dump(mode="json"),
        "vocabulary": stage.vocabulary,
        "seq_len": stage.seq_len,
        "data": str(stage.rows.folder or ""),
    }
    return fingerprint("calibration", config, {"base": str(stage.base or "")})


def _device(place: "Place") -> str:
    if place.gpu:
        import torch

        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "gpu"
    from training.hardware import cpu_name

    return f"{cpu_name()}, {place.threads} threads"
