"""How each service is started and asked for its health, and the environment that services and their clients share."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lineage.privacy import TELEMETRY_OFF

if TYPE_CHECKING:
    from flows.settings import Settings

WORK_POOL = "goldpath"
NODES_POOL = "goldpath-nodes"  # a worker on each node that trains together with others

# A user's own Prefect profile, key or database must not leak into the embedded server.
FOREIGN = ("PREFECT_PROFILE", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_DATABASE_CONNECTION_URL")


@dataclass(frozen=True)
class Command:
    """One kind of service.

    Attributes:
        arguments: what follows `python`, for settings and a port.
        health: the path below the service's URL that answers 2xx when it is ready.
        needs: the service that must answer before this one starts; "" for none.
        environment: variables for this service alone; `{port}` is filled in.
    """

    arguments: "Callable[[Settings, int], list[str]]"
    health: str
    needs: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


PREFECT = ["-m", "flows.start", "prefect"]  # `python -m prefect` with a quicker start


def _prefect(_settings: "Settings", port: int) -> list[str]:
    return [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]


def _mlflow(settings: "Settings", port: int) -> list[str]:
    settings.mlflow_db.parent.mkdir(parents=True, exist_ok=True)
    store = ["--backend-store-uri", f"sqlite:///{settings.mlflow_db}"]
    # Plain files, not the server's proxy: clients of the server and clients of the database find the same artifacts.
    artifacts = ["--default-artifact-root", (settings.mlflow_db.parent / "artifacts").as_uri()]
    return ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store, *artifacts]


def _gateway(settings: "Settings", port: int) -> list[str]:
    return ["-m", "serving", "gateway", "--routes", str(settings.routes), "--port", str(port)]


def _worker(_settings: "Settings", _port: int) -> list[str]:
    pool = ["--pool", WORK_POOL, "--type", "process", "--name", "goldpath-worker", "--install-policy", "never"]
    return [*PREFECT, "--no-prompt", "worker", "start", *pool, "--with-healthcheck"]


# In the order in which they start; they end in the reverse order.
COMMANDS = {
    "prefect": Command(
        _prefect,
        "/api/health",
        environment={
            "PREFECT_SERVER_UI_API_URL": "/api",  # wherever the page came from, a tunnel included; the default is port 4200
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        },
    ),
    "mlflow": Command(
        _mlflow,
        "/health",
        environment={
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes instead of 10
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        },
    ),
    "gateway": Command(_gateway, "/healthz"),
    "worker": Command(
        _worker,
        "/health",
        needs="prefect",
        environment={"PREFECT_WORKER_WEBSERVER_PORT": "{port}", "PREFECT_WORKER_QUERY_SECONDS": "3"},
    ),
}


def environment_with(settings: "Settings", urls: Mapping[str, str]) -> dict[str, str]:
    """Returns this process's environment, changed so that Prefect, MLflow and Goldpath use the given services.

    Args:
        urls: base URLs by service name; those that are absent are not pointed to.
    """
    environment = os.environ | TELEMETRY_OFF
    environment["GOLDPATH_HOME"] = str(settings.home)
    # Without an API URL Prefect would start a server inside the client, which loses task runs at exit.
    environment["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
    environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "30"
    environment["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1", "localhost"]))
    if "mlflow" in urls:
        environment["MLFLOW_TRACKING_URI"] = urls["mlflow"]
    if "prefect" in urls and not settings.prefect_api_url:
        environment = {name: value for name, value in environment.items() if name not in FOREIGN}
        environment["PREFECT_API_URL"] = f"{urls['prefect']}/api"
    if not settings.prefect_api_url:
        environment["PREFECT_HOME"] = str(settings.prefect_home)
        environment["PREFECT_PROFILES_PATH"] = str(settings.prefect_home / "profiles.toml")
    return environment
