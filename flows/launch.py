"""Starts a stage as the subprocess that a person could type, and ends it with its starter.

The job file is written beside the outputs first, so `python -m <room> --config <out>/job.yaml --out <out>` replays it.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil

from flows.processes import GRACE
from flows.tracking import tracking_uri
from lineage.child import die_with_parent
from lineage.errors import ExitCode, GoldpathError
from lineage.files import write_atomic
from lineage.job import Job, dump_job
from lineage.privacy import TELEMETRY_OFF
from training.resources import Resources

if TYPE_CHECKING:
    from flows.settings import Settings

ROOMS = {
    "data": ["data_contracts"],
    "pretrain": ["training"],
    "sft": ["training"],
    "dpo": ["training"],
    "kto": ["training"],
    "evaluate": ["evaluation"],
    "gate": ["evaluation"],
    "canary": ["serving", "canary"],
}
TRAINING_STAGES = ("pretrain", "sft", "dpo", "kto")
COMPUTING_STAGES = (*TRAINING_STAGES, "evaluate")
# Defaults that a person's own environment overrides.
STAGE_ENVIRONMENT = {
    # OpenMP threads that spin while they wait take the core from the thread they wait for, wherever anything else runs:
    # 670 against 4,783 tokens/s on two cores that four other processes shared (docs/LOG.md). See `waiting`.
    "OMP_WAIT_POLICY": "PASSIVE",
    # The stages' own bars and lines are for people; the libraries' are not.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "PYTHONUNBUFFERED": "1",
    "PYTHONSAFEPATH": "1",  # a folder named `training` where the command is typed is not our room
    "PYTHONWARNINGS": "ignore::FutureWarning",
}
LOG = ".stage.log"
ERROR = "error: "  # what a stage's own error begins with
SPINS = "30000"  # a tenth of libgomp's default
BUSY_PERCENT = 70
LOOK_SECONDS = 0.05
# Ended from outside (preempted, out of memory), or by a stage's own watchdog because it hung.
WORTH_ANOTHER_TRY = (128 + signal.SIGTERM, 128 + signal.SIGUSR1, 128 + signal.SIGKILL, os.EX_TEMPFAIL)
SECONDS_TO_END = 30  # for stages that have nothing to save; training has `Resources.grace_seconds`


@dataclass(frozen=True)
class Meeting:
    """Where the nodes of one stage find each other.

    Attributes:
        endpoint: HOST:PORT of the first node, which keeps them together.
        run_id: tells this try from others at the same place.
        is_first: whether this node is that one.
    """

    endpoint: str
    run_id: str
    is_first: bool = True

    @property
    def options(self) -> list[str]:
        """What torchrun is told of it."""
        where = ["--rdzv-backend=c10d", f"--rdzv-endpoint={self.endpoint}", f"--rdzv-id={self.run_id}"]
        return [*where, f"--rdzv-conf=is_host={int(self.is_first)}"]


class StageFailed(GoldpathError):
    """A stage ended without a record. It says what the stage said, then where; the exit code is passed on."""

    def __init__(self, stage: str, code: int, command: list[str], tail: Iterable[str], log: Path) -> None:
        self.exit_code = ExitCode.BAD_INPUT if code == ExitCode.BAD_INPUT else ExitCode.ERROR
        self.interrupted = code < 0 or code in WORTH_ANOTHER_TRY
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = list(tail)[-1] if tail else "nothing"
        said = _told_of_recipe(said_error(tail), stage, command)
        what = said or f"{how} and last said: {last}. Fix: read {log}, then run the same command again"
        super().__init__(f"stage `{stage}`: {what}\n  replay: {shlex.join(command)}")


def waiting(stage: str) -> dict[str, str]:
    """Lets a computing stage's threads spin for a moment before they sleep, where the cores are idle as a stage begins.

    It makes training 11 to 45 % faster there. Where another process trains at the same time it halves the speed, and the
    default (ten times as long) divides it by eight: so elsewhere they sleep at once (docs/LOG.md).
    """
    idle = stage in COMPUTING_STAGES and psutil.cpu_percent(interval=LOOK_SECONDS) < BUSY_PERCENT
    return {"GOMP_SPINCOUNT": SPINS} if idle else {}


def said_error(tail: Iterable[str]) -> str:
    """Returns the error that a stage said last, "" where it said none."""
    return next((line.removeprefix(ERROR) for line in reversed(list(tail)) if line.startswith(ERROR)), "")


def stage_command(job: Job, out: Path, meeting: Meeting | None = None) -> list[str]:
    """Returns the command line of a stage: torchrun (`training.launch`) for several processes, plain Python for one.

    Args:
        meeting: where this node meets the others of the stage; None where there are none.
    """
    arguments = ["--config", str(out / "job.yaml"), "--out", str(out)]
    resources = _resources_of(job)
    if resources.processes > 1:
        where = [f"--nnodes={resources.nodes}", *meeting.options] if meeting else ["--standalone"]
        each = resources.processes // resources.nodes if meeting else resources.processes
        patience = [f"--max-restarts={resources.restarts}", f"--shutdown-timeout={resources.grace_seconds}"]
        torchrun = [*where, f"--nproc-per-node={each}", *patience]
        return [sys.executable, "-m", "training.launch", *torchrun, "-m", *ROOMS[job.stage], *arguments]
    return [sys.executable, "-m", *ROOMS[job.stage], *arguments]


def seconds_to_end(job: Job) -> int:
    """Returns how long a stage may take to end when it is asked to."""
    return _resources_of(job).grace_seconds if job.stage in TRAINING_STAGES else SECONDS_TO_END


def _resources_of(job: Job) -> Resources:
    return Resources.model_validate(job.resources if job.stage in TRAINING_STAGES else {})


def run_stage(
    job: Job, out: Path, settings: "Settings", accepted: tuple[int, ...] = (0,), meeting: Meeting | None = None
) -> dict[str, Any]:
    """Runs one stage to its end and returns the JSON line that it printed, with its exit code as `exit_code`.

    Args:
        accepted: exit codes that are outcomes, not failures (a gate that says no ends with 3).
        meeting: where this node meets the others of the stage. Only the first one writes the job file.

    Raises:
        StageFailed: the stage ended with any other code.
    """
    is_first = meeting is None or meeting.is_first
    log = out / (LOG if is_first else f"{LOG}.{socket.gethostname()}")
    if is_first:
        write_atomic(out / "job.yaml", dump_job(job))
    command = stage_command(job, out, meeting)
    environment = (
        STAGE_ENVIRONMENT | waiting(job.stage) | os.environ | TELEMETRY_OFF | {"GOLDPATH_HOME": str(settings.home)}
    )
    environment.setdefault("MLFLOW_TRACKING_URI", tracking_uri(settings))
    environment[GRACE] = str(seconds_to_end(job))
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches the stage once, from here, and not twice
        preexec_fn=die_with_parent(),  # a killed flow leaves no training run behind that nobody watches
    )
    assert process.stdout is not None
    assert process.stderr is not None
    tail: deque[str] = deque(maxlen=40)
    echo = threading.Thread(target=_echo, args=(process.stderr, tail, log), daemon=True)
    echo.start()
    try:
        said = process.stdout.read().decode(errors="replace").strip().splitlines()
        code = process.wait()
    except BaseException:
        end_patiently(process, seconds_to_end(job))
        raise
    finally:
        echo.join(timeout=10)
    if code not in accepted:
        raise StageFailed(job.stage, code, command, tail, log)
    if said_error(tail):  # an outcome with a reason: a release without approval
        print(f"{ERROR}{said_error(tail)}", file=sys.stderr, flush=True)
    try:
        result: dict[str, Any] = json.loads(said[-1]) if said else {}
    except ValueError:
        result = {}
    return {**result, "exit_code": code}


def _echo(stream: IO[bytes], tail: "deque[str]", log: Path) -> None:
    """Passes a stage's stderr on as it comes (progress bars included), and keeps its last lines and a log.

    Only the stage's own error is kept back, for the caller to say once.
    """
    rest, line_begins, is_error = b"", True, False
    with log.open("ab") as file:
        while chunk := os.read(stream.fileno(), 65536):
            file.write(chunk)
            for piece in chunk.splitlines(keepends=True):
                is_error = piece.startswith(ERROR.encode()) if line_begins else is_error
                line_begins = piece.endswith((b"\n", b"\r"))
                if not is_error:
                    sys.stderr.write(piece.decode(errors="replace"))
            sys.stderr.flush()
            *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            tail.extend(text for line in lines if (text := line.decode(errors="replace").strip()))
    if rest.strip():
        tail.append(rest.decode(errors="replace").strip())


def _told_of_recipe(error: str, stage: str, command: list[str]) -> str:
    """Makes an error about a job file, which nobody has written, one about the recipe that the job follows from."""
    job_file = command[command.index("--config") + 1]
    error = error.replace(f"{job_file}: config.training.", f"the recipe: {stage}.")
    return error.replace(f"{job_file}: ", "the recipe: ")


def end_patiently(process: "subprocess.Popen[Any]", seconds: float = SECONDS_TO_END) -> None:
    """Asks a process that leads its own group, and all in it, to end; kills them if they do not, or at a second Ctrl-C."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill_group(process)
    except BaseException:
        _kill_group(process)
        raise


def _kill_group(process: "subprocess.Popen[Any]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
