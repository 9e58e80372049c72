"""`python -m data_contracts --config FILE --out DIR` runs the data stage; `--restore NAME@VERSION` gets its output back."""

import argparse
import json
from pathlib import Path

from lineage.errors import BadInput, run_cli
from lineage.privacy import switch_off_telemetry


def main() -> int:
    """Runs one command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_contracts", description="Turn sources into packed training tokens."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, metavar="FILE", help="a job file, or a recipe, whose `data:` section is run")
    what.add_argument("--restore", metavar="NAME@VERSION", help="get a data version back from the DVC remote, and check it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    arguments = parser.parse_args()
    switch_off_telemetry()
    if arguments.restore:
        return restore(arguments.restore, arguments.out)
    return run(arguments.config, arguments.out)


def run(path: Path, out: Path) -> int:
    """Runs the data stage, or says that it already finished."""
    from data_contracts.job import load_data_job, tokenizer_folder
    from data_contracts.sources import source_digests
    from data_contracts.tombstones import load_erasures
    from data_contracts.version import home_folder
    from lineage.stage import StageRun

    job, config = load_data_job(path)
    erasures = load_erasures(home_folder())
    with StageRun(job, out, source_digests(config) | erasures.inputs()) as stage:
        if stage.finished:
            from data_contracts.prepare import say

            say("already finished, reused")
        else:
            from data_contracts.card import write_card
            from data_contracts.prepare import prepare, say
            from data_contracts.version import version_data

            metrics = prepare(config, out, tokenizer_folder(job), stage.inputs, erasures)
            write_card(out, config, stage.inputs)
            say("versioning")
            stage.finish(metrics, version_data(out, job.name, job.version))
        assert stage.finished is not None
        report = {"stage": job.stage, "metrics": stage.finished.metrics, "out": str(out)}
        print(json.dumps(report | {"data_version": stage.finished.stamp.data_version}))
    return 0


def restore(address: str, out: Path) -> int:
    """Restores one data version."""
    from data_contracts.version import restore_version

    name, _, version = address.partition("@")
    if not name or not version:
        raise BadInput("--restore", address, "is not of the form NAME@VERSION", "name one, such as `pystdlib@1.0.0`")
    print(json.dumps({"data_version": restore_version(name, version, out), "out": str(out)}))
    return 0


if __name__ == "__main__":
    run_cli(main)
