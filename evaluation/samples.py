"""Samples: every item's score of one model, which is what the statistics, the gate and the report read."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lineage.errors import BadInput
from lineage.section import Section, parse

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Sample(Section):
    """One item of one model.

    Attributes:
        task, metric: a metric's full name is `<task>.<metric>`.
        score: in the metric's unit; null where the model's output was not a number.
        weight: the item's share in the metric, which is the weighted mean of the scores: 1, or a document's bytes.
        prompt: what the model was given, rendered by its own chat template; shortened for documents.
        answer: what the model said, or the choice that it found likeliest.
    """

    task: str
    id: str
    group: str
    tags: list[str]
    metric: str
    score: float | None
    weight: float
    prompt: str
    answer: str
    expected: str

    @property
    def full_name(self) -> str:
        return f"{self.task}.{self.metric}"


@dataclass(frozen=True)
class Measured:
    """One metric of one model as arrays over its items, sorted by id.

    Attributes:
        ids: the items.
        scores, weights: (items,) float64; a score may be NaN.
        clusters: (items,) int64, numbered from 0; items of one group share a number.
    """

    ids: tuple[str, ...]
    scores: "npt.NDArray[np.float64]"
    weights: "npt.NDArray[np.float64]"
    clusters: "npt.NDArray[np.int64]"

    @property
    def value(self) -> float:
        """The metric: the weighted mean of the scores."""
        return float((self.scores * self.weights).sum() / self.weights.sum())


def measure(samples: Sequence[Sample]) -> Measured:
    """Returns the arrays of one metric's samples."""
    import numpy as np

    ordered = sorted(samples, key=lambda sample: sample.id)
    groups = [sample.group or sample.id for sample in ordered]
    return Measured(
        ids=tuple(sample.id for sample in ordered),
        scores=np.array([math.nan if s.score is None else s.score for s in ordered], dtype=np.float64),
        weights=np.array([sample.weight for sample in ordered], dtype=np.float64),
        clusters=np.unique(np.array(groups), return_inverse=True)[1].astype(np.int64),
    )


def measure_all(samples: Iterable[Sample]) -> dict[str, Measured]:
    """Returns the arrays of every metric, by full name."""
    by_metric: dict[str, list[Sample]] = {}
    for sample in samples:
        by_metric.setdefault(sample.full_name, []).append(sample)
    return {name: measure(found) for name, found in by_metric.items()}


def dump_samples(samples: Iterable[Sample]) -> str:
    """Returns samples as JSON lines."""
    rows = (json.dumps(sample.model_dump(mode="json"), ensure_ascii=False, allow_nan=False) for sample in samples)
    return "".join(row + "\n" for row in rows)


def parse_samples(text: str, where: Path) -> list[Sample]:
    """Reads JSON lines.

    Raises:
        BadInput: a line is no sample.
    """
    samples = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line:
            try:
                value = json.loads(line)
            except ValueError:
                raise BadInput(where, f"line {number}", "is not JSON", "run the evaluate stage again") from None
            samples.append(parse(Sample, value, where, f"line {number}"))
    return samples


def read_samples(path: Path) -> list[Sample]:
    """Reads a file of samples.

    Raises:
        BadInput: the file is missing or a line is no sample.
    """
    try:
        return parse_samples(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise BadInput(path, "", f"cannot be read ({error.strerror})", "run the evaluate stage again") from None
