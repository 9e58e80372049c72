"""lm-eval, wrapped once: a suite's tasks on golden sets, asked of one bundle after the other in one process."""

import hashlib
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from evaluation.config import EvaluationConfig
from evaluation.golden import GoldenSet, Item
from evaluation.samples import Sample
from evaluation.suite import Suite, TaskFile
from lineage.files import sha256_file

# These libraries look at their environment once, when they are imported.
OFFLINE_AND_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that wait for each other sleep: spinning is ruinous where a server shares the cores, and gains little else.
    "OMP_WAIT_POLICY": "PASSIVE",
}
# What decides a score besides model, items and task files: the versions that compute, and our own code around them.
LIBRARIES = ("lm_eval", "transformers", "tokenizers", "torch")
CODE = ("scoring.py", "bundle_lm.py", "harness.py")
PROMPT_CHARACTERS = 400  # of a held-out document, in its sample

Harness = dict[str, Any]
Tasks = Mapping[str, Any]


def prepare_process(threads: int = 0) -> None:
    """Makes the libraries offline and quiet; call it before they are imported. `threads` 0 leaves torch's own choice."""
    os.environ.update(OFFLINE_AND_QUIET)
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def harness_fingerprint(suite: Suite, config: EvaluationConfig) -> Harness:
    """Returns what two scores must share to be comparable, by field: versions, precision, batch size, tasks, code."""
    here = Path(__file__).parent
    code = hashlib.sha256("".join(sha256_file(here / name) for name in CODE).encode()).hexdigest()
    return {
        **{library: version(library).partition("+")[0] for library in LIBRARIES},  # `2.13.0+cpu` names a device
        "dtype": config.dtype,
        "batch_size": config.batch_size,
        "code": code,
        "tasks": {task.name: sha256_file(task.path) for task in suite.tasks},
    }


@contextmanager
def open_tasks(suite: Suite, golden: Mapping[str, GoldenSet]) -> Iterator[Tasks]:
    """Loads the suite's tasks over the golden sets into lm-eval; they live until the block ends.

    Each task file is included by a temporary one that adds where its rows are: a copy of the bytes that were verified.
    """
    from lm_eval.tasks import TaskManager

    for library in ("lm_eval", "datasets", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="goldpath-tasks-") as name:
        folder = Path(name)
        for task in suite.tasks:
            _write_overlay(folder, task, golden[task.golden])
        # The tasks that lm-eval ships stay out: indexing them takes seconds, and none of them is asked for.
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        yield manager.load([task.name for task in suite.tasks])["tasks"]


def _write_overlay(folder: Path, task: TaskFile, golden: GoldenSet) -> None:
    rows = folder / f"{golden.name}.jsonl"
    rows.write_bytes(golden.content)
    overlay = {
        "include": str(task.path.resolve()),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
    }
    (folder / f"{task.name}.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")


def score_bundle(
    bundle: Path,
    suite: Suite,
    tasks: Tasks,
    golden: Mapping[str, GoldenSet],
    config: EvaluationConfig,
    device: str,
    tell: Callable[[TaskFile, list[Sample]], None],
) -> list[Sample]:
    """Asks a bundle every item of a suite.

    Args:
        tasks: from `open_tasks`.
        tell: called after each task with its samples.

    Raises:
        BadInput: the bundle cannot be asked (no chat template, a prompt longer than its window).
    """
    from evaluation.bundle_lm import BundleLM

    model = BundleLM(bundle, config.dtype, config.batch_size, device)
    samples = []
    for task in suite.tasks:
        found = _ask(model, task, tasks[task.name], golden[task.golden])
        tell(task, found)
        samples.extend(found)
    return samples


def _ask(model: Any, task: TaskFile, loaded: Any, golden: GoldenSet) -> list[Sample]:
    """Runs one task. `evaluate` and not `simple_evaluate`, which adds a `pip list` and 100,000 resamples to every call."""
    from lm_eval.evaluator import evaluate

    loaded.set_fewshot_seed(0)
    tasks = {"tasks": {task.name: loaded}}
    with redirect_stderr(StringIO()):  # lm-eval's progress bars ignore TQDM_DISABLE; errors are exceptions and still leave
        results = evaluate(model, tasks, bootstrap_iters=0, log_samples=True, apply_chat_template=True)
    items = {item.id: item for item in golden.items}
    return [_sample(task, row, items[row["doc"]["id"]]) for row in results["samples"][task.name]]


def _sample(task: TaskFile, row: Mapping[str, Any], item: Item) -> Sample:
    """Makes a sample of what lm-eval logged for one item: `doc`, `arguments` per request, `filtered_resps`, the metric."""
    score, weight = row[task.metric], 1.0
    prompt, answer = row["arguments"][0][0], ""
    match row["filtered_resps"]:
        case [str() as said]:
            answer = said
        case [float() as likelihood]:  # a document: natural log of its probability; the score is in bits per byte
            weight = float(score[1])
            score = -likelihood / math.log(2) / weight
            prompt = prompt[:PROMPT_CHARACTERS]
        case [*choices]:
            likelihoods = [likelihood for likelihood, _ in choices]
            answer = row["arguments"][likelihoods.index(max(likelihoods))][1]
    return Sample(
        task=task.name,
        id=item.id,
        group=item.group,
        tags=item.tags,
        metric=task.metric,
        score=float(score) if math.isfinite(score) else None,
        weight=weight,
        prompt=prompt,
        answer=answer,
        expected=item.expected,
    )
