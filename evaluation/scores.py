"""`scores.json`: what an evaluation found, and what it asked how."""

import json
import math
from pathlib import Path
from typing import Any

from evaluation.compare import Levels, estimate_score
from evaluation.config import Direction, EvaluationConfig
from evaluation.samples import Measured
from lineage.errors import BadInput
from lineage.section import Section, parse

SCORES = "scores.json"


class Score(Section):
    """A metric of one model: its value, the two-sided interval around it, and how many items it is from.

    All three are null where the model's output was not a number on some item; the bounds alone where one item, or one
    group of items, says nothing about how another would differ.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


class ModelScores(Section):
    """One model: the digest of its bundle, and its metrics by full name."""

    digest: str
    metrics: dict[str, Score]


class Scores(Section):
    """The file.

    Attributes:
        golden: sha256 of each golden set that was asked, by name.
        harness: see `evaluation.harness.harness_fingerprint`.
        directions: which way is better, by metric.
        models: by label, in the order in which they were scored.
    """

    suite: str
    golden: dict[str, str]
    harness: dict[str, Any]
    directions: dict[str, Direction]
    models: dict[str, ModelScores]


def score_metric(measured: Measured, config: EvaluationConfig) -> Score:
    """Returns a metric's score with its interval at the configured confidence."""
    import numpy as np

    if not np.isfinite(measured.scores).all():
        return Score(value=None, low=None, high=None, n=len(measured.ids))
    tail = (1 - config.confidence) / 2
    levels = Levels(tail, tail, config.resamples, config.seed)
    found = estimate_score(measured.scores, measured.weights, measured.clusters, levels)
    low, high = (bound if math.isfinite(bound) else None for bound in (found.low, found.high))
    return Score(value=found.value, low=low, high=high, n=found.items)


def read_scores(folder: Path) -> Scores:
    """Reads the scores of an evaluate stage.

    Raises:
        BadInput: the file is missing or is not such a file.
    """
    path = folder / SCORES
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(path, "", f"cannot be read ({error.strerror})", "run the evaluate stage first") from None
    except ValueError:
        raise BadInput(path, "", "is not JSON", "run the evaluate stage again") from None
    return parse(Scores, value, path)
