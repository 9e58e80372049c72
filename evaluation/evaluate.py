"""The evaluate stage: several models, the same golden items, one process."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from evaluation.config import EvaluationConfig
from evaluation.evidence import CANDIDATE
from evaluation.golden import read_golden
from evaluation.harness import harness_fingerprint, open_tasks, prepare_process, score_bundle
from evaluation.samples import Sample, measure, measure_all, write_samples
from evaluation.scores import SCORES, ModelScores, Scores, score_metric
from evaluation.suite import TaskFile, load_suite
from lineage.bundle import verify_bundle
from lineage.errors import BadInput
from lineage.files import write_json
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
    if DATA not in job.parents:
        raise BadInput("job.yaml", f"parents.{DATA}", "is missing", "name the folder whose golden/ holds the items")
    bundles = {role: find_bundle(role, folder) for role, folder in job.parents.items() if role != DATA}
    if not bundles:
        raise BadInput("job.yaml", "parents", "no model to score", "name one, such as `candidate:`")
    golden = read_golden(job.parents[DATA], [task.golden for task in suite.tasks])
    digests = {label: verify_bundle(bundle) for label, bundle in bundles.items()}

    prepare_process()
    device = _choose_device(str(job.resources.get("device", "auto")))
    scored: dict[str, list[Sample]] = {}
    with open_tasks(suite, golden) as tasks:
        for label, bundle in bundles.items():
            digest = digests[label]
            if digest in scored:
                print(f"evaluate: {label} is the same bundle as one before it", file=sys.stderr)
            else:
                scored[digest] = score_bundle(bundle, suite, tasks, golden, config, device, _teller(label))
            write_samples(out / "samples" / f"{label}.jsonl", scored[digest])

    models = {}
    for label, digest in digests.items():
        metrics = {name: score_metric(measured, config) for name, measured in measure_all(scored[digest]).items()}
        models[label] = ModelScores(digest=digest, metrics=metrics)
    scores = Scores(
        suite=suite.name,
        golden={name: golden[name].sha256 for name in sorted(golden)},
        harness=harness_fingerprint(suite, config),
        directions={task.full_name: task.direction for task in suite.tasks},
        models=models,
    )
    write_json(out / SCORES, scores.model_dump(mode="json"))
    main = models.get(CANDIDATE) or list(models.values())[-1]
    return {name: score.value for name, score in main.metrics.items()}


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
