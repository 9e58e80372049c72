"""A training stage from its job to its metrics, read top to bottom."""

import statistics
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from lineage.bundle import MANIFEST
from lineage.errors import BadInput
from lineage.job import Job
from lineage.record import RECORD, Metric, read_record
from training.batches import PackedRows, rows_of_step
from training.card import model_card
from training.checkpoint import Checkpoints
from training.config import ObjectiveName, Resources, TrainingConfig, TrainingJob
from training.engine import Engine, make_engine
from training.export import export_model, save_bundle
from training.hardware import quickest_precision
from training.loop import Loop
from training.manifest import FOLDER, precision_of
from training.model import Vocabulary, build_model, choose_attention, count_parameters, plain_model
from training.objectives import Objective
from training.processes import Processes, StopRequest
from training.scoring import Regularisation, Scorer
from training.telemetry import History, Telemetry
from training.validate import reference_scores, validation_rows
from training.watchdog import Watchdog


def train_stage(
    job: Job,
    config: TrainingJob,
    resources: Resources,
    out: Path,
    fingerprints: Collection[str],
    processes: Processes,
    stop: StopRequest,
) -> dict[str, Metric]:
    """Trains, or continues to train, and writes the stage's outputs. Every process of the run calls it.

    Args:
        fingerprints: the stage's identity first, then those whose checkpoints it may continue.

    Returns:
        The stage's metrics, on rank 0; {} on the others.
    """
    training, folder = settle_precision(config.training, out / FOLDER, processes), _data_folder(job)
    processes.on_first(lambda: check_division(training, processes))
    train, validation, vocabulary = processes.on_all(lambda: _read_data(folder, training.objective))
    base = _base_folder(job)

    def build() -> Scorer:
        regularise = Regularisation(training.label_smoothing, training.z_loss)
        return Scorer(build_model(config.model, base, vocabulary, training, train.seq_len), regularise)

    def card(figures: Mapping[str, Metric]) -> str:
        return model_card(job, training, parameters, data_version(job), figures)

    scorer = processes.on_all(build)
    parameters, trained = count_parameters(scorer)
    if processes.is_first:
        where = f"{resources.engine} on {processes.device} in {training.precision}"
        print(f"{parameters:,} parameters, {trained:,} of them trained, {where}", file=sys.stderr)
        if base is None and not (out / "initial" / MANIFEST).is_file():
            save_bundle(scorer.model, vocabulary, card({}), out / "initial")
    plain_model(scorer.model).set_attn_implementation(choose_attention(processes.device, training, train.seq_len))
    engine = make_engine(resources.engine, scorer, training, processes)
    checkpoints = Checkpoints(out / FOLDER, fingerprints, training.keep_checkpoints, processes)
    with Watchdog(resources.hang_seconds, out / f".hang-{processes.rank}.txt") as watchdog:
        objectives = _objectives(engine, train, validation, watchdog)
        progress = checkpoints.load_newest(engine)
        telemetry = Telemetry(job, training, out, progress) if processes.is_first else None
        finished = False
        try:
            Loop(training, processes, engine, *objectives, checkpoints, telemetry, stop, watchdog, progress).run()
            finished = True
        finally:
            if telemetry:
                telemetry.close(finished)
        watchdog.beat("gathering the weights")
        weights = engine.full_weights()

    def export() -> dict[str, Metric]:
        assert telemetry is not None
        metrics = summarise(telemetry.history, training)
        sample = train.batch([0]).input_ids[:, :64]
        export_model(build(), weights, vocabulary, card(metrics), out, sample)
        return metrics

    return processes.on_first(export)


def settle_precision(training: TrainingConfig, checkpoints: Path, processes: Processes) -> TrainingConfig:
    """Replaces `auto` by what the run began with, or else by what is quick here; all processes take the same."""
    if training.precision != "auto":
        return training
    device = processes.device.type
    precision = processes.on_first(lambda: precision_of(checkpoints) or quickest_precision(device))
    return training.model_copy(update={"precision": precision})


def check_division(training: TrainingConfig, processes: Processes) -> None:
    """Refuses rows that cannot be divided equally.

    Raises:
        BadInput: naming the nearest number of rows that can.
    """
    shares, rows = processes.world * training.accumulation, training.rows_per_step
    if rows % shares:
        raise BadInput(
            "job.yaml",
            "config.training.rows_per_step",
            f"is {rows}, no multiple of {processes.world} processes x accumulation {training.accumulation}",
            f"use {-(-rows // shares) * shares}, or another number of processes",
        )


def summarise(history: History, training: TrainingConfig) -> dict[str, Metric]:
    """Returns the stage's metrics from its history, so that a resumed run reports the whole run."""
    losses, accuracies = history.values("validation_loss"), history.values("preference_accuracy")
    metrics: dict[str, Metric] = {
        "loss": history.values("loss")[-1],
        "validation_loss_before": losses[0],
        "validation_loss": losses[-1],
        "tokens": history.values("tokens")[-1],
        "tokens_per_second": statistics.median(history.values("tokens_per_second")),
        "steps": training.steps,
        "precision": training.precision,
    }
    if accuracies:
        metrics |= {"preference_accuracy_before": accuracies[0], "preference_accuracy": accuracies[-1]}
    return metrics


def _objectives(
    engine: Engine, train: PackedRows, validation: PackedRows, watchdog: Watchdog
) -> tuple[Objective, Objective]:
    config = engine.config
    if config.objective != "dpo":
        return Objective(train), Objective(validation)
    used = {
        row
        for step in range(min(config.steps, -(-train.num_rows // config.rows_per_step)))
        for row in rows_of_step(train.num_rows, config.rows_per_step, config.seed, step)
    }
    return (
        Objective(train, reference_scores(engine, train, sorted(used), watchdog.beat), config),
        Objective(
            validation, reference_scores(engine, validation, validation_rows(engine, validation), watchdog.beat), config
        ),
    )


def _read_data(folder: Path, objective: ObjectiveName) -> tuple[PackedRows, PackedRows, Vocabulary]:
    train, validation = (PackedRows(folder, objective, split) for split in ("train", "validation"))
    return train, validation, Vocabulary(folder / "tokenizer")


def _data_folder(job: Job) -> Path:
    if "data" not in job.parents:
        raise BadInput("job.yaml", "parents.data", "is missing", "name the folder of the data stage")
    return job.parents["data"]


def _base_folder(job: Job) -> Path | None:
    """A stage's folder holds its model in `bundle/`; any other base is a model folder itself."""
    base = job.parents.get("base")
    if base is not None and (base / RECORD).is_file():
        return base / "bundle"
    return base


def data_version(job: Job) -> str:
    """Returns the version of the data that the job reads, "" where it has none."""
    folder = _data_folder(job)
    return read_record(folder).stamp.data_version if (folder / RECORD).is_file() else ""
