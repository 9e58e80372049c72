"""A champion's scores over time, and when a night is worse than chance explains. Pure reading; no Prefect here."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from lineage.errors import BadInput, Tampered
from lineage.record import RECORD, read_record, verify_outputs

if TYPE_CHECKING:
    from flows.settings import Settings

RELEASE = "release"  # the night that is none: the evaluation that a version was released with
LABEL = "candidate"  # the evaluation's name for the model that is judged
REMEMBERED_NIGHTS = 7


@dataclass(frozen=True)
class Score:
    """One metric with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Night:
    """One evaluation of a champion.

    Attributes:
        at: when, as in the folder's name; `release` for the evaluation that it was released with.
        golden: sha256 per golden set; only scores on equal sets are compared.
    """

    at: str
    version: str
    digest: str
    golden: dict[str, str]
    scores: dict[str, Score]


def read_trend(settings: "Settings", name: str, version: str) -> list[Night]:
    """Returns the evaluation that the version was released with, then the model's finished nights, oldest first."""
    folder = settings.runs / name
    nights = sorted(path.parent for path in folder.glob(f"nightly-*/evaluate/{RECORD}"))
    return [_read(folder / version / "evaluate", RELEASE)] + [
        _read(night, night.parent.name.removeprefix("nightly-")) for night in nights
    ]


def directions_of(settings: "Settings", name: str, version: str) -> dict[str, str]:
    """Returns `higher` or `lower` per metric that the version's gate judged.

    Raises:
        BadInput: the gate's record is gone; a night without a policy would pass whatever it finds.
    """
    folder = settings.runs / name / version
    gates = sorted(folder.glob(f"gate*/{RECORD}"))
    if not gates:
        raise BadInput(folder, "gate", "has no record, so nothing says what got worse", "restore the folder")
    rules = [rule for gate in gates for rule in read_record(gate.parent).config["metrics"]]
    return {rule["metric"]: rule["direction"] for rule in rules}


def find_regressions(trend: list[Night], directions: dict[str, str]) -> list[str]:
    """Returns why the last night is worse than what came before; nothing where it is not.

    A metric regressed when its whole confidence interval is worse than the score at release, or than the median of the
    last nights on the same golden sets. The release's score never leaves the comparison, so a champion that gets worse
    slowly is found too.
    """
    *earlier, tonight = trend
    # Another champion's nights say nothing about this one: the gate let it differ within its margin.
    comparable = [night for night in earlier if (night.golden, night.digest) == (tonight.golden, tonight.digest)]
    at_release = [night for night in comparable if night.at == RELEASE]
    nights_before = [night for night in comparable if night.at != RELEASE]
    reasons = []
    for metric, direction in directions.items():
        for label, nights in (("at release", at_release), ("the last nights' median", nights_before)):
            values = [night.scores[metric].value for night in nights if metric in night.scores][-REMEMBERED_NIGHTS:]
            if values and metric in tonight.scores and _is_worse(tonight.scores[metric], median(values), direction):
                score = tonight.scores[metric]
                interval = f"{score.value:.4g} ({score.low:.4g} to {score.high:.4g})"
                reasons.append(f"{metric} is {interval}, {direction} is better, and {label} it was {median(values):.4g}")
                break
    return reasons


def trend_rows(trend: list[Night]) -> list[dict[str, Any]]:
    """Returns one table row per evaluation, a column per metric."""
    metrics = sorted({metric for night in trend for metric in night.scores})
    return [
        {"night": night.at, "version": night.version, "digest": night.digest[:19]}
        | {metric: round(night.scores[metric].value, 4) if metric in night.scores else None for metric in metrics}
        for night in trend
    ]


def _is_worse(score: Score, reference: float, direction: str) -> bool:
    return score.high < reference if direction == "higher" else score.low > reference


def _read(folder: Path, at: str) -> Night:
    record = read_record(folder)
    verify_outputs(folder, record, ["scores.json"])
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    model = scores["models"].get(LABEL)
    if model is None:
        raise Tampered(folder / "scores.json", f"models.{LABEL}", "is missing", "run the evaluation again")
    metrics = {name: Score(m["value"], m["low"], m["high"]) for name, m in model["metrics"].items()}
    return Night(at, record.version, model["digest"], scores["golden"], metrics)
