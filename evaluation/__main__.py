"""`python -m evaluation --config job.yaml --out DIR`: the stages `evaluate` and `gate`."""

import argparse
import json
import sys
from pathlib import Path

from lineage.errors import BadInput, ExitCode, run_cli
from lineage.job import load_stage
from lineage.privacy import switch_off_telemetry
from lineage.record import Record
from lineage.section import read_yaml
from lineage.stage import StageRun


def main() -> int:
    """Runs the job's stage, or reuses it where it finished before. A gate that does not pass exits with 3."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the job file; its `stage` is evaluate or gate")
    parser.add_argument("--out", type=Path, required=True, help="the folder that the stage writes")
    arguments = parser.parse_args()
    switch_off_telemetry()
    stage = read_yaml(arguments.config).get("stage")
    if stage == "evaluate":
        record = run_evaluate(arguments.config, arguments.out)
    elif stage == "gate":
        record = run_gate(arguments.config, arguments.out)
    else:
        raise BadInput(arguments.config, "stage", f"is {stage!r}", "write `evaluate` or `gate`")
    print(json.dumps({"stage": stage, "metrics": record.metrics, "out": str(arguments.out)}))
    return ExitCode.GATE_FAILED if stage == "gate" and record.metrics["verdict"] != "pass" else ExitCode.OK


def run_evaluate(path: Path, out: Path) -> Record:
    """Scores the job's models."""
    from evaluation.config import EvaluationConfig
    from evaluation.suite import suite_digests

    job, config = load_stage(path, EvaluationConfig)
    with StageRun(job, out, suite_digests(config)) as run:
        if run.finished:
            print(f"evaluate: already finished in {out}, reused", file=sys.stderr)
            return run.finished
        from evaluation.evaluate import evaluate

        return run.finish(evaluate(job, config, out))


def run_gate(path: Path, out: Path) -> Record:
    """Judges the job's candidate."""
    from evaluation.config import GatePolicy

    job, policy = load_stage(path, GatePolicy)
    with StageRun(job, out) as run:
        if run.finished:
            print(f"gate: already finished in {out}, reused", file=sys.stderr)
            return run.finished
        from evaluation.decide import decide

        record = run.finish(decide(job, policy, out))
    print(f"gate: {record.metrics['verdict']}, report: {out / 'report.html'}", file=sys.stderr)
    return record


if __name__ == "__main__":
    run_cli(main)
