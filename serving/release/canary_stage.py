"""The canary as a stage: `python -m serving canary --config job.yaml --out DIR`.

Writes `timeline.jsonl` (one JSON object per event, as it happens), `canary.json` (the outcome with its numbers), and the
record last. Exit 0: champion; 4: not approved; 5: rolled back.
"""

import json
import sys
from pathlib import Path
from typing import IO, Any

from lineage.errors import BadInput, ExitCode
from lineage.files import write_json
from lineage.job import load_stage
from lineage.record import Metric, Record
from lineage.section import parse
from lineage.stage import StageRun
from serving.config import CanaryPolicy, CanaryResources, Places
from serving.release.ledger import Ledger
from serving.release.probes import read_probes
from serving.release.promote import Outcome, run_canary
from serving.release.states import Event

PROBES = "golden/probe.jsonl"
TIMELINE = "timeline.jsonl"
EXIT_CODES = {"champion": ExitCode.OK, "rolled_back": ExitCode.ROLLED_BACK}


def main(config: Path, out: Path) -> int:
    """Runs the stage and returns its exit code; errors carry theirs (`lineage.errors.run_cli`).

    Args:
        config: the job file.
        out: the stage's folder.
    """
    job, policy = load_stage(config, CanaryPolicy)
    resources = parse(CanaryResources, job.resources, config, "resources")
    if "data" not in job.parents:
        raise BadInput(config, "parents.data", "is missing", "give the folder of the data stage")
    probes = read_probes(job.parents["data"] / PROBES)
    ledger = Ledger(resources.ledger)
    release = ledger.history(job.name).release(job.version)
    approval = release.last(Event.APPROVED)
    identity = {"bundle": release.digest, "approval": approval.hash if approval else ""}
    with StageRun(job, out, identity) as run:
        if run.finished:
            print(f"{out}: already finished, reused", file=sys.stderr)
            return _close(run.finished, out)
        with (out / TIMELINE).open("a", encoding="utf-8") as timeline:
            outcome = run_canary(
                ledger,
                Places(**resources.model_dump(exclude={"requester"})),
                job.name,
                job.version,
                policy,
                probes,
                resources.requester,
                _Timeline(timeline).write,
            )
        write_json(out / "canary.json", _describe(outcome))
        return _close(run.finish(_metrics(outcome)), out)


class _Timeline:
    """Streams events to a file, and the gist of them to stderr."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, event: dict[str, Any]) -> None:
        self._file.write(json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        at = f"{event['seconds']:6.1f} s  " if "seconds" in event else ""
        weight = f"{event['weight']:g} %  " if "weight" in event else ""
        said = "; ".join(event.get("reasons", [])) or event.get("reason", "")
        if event.get("decision") == "pass":  # why not is news; why is in the file
            said = f"after {event['candidate']['requests']} requests, {event['champion']['requests']} of the champion's"
        print(f"{at}{event['event']:<11} {weight}{event.get('decision', '')}  {said}".rstrip(), file=sys.stderr)


def _describe(outcome: Outcome) -> dict[str, Any]:
    judgement = outcome.judgement.model_dump(mode="json") if outcome.judgement else None
    return {
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "champion": outcome.champion,
        "steps": outcome.steps,
        "judgement": judgement,
    }


def _metrics(outcome: Outcome) -> dict[str, Metric]:
    """The record's figures: the verdict, how far it came, and each arm's numbers at the last look."""
    metrics: dict[str, Metric] = {"verdict": outcome.verdict, "reason": outcome.reason, "champion": outcome.champion}
    metrics |= {"steps": len(outcome.steps), "weight": max((step["weight"] for step in outcome.steps), default=0.0)}
    if outcome.judgement:
        for arm in ("candidate", "champion"):
            metrics |= {f"{arm}_{key}": value for key, value in getattr(outcome.judgement, arm)}
    return metrics


def _close(record: Record, out: Path) -> int:
    print(json.dumps({"stage": record.stage, "metrics": record.metrics, "out": str(out)}, ensure_ascii=False))
    return int(EXIT_CODES[str(record.metrics["verdict"])])
