"""Evidence: what one evaluation says of its candidate, and whether two of them may be compared at all."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.samples import Sample, read_samples
from evaluation.scores import SCORES, ModelScores, Scores, read_scores
from lineage.errors import BadInput
from lineage.record import RECORD, read_record

CANDIDATE = "candidate"  # the label of the model that an evaluation is about
CHAMPION = "champion"  # in the gate: the model that it is compared with


@dataclass(frozen=True)
class Evidence:
    """An evaluate stage's scores of all its models, and the samples of its candidate.

    Attributes:
        folder: the stage's folder.
        name: `name@version` of the candidate, or the folder where it has no record.
    """

    folder: Path
    name: str
    scores: Scores
    samples: list[Sample]

    @property
    def candidate(self) -> ModelScores:
        return self.scores.models[CANDIDATE]


def read_evidence(folder: Path) -> Evidence:
    """Reads the folder of an evaluate stage.

    Raises:
        BadInput: a file is missing or invalid, or no model was scored under the label `candidate`.
    """
    scores = read_scores(folder)
    if CANDIDATE not in scores.models:
        known = ", ".join(scores.models)
        raise BadInput(folder / SCORES, f"models.{CANDIDATE}", f"is missing (there are: {known})", "evaluate it first")
    record = read_record(folder) if (folder / RECORD).is_file() else None
    name = f"{record.name}@{record.version}" if record else str(folder)
    return Evidence(folder, name, scores, read_samples(folder / "samples" / f"{CANDIDATE}.jsonl"))


def check_comparable(candidate: Evidence, champion: Evidence) -> None:
    """Refuses two evaluations that did not ask the same items in the same way.

    Raises:
        BadInput: naming the first field that differs.
    """
    for part in ("golden", "harness"):
        ours = dict(_flatten(part, getattr(candidate.scores, part)))
        other = dict(_flatten(part, getattr(champion.scores, part)))
        for field in sorted(ours.keys() | other.keys()):
            if ours.get(field) != other.get(field):
                values = f"{_short(ours.get(field))} for the candidate and {_short(other.get(field))} for the champion"
                problem = f"is {values}: their scores cannot be compared"
                raise BadInput(candidate.folder / SCORES, field, problem, "evaluate the champion again in the same way")
    mine, theirs = ([(sample.full_name, sample.id) for sample in side.samples] for side in (candidate, champion))
    if sorted(mine) != sorted(theirs):
        problem = "holds other items than the champion's samples"
        raise BadInput(candidate.folder / "samples", "id", problem, "run both evaluate stages again")


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested mappings by dotted path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(f"{prefix}.{key}", inner)
    else:
        yield prefix, value


def _short(value: Any) -> str:
    return "missing" if value is None else f"{str(value)[:12]}…" if len(str(value)) > 24 else str(value)
