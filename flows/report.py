"""The story of a model's versions as one self-contained HTML page: losses, scores, funnel, gate, canary."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.charts import canary_timeline, funnel_bars, loss_curves, rate_curves, score_bars, speed_curves, time_bars
from lineage.files import write_atomic
from lineage.record import RECORD, Record, read_record

if TYPE_CHECKING:
    from flows.settings import Settings

TEMPLATE = Path(__file__).with_name("report.html")
STAGE_ORDER = ("data", "pretrain", "sft", "dpo", "kto", "evaluate", "gate", "canary")
MOST_TRIGGERS = 20  # what a person reads; `poison.json` has them all
MAIN_FIGURE = {  # what a person asks of a stage first: the figure, and what it is called in a table
    "data": {"tokens_pretrain": "pretraining tokens", "tokens_sft": "SFT tokens"},
    "pretrain": {"validation_loss": "validation loss"},
    "sft": {"validation_loss": "validation loss"},
    "dpo": {"validation_loss": "preference loss"},
    "kto": {"validation_loss": "preference loss"},
    "evaluate": {"closed_book.exact_match": "closed-book"},
    "gate": {"closed_book.exact_match.improvement": "closed-book, gain", "closed_book.exact_match": "closed-book"},
    "canary": {"weight": "traffic, %"},
}


def write_report(settings: "Settings", name: str, versions: list[str], path: Path) -> Path:
    """Writes the page for some versions of a model, in the order given, and returns its path."""
    from jinja2 import Environment

    folders = [settings.runs / name / version for version in versions]
    page = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = page.render(
        title=f"{name}: from raw text to champion",
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=str(settings.runs),
        rows=[row for folder in folders for row in stage_rows(folder)],
        versions=[_version(folder, path.parent) for folder in folders if folder.is_dir()],
    )
    write_atomic(path, text)
    return path


def stage_rows(folder: Path) -> list[dict[str, str]]:
    """Returns one row per finished stage of a version: stage, time, main figure, verdict; a reused one says from where."""
    rows = []
    for stage, record in stages(folder):
        here = (record.name, record.version) == (folder.parent.name, folder.name)
        rows.append(
            {
                "version": folder.name,
                "stage": stage.name,
                "time": f"{record.seconds:.1f} s" if here else f"as {record.version}",
                "figure": main_figure(record),
                "verdict": str(record.metrics.get("verdict", "")),
            }
        )
    return rows


def stages(folder: Path) -> Iterator[tuple[Path, Record]]:
    """Yields the finished stages of a version, in the order of the path."""

    def rank(path: Path) -> tuple[int, str]:
        kind = path.name.split("-")[0]
        return (STAGE_ORDER.index(kind) if kind in STAGE_ORDER else len(STAGE_ORDER), path.name)

    for path in sorted(folder.iterdir() if folder.is_dir() else [], key=rank):
        if (path / RECORD).is_file():
            yield path, read_record(path)


def main_figure(record: Record) -> str:
    """Returns a stage's main figure as `label value`, with the value before the stage where there is one."""
    for name, label in MAIN_FIGURE.get(record.stage, {}).items():
        value = record.metrics.get(name)
        before = record.metrics.get(f"{name}_before")
        if isinstance(value, float):
            return f"{label} {before:.3g} → {value:.3g}" if isinstance(before, float) else f"{label} {value:.3g}"
        if value is not None:
            return f"{label} {value:,}" if isinstance(value, int) else f"{label} {value}"
    return ""


def _version(folder: Path, page_folder: Path) -> dict[str, Any]:
    """Collects what the page shows of one version; what did not happen is left out."""
    found: dict[str, Any] = {"name": folder.parent.name, "version": folder.name, "bars": [], "canaries": []}
    histories: dict[str, list[dict[str, Any]]] = {}
    for path, record in stages(folder):
        match record.stage:
            case "data":
                found["funnel"] = funnel_bars(_json(path / "funnel.json")["kinds"])
                if (path / "poison.json").is_file():  # a data stage of an earlier release did not look for triggers
                    found["triggers"] = _json(path / "poison.json")["findings"][:MOST_TRIGGERS]
            case "pretrain" | "sft" | "dpo" | "kto":
                histories[record.stage] = _json_lines(path / "metrics.jsonl")
                found |= {"data_version": record.stamp.data_version, "commit": record.stamp.commit}
            case "evaluate" if path.name == "evaluate":
                scores = _json(path / "scores.json")
                found["digest"], ways = scores["models"]["candidate"]["digest"], scores["directions"]
                by_metric = _by_metric(scores["models"])
                found["bars"] = [score_bars(metric, ways[metric], values) for metric, values in by_metric.items()]
            case "gate":
                verdict = _json(path / "verdict.json")
                found |= {"verdict": verdict["verdict"], "reasons": verdict["reasons"]}
                found["gate_report"] = os.path.relpath(path / "report.html", page_folder)
            case "canary":
                figures = record.metrics
                drawing = canary_timeline(f"{record.name}@{record.version}", _json_lines(path / "timeline.jsonl"))
                found["canaries"].append({"drawing": drawing, "verdict": figures["verdict"], "reason": figures["reason"]})
    if histories:
        drawings = (loss_curves, rate_curves, time_bars, speed_curves)
        found["curves"] = [draw(histories) for draw in drawings]
    return found


def _by_metric(models: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Turns scores by model and metric into scores by metric and model."""
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for label, model in models.items():
        for metric, score in model["metrics"].items():
            metrics.setdefault(metric, {})[label] = score
    return metrics


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
