"""`python -m serving endpoint|gateway|canary`: one bundle behind HTTP, the gateway before them, the canary stage."""

import argparse
import os
from pathlib import Path

from lineage.errors import run_cli
from lineage.privacy import switch_off_telemetry


def main() -> int:
    """Runs one of the room's commands."""
    arguments = _parser().parse_args()
    switch_off_telemetry()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a bundle is complete: nothing is ever fetched while serving
    run = {"endpoint": _endpoint, "gateway": _gateway, "canary": _canary}[arguments.command]
    return run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    endpoint = commands.add_parser("endpoint", help="serve one bundle, OpenAI-compatible")
    endpoint.add_argument("--bundle", type=Path, required=True, help="the bundle's folder")
    endpoint.add_argument("--port", type=int, required=True, help="port on 127.0.0.1; 0 takes a free one")
    endpoint.add_argument("--digest", help="refuse to serve anything but this digest")
    endpoint.add_argument("--model", help="the name that requests carry (default: the folder's name)")
    endpoint.add_argument("--threads", type=_count, default=os.cpu_count() or 1, help="CPU threads (default: all cores)")
    endpoint.add_argument("--slots", type=_count, default=16, help="requests that run at once (default: 16)")
    endpoint.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of weights and cache")

    gateway = commands.add_parser("gateway", help="split traffic over endpoints as the routes file says")
    gateway.add_argument("--routes", type=Path, required=True, help="the routes file; it need not exist yet")
    gateway.add_argument("--port", type=int, required=True, help="port on 127.0.0.1; 0 takes a free one")
    gateway.add_argument("--threads", type=_count, default=1, help="CPU threads of each endpoint (default: 1)")
    gateway.add_argument(
        "--slots", type=_count, default=16, help="requests that run at once in each endpoint (default: 16)"
    )

    canary = commands.add_parser("canary", help="the canary stage: raise the weight step by step, or roll back")
    canary.add_argument("--config", type=Path, required=True, help="the job file")
    canary.add_argument("--out", type=Path, required=True, help="the stage's folder")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _endpoint(arguments: argparse.Namespace) -> int:
    # torch reads these once, when it is imported
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    from serving.endpoint.listen import take_port

    taken = take_port(arguments.port)  # before the seconds that torch takes to import
    from serving.endpoint.endpoint import run_endpoint

    return run_endpoint(
        arguments.bundle,
        taken,
        arguments.digest,
        arguments.model,
        arguments.threads,
        arguments.slots,
        arguments.precision,
    )


def _gateway(arguments: argparse.Namespace) -> int:
    from serving.endpoint.gateway import run_gateway

    return run_gateway(arguments.routes, arguments.port, arguments.threads, arguments.slots)


def _canary(arguments: argparse.Namespace) -> int:
    from serving.release.canary_stage import main as run_canary_stage

    return run_canary_stage(arguments.config, arguments.out)


if __name__ == "__main__":
    run_cli(main)
