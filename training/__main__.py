"""`python -m training --config job.yaml --out DIR`, or the same under `torchrun` for several processes."""

import argparse
import json
import os
import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from lineage.child import end_with_parent
from lineage.errors import BadInput, GoldpathError, run_cli
from lineage.job import Job, load_stage
from lineage.privacy import switch_off_telemetry
from lineage.section import parse
from lineage.stage import StageRun
from training.config import ModelConfig, TrainingJob
from training.hardware import prepare_gpus
from training.hub import find_base
from training.last_words import ERROR_FILE, final_word, leave_word, may_speak
from training.launch_files import settle
from training.manifest import FOLDER
from training.resources import Resources

if TYPE_CHECKING:
    from training.processes import Processes

JOB_FILE = "job.yaml: "
EPILOG = """\
Prints progress on stderr and one JSON line on stdout. Killed, or ended by SIGTERM (exit code 143), SIGUSR1 (138), Ctrl-C
(130) or its own watchdog (75), the same command continues from the newest whole checkpoint. Several processes:
  torchrun --standalone --nproc-per-node 2 --max-restarts 3 -m training --config job.yaml --out DIR
`python -m training.launch` takes torchrun's options, and ends with one error and these exit codes instead of a traceback.
"""


def main() -> int:
    """Runs one training stage; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Pretrains, fine-tunes (SFT) or aligns (DPO, KTO) a language model, as one stage of a recipe.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="job.yaml", help="the job (lineage.job.Job)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the stage's folder")
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="FIELD",
        help="continue checkpoints although this field, section or input changed, such as training.learning_rate or data",
    )
    arguments = parser.parse_args()
    if ERROR_FILE in os.environ:
        end_with_parent()  # a torchrun that is killed leaves nobody behind; they save a checkpoint first
        if word := final_word():
            return word.exit_code
    switch_off_telemetry()
    # Read when torch is loaded. By default its threads spin while they wait for each other: on cores that are shared with
    # anything else, such as a tracking server, that costs up to nine tenths of the speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare_gpus()
    try:
        return _run(*_read_job(arguments.config, arguments.allow_change), arguments.config, arguments.out)
    except GoldpathError as error:
        leave_word(error, error.exit_code)
        if not may_speak():
            return int(error.exit_code)
        raise


def _read_job(path: Path, allow_changes: list[str]) -> tuple[Job, TrainingJob, Resources]:
    job, config = _settle_base(*load_stage(path, TrainingJob), path)
    job = job.model_copy(update={"allow_changes": [*job.allow_changes, *allow_changes]})
    if job.stage != config.training.objective:
        raise BadInput(path, "config.training.objective", f"is not the stage's name `{job.stage}`", "make them the same")
    resources, training = settle(parse(Resources, job.resources, path, "resources"), config.training, path)
    return job, config.model_copy(update={"training": training}), resources


def _settle_base(job: Job, config: TrainingJob, path: Path) -> tuple[Job, TrainingJob]:
    """Makes a base that the model section names the stage's parent: what counts is its bytes, wherever they came from."""
    model = config.model
    if model is None or not model.base:
        return job, config
    if "base" in job.parents:
        raise BadInput(path, "config.model.base", "is a second base beside `parents.base`", "leave one out")
    folder = find_base(model.base, model.revision, Path(os.environ.get("GOLDPATH_HOME", ".goldpath")) / "hub")
    told = ModelConfig(grow_vocabulary=True) if model.grow_vocabulary else None
    config = TrainingJob(model=told, training=config.training)
    parents = {**job.parents, "base": folder}
    return job.model_copy(update={"config": config.model_dump(mode="json"), "parents": parents}), config


def _run(job: Job, config: TrainingJob, resources: Resources, path: Path, out: Path) -> int:
    """Joins the other processes, trains, and leaves them in step, whatever happens."""
    from torch.distributed.elastic.multiprocessing.errors import record

    from training.processes import LostConnection, SaidByFirst, join_processes, leave_processes
    from training.stop import Stopped

    processes = join_processes(resources, path)
    resources = resources.model_copy(update={"processes": processes.world})
    try:
        with redirect_stdout(sys.stderr):  # libraries print; stdout is for the one JSON line
            result = record(_work)(job, config, resources, out, processes)
    except Stopped as stopped:
        leave_word(stopped, 128 + stopped.number)
        leave_processes()
        if processes.is_first:
            print(f"{job.stage}: {stopped}", file=sys.stderr)
        return _end(resources, 128 + stopped.number)
    except Exception as caught:
        error = _explain(caught, config, resources, path)
        leave_word(error, error.exit_code)
        # Otherwise the others are in the middle of something: whatever is asked of them now would collide with it.
        met_by_all = processes.world == 1 or error.is_shared or isinstance(error, SaidByFirst)
        if met_by_all and not isinstance(error, LostConnection):
            leave_processes(failed=True)
        if resources.engine == "single":
            raise error from None
        if processes.is_first or not isinstance(error, SaidByFirst):
            # A lost connection follows from what another one says, or torchrun of it.
            is_cause = processes.is_first and not isinstance(error, LostConnection)
            print(f"{'error' if is_cause else f'rank {processes.rank}'}: {error}", file=sys.stderr)
        return _end(resources, error.exit_code)
    leave_processes()
    if result is not None:
        print(json.dumps(result))
    return _end(resources, 0)


def _end(resources: Resources, code: int) -> int:
    """Returns the exit code, or ends at once: C++ waits for the threads of a group that it destroys, and they for Python.

    Call it while the error is still held, whose frames hold the engine, which holds the group.
    """
    from training.processes import end_at_once

    if resources.engine != "single":
        end_at_once(code)
    return code


def _explain(error: Exception, config: TrainingJob, resources: Resources, path: Path) -> GoldpathError:
    """Returns the error that a person can act on. Where there is none, the error is raised again, with its traceback."""
    from training.out_of_memory import is_out_of_memory, out_of_memory
    from training.processes import LostConnection, is_lost_connection

    if isinstance(error, GoldpathError):
        if str(error).startswith(JOB_FILE):  # what a stage calls the file that it was told by
            error.args = (f"{path}: {str(error).removeprefix(JOB_FILE)}",)
        return error
    if is_out_of_memory(error):
        return out_of_memory(error, config.training, resources)
    if is_lost_connection(error):
        return LostConnection(error)
    raise error


def _work(
    job: Job, config: TrainingJob, resources: Resources, out: Path, processes: "Processes"
) -> dict[str, object] | None:
    """Does the stage's work; rank 0 alone holds the folder and writes the record. Returns the JSON line, there."""
    from training.stage import train_stage
    from training.stop import StopRequest

    stop, held = StopRequest(), ExitStack()
    runs: list[StageRun] = []

    def take_folder() -> tuple[list[str], bool]:
        runs.append(held.enter_context(StageRun(job, out, precious=f"{FOLDER}/step-*")))
        return runs[0].continues, runs[0].finished is not None

    with held:
        fingerprints, finished = processes.on_first(take_folder)
        if not finished:
            metrics = train_stage(job, config, resources, out, fingerprints, processes, stop)
            processes.on_first(lambda: runs[0].finish(metrics) and None)
        elif processes.is_first:
            print(f"{job.stage}: already finished, reused", file=sys.stderr)
        if not runs or runs[0].finished is None:
            return None
        return {"stage": job.stage, "metrics": runs[0].finished.metrics, "out": str(out)}


if __name__ == "__main__":
    run_cli(main)
