"""Puts `prefect.yaml` on a Prefect server: work pool, deployments, and the rule that ends runs whose process is gone."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import Any

from flows.service_commands import NODES_POOL, WORK_POOL
from flows.settings import Settings
from lineage.errors import GoldpathError
from lineage.stamp import CODE_FOLDER

HEARTBEATS_MISSED_SECONDS = 90  # three of PREFECT_FLOWS_HEARTBEAT_FREQUENCY
NO_HEARTBEAT = "goldpath: end runs without a heartbeat"


def deploy(settings: Settings, *names: str) -> None:
    """Deploys `prefect.yaml` on the server that `PREFECT_API_URL` names; doing it again changes nothing.

    Args:
        names: deployments to put up; none means all.

    Raises:
        GoldpathError: with the last line of `prefect deploy`'s output.
    """
    api = os.environ["PREFECT_API_URL"]
    for pool in (WORK_POOL, NODES_POOL):
        _ensure_pool(api, pool)
    _ensure_heartbeat_rule(api)
    log = settings.logs / "deploy.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    chosen = [part for name in names for part in ("--name", name)] or ["--all"]
    with log.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *chosen],
            cwd=CODE_FOLDER,  # becomes the folder that workers run the flows in
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise GoldpathError(f"prefect.yaml cannot be deployed: {''.join(last)}. Fix: read {log}")


def _ensure_pool(api: str, name: str) -> None:
    """A deployment names a pool that must exist; the worker fills in the process pool's job template when it starts."""
    try:
        _call(api, "POST", "/work_pools/", {"name": name, "type": "process"})
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.CONFLICT:
            raise GoldpathError(f"{api}: the work pool cannot be made ({error}). Fix: look at the server's log") from None


def _ensure_heartbeat_rule(api: str) -> None:
    """A run whose flow and worker were both killed would stay `Running` for ever."""
    known = _call(api, "POST", "/automations/filter", {})
    if any(rule["name"] == NO_HEARTBEAT for rule in known):
        return
    signs_of_life = ["Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended"]
    _call(
        api,
        "POST",
        "/automations/",
        {
            "name": NO_HEARTBEAT,
            "trigger": {
                "type": "event",
                "posture": "Proactive",
                "match": {"prefect.resource.id": "prefect.flow-run.*"},
                "for_each": ["prefect.resource.id"],
                "after": ["prefect.flow-run.heartbeat"],
                "expect": ["prefect.flow-run.heartbeat", *[f"prefect.flow-run.{state}" for state in signs_of_life]],
                "threshold": 1,
                "within": HEARTBEATS_MISSED_SECONDS,
            },
            "actions": [
                {"type": "change-flow-run-state", "state": "CRASHED", "message": "Its process stopped sending heartbeats."}
            ],
        },
    )


def _call(api: str, method: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        api + path, data=json.dumps(body).encode(), method=method, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
