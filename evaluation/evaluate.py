"""The evaluate stage: several models, the same golden items, one process."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from evaluation.cache import cache_file, keep, recall
from evaluation.config import EvaluationConfig
from evaluation.evidence import CANDIDATE
from evaluation.golden import read_golden
from evaluation.harness import harness_fingerprint, open_tasks, prepare_process, score_bundle
from evaluation.samples import Sample, dump_samples, measure, measure_all
from evaluation.scores import SCORES, ModelScores, Scores, score_metric
from evaluation.suite import TaskFile, load_suite
from lineage.bundle import digest_model
from lineage.errors import BadInput
from lineage.files import write_atomic, write_json
from lineage.job import Job
from lineage.record import Metric

DATA = "data"
UNTRAINED = "untrained"


def evaluate(job: Job, config: EvaluationConfig, out: Path) -> dict[str, Metric]:
    """Scores every model among the job's parents and writes `samples/<label>.jsonl`, then `scores.json`.

    Args:
        job: its parent `data` holds the golden sets; every other parent is a model, and its role is the model's label.

    Returns:
        The candidate's metrics, or those of the last model where none has that label.

    Raises:
        Tampered: a golden set or a bundle is not what its manifest vouches for.
        BadInput: a golden set, suite or bundle is missing or invalid.
    """
    suite = load_suite(config.suite)
    bundles = _bundles(job)
    golden = read_golden(job.parents[DATA], [task.golden for task in suite.tasks])
    digests = {label: digest_model(bundle) for label, bundle in bundles.items()}
    hashes = {name: golden[name].sha256 for name in sorted(golden)}
    harness = harness_fingerprint(suite, config)

    prepare_process(int(job.resources.get("threads", 0)))
    device = _choose_device(str(job.resources.get("device", "auto")))
    scored: dict[str, list[Sample]] = {}
    with open_tasks(suite, golden) as tasks:
        for label, digest in digests.items():
            kept = cache_file(job, digest, hashes, harness)
            samples = scored.get(digest) or recall(kept)
            if samples is not None:
                print(f"evaluate: {label}: these very bytes were scored before, reused", file=sys.stderr)
            else:
                samples = score_bundle(bundles[label], suite, tasks, golden, config, device, _teller(label))
                keep(kept, samples)
            scored[digest] = samples
            write_atomic(out / "samples" / f"{label}.jsonl", dump_samples(samples))

    scores = Scores(
        suite=suite.name,
        golden=hashes,
        harness=harness,
        directions={task.full_name: task.direction for task in suite.tasks},
        models={label: _score_model(digest, scored[digest], config) for label, digest in digests.items()},
    )
    write_json(out / SCORES, scores.model_dump(mode="json"))
    main = scores.models.get(CANDIDATE) or list(scores.models.values())[-1]
    return {name: score.value for name, score in main.metrics.items()}


def _bundles(job: Job) -> dict[str, Path]:
    """Returns the folder of each model's bundle, by label."""
    if DATA not in job.parents:
        raise BadInput("job.yaml", f"parents.{DATA}", "is missing", "name the folder whose golden/ holds the items")
    bundles = {role: find_bundle(role, folder) for role, folder in job.parents.items() if role != DATA}
    if not bundles:
        raise BadInput("job.yaml", "parents", "no model to score", "name one, such as `candidate:`")
    return bundles


def _score_model(digest: str, samples: list[Sample], config: EvaluationConfig) -> ModelScores:
    metrics = {name: score_metric(measured, config) for name, measured in measure_all(samples).items()}
    return ModelScores(digest=digest, metrics=metrics)


def find_bundle(role: str, folder: Path) -> Path:
    """Returns where a parent's bundle is: `initial/` for the untrained model, `bundle/`, or the folder itself."""
    if role == UNTRAINED and (folder / "initial").is_dir():
        return folder / "initial"
    return folder / "bundle" if (folder / "bundle").is_dir() else folder


def _choose_device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BadInput("job.yaml", "resources.device", "is `cuda`, but there is no GPU", "set it to `auto` or `cpu`")
    return wanted


def _teller(label: str) -> Callable[[TaskFile, list[Sample]], None]:
    start = time.monotonic()

    def tell(task: TaskFile, samples: list[Sample]) -> None:
        seconds = time.monotonic() - start
        value = measure(samples).value
        print(f"evaluate: {label}: {task.full_name} {value:.3f} ({len(samples)} items, {seconds:.1f} s)", file=sys.stderr)

    return tell
