"""A training stage from its job to its metrics, read top to bottom."""

import statistics
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from lineage.bundle import MANIFEST
from lineage.errors import BadInput, GoldpathError
from lineage.job import Job
from lineage.record import RECORD, Metric, read_record
from training.batches import PackedRows, rows_of_step
from training.blocks import place_blocks
from training.card import model_card
from training.checkpoint import Checkpoints
from training.choices import ObjectiveName
from training.config import TrainingConfig, TrainingJob
from training.engine import Engine, make_engine
from training.export import export_model, save_bundle
from training.flops import arithmetic_of
from training.hardware import quickest_precision
from training.loop import Loop, is_regular
from training.manifest import FOLDER, precision_of
from training.model import build_model, count_parameters, plain_model
from training.objectives import Objective, PairObjective, UnpairedObjective
from training.peak import measured_peak, widest_product
from training.prices import price_of_hour
from training.processes import Processes, threads_per_process
from training.reference import FOLDER as REFERENCE
from training.reference import KeptScores, reference_scores
from training.resources import Resources
from training.scoring import Regularisation, Scorer
from training.stop import StopRequest
from training.telemetry import Gauge, History, Telemetry, history_digest
from training.validate import Beat, unheard, validation_rows
from training.vocabulary import Vocabulary
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
    train, validation, vocabulary = processes.on_all(lambda: _read_data(folder, training.objective))
    processes.on_first(lambda: check_division(training, processes, train))
    base = _base_folder(job)

    def build() -> Scorer:
        regularise = Regularisation(training.label_smoothing, training.z_loss)
        model = build_model(config.model, base, vocabulary, training, train.seq_len)
        wants_collisions = training.objective == "dpo" and training.dpo_wpo
        return Scorer(
            model, regularise, wants_collisions
        ).train()  # a loaded model is not, and a resumed run validates late

    def card(figures: Mapping[str, Metric]) -> str:
        return model_card(job, training, parameters, data_version(job), figures)

    scorer = processes.on_all(build)
    parameters, trained = count_parameters(scorer)
    if processes.is_first:
        where = f"{resources.engine} on {processes.device} in {training.precision}"
        print(f"{parameters:,} parameters, {trained:,} of them trained, {where}", file=sys.stderr)
        if base is None and not (out / "initial" / MANIFEST).is_file():
            save_bundle(scorer.model, vocabulary, card({}), out / "initial")
    gauge = _gauge(scorer, training, resources, processes, train.seq_len)
    place_blocks(plain_model(scorer.model), training, resources, processes.device, train.seq_len)
    engine = make_engine(resources, scorer, training, processes)
    checkpoints = Checkpoints(out / FOLDER, fingerprints, training.keep_checkpoints, processes, is_regular(training))
    with Watchdog(resources.hang_seconds, out / f".hang-{processes.rank}.txt") as watchdog:

        def beat(doing: str) -> None:
            watchdog.beat(doing)
            stop.heed(processes)

        kept = KeptScores(out / FOLDER / REFERENCE, f"{checkpoints.identity} {training.precision}", processes)
        learnt = make_objective(engine, train, "train", kept, beat)
        validated = make_objective(engine, validation, "validation", kept, beat)
        progress = checkpoints.load_newest(engine)
        if progress.step > training.steps:
            problem = f"is {training.steps}, but the newest checkpoint is of step {progress.step}"
            raise BadInput("job.yaml", "config.training.steps", problem, "raise it, or choose a new version")
        telemetry = Telemetry(job, training, out, progress, gauge) if processes.is_first else None
        finished = False
        try:
            Loop(training, processes, engine, learnt, validated, checkpoints, telemetry, stop, watchdog, progress).run()
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


def check_division(training: TrainingConfig, processes: Processes, data: PackedRows) -> None:
    """Refuses rows that cannot be divided equally.

    Raises:
        BadInput: naming the nearest number of rows that can; or there are fewer rows than processes.
    """
    if data.num_rows < processes.world:
        raise BadInput(
            data.path,
            "",
            f"holds {data.num_rows} packed rows, fewer than the {processes.world} processes",
            "use fewer processes, more data, or a smaller `data: seq_len`",
        )
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
    if not history.values("loss"):
        raise GoldpathError(
            "every step was a bad one, so nothing was learnt. Fix: lower `learning_rate`, or look at the rows"
        )
    metrics: dict[str, Metric] = {
        "loss": history.values("loss")[-1],
        "validation_loss_before": losses[0],
        "validation_loss": losses[-1],
        "tokens": history.values("tokens")[-1],
        "tokens_per_second": statistics.median(history.values("tokens_per_second")),
        "mfu": statistics.median(history.values("mfu")),
        "goodput": history.values("goodput")[-1],
        "restarts": history.values("restarts")[-1],
        "history_sha256": history_digest(history.rows),
        "steps": training.steps,
        "precision": training.precision,
    }
    if accuracies:
        metrics |= {"preference_accuracy_before": accuracies[0], "preference_accuracy": accuracies[-1]}
    if rewards := history.values("reward_desirable"):
        metrics["reward_margin"] = rewards[-1] - history.values("reward_undesirable")[-1]
    return metrics


def _gauge(scorer: Scorer, training: TrainingConfig, resources: Resources, processes: Processes, seq_len: int) -> Gauge:
    """Measures the roofline on all processes at once, as they will compute, before an engine divides the layers."""
    assert training.precision != "auto"
    rows = training.rows_per_step // (processes.world * training.accumulation) * seq_len
    peak = measured_peak(processes.device, training.precision, rows, *widest_product(scorer.model))
    price = price_of_hour(processes.device, processes.world, threads_per_process(resources))
    return Gauge(processes.device, processes.world, seq_len, arithmetic_of(scorer.model), peak, price)


def make_objective(
    engine: Engine, data: PackedRows, split: str, kept: KeptScores | None = None, beat: Beat = unheard
) -> Objective:
    """Returns the loss over a file of rows. What needs a reference scores the rows now, unless that was kept."""
    config = engine.config
    if config.objective not in ("dpo", "kto"):
        return Objective(data)
    if config.objective == "kto" and not data.judged:
        raise BadInput(data.path, "desirable", "is missing", "run the data stage again")
    kept = kept or KeptScores(None, "", engine.processes)
    rows = validation_rows(engine, data) if split == "validation" else _rows_of_run(config, data)
    reference = reference_scores(engine, data, rows, kept, beat)
    if config.objective == "dpo":
        return PairObjective(data, config, reference)
    mismatched = None
    if config.kto_loss == "kto":
        other = PackedRows(data.folder, config.objective, f"{split}-mismatched")
        mismatched = UnpairedObjective(other, config, reference_scores(engine, other, rows, kept, beat))
    return UnpairedObjective(data, config, reference, mismatched)


def _rows_of_run(config: TrainingConfig, data: PackedRows) -> list[int]:
    """Returns the rows that the run will ever learn from."""
    steps = min(config.steps, -(-data.num_rows // config.rows_per_step))
    rows = (rows_of_step(data.num_rows, config.rows_per_step, config.seed, step) for step in range(steps))
    return sorted({row for step in rows for row in step})


def _read_data(folder: Path, objective: ObjectiveName) -> tuple[PackedRows, PackedRows, Vocabulary]:
    train, validation = (PackedRows(folder, objective, split) for split in ("train", "validation"))
    vocabulary = Vocabulary(folder / "tokenizer")
    for rows in (train, validation):
        rows.require_learnable(vocabulary.size)
    return train, validation, vocabulary


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
