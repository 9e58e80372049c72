"""Where MLflow's runs and artifacts go. The embedded default is one SQLite file, with or without a server in front of it.

A build does not need the MLflow server, which only people who look need: a client that opens the database directly and
one that asks the server see the same runs. So artifacts must lie where both find them, in a plain folder.
"""

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from flows.service_state import read_services, state_of

if TYPE_CHECKING:
    from flows.settings import Settings


def tracking_uri(settings: "Settings") -> str:
    """Returns where MLflow clients write: the user's server, Goldpath's own if it runs, else its database."""
    if settings.mlflow_tracking_uri:
        return settings.mlflow_tracking_uri
    service = read_services(settings).get("mlflow")
    if service is not None and state_of(service) == "live":
        return service.url
    return _database(settings)


def prepare_experiment(settings: "Settings", name: str) -> None:
    """Creates a model's experiment in Goldpath's own database, its artifacts in a folder beside it; elsewhere does nothing.

    Without it, the first client would decide: one that came through the server would put artifacts where a client without
    a server cannot reach them.
    """
    service = read_services(settings).get("mlflow")
    ours = not settings.mlflow_tracking_uri or (service is not None and settings.mlflow_tracking_uri == service.url)
    if not ours or _exists(settings, name):
        return
    settings.mlflow_db.parent.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient

    location = (settings.mlflow_db.parent / "artifacts" / name).as_uri()
    MlflowClient(tracking_uri=_database(settings)).create_experiment(name, artifact_location=location)


def _database(settings: "Settings") -> str:
    return f"sqlite:///{settings.mlflow_db}"


def _exists(settings: "Settings", name: str) -> bool:
    """Looks with sqlite3: MLflow takes 1.5 s to import, and most builds find the experiment there."""
    if not settings.mlflow_db.is_file():
        return False
    with closing(sqlite3.connect(settings.mlflow_db, timeout=30)) as database:
        try:
            found = database.execute("SELECT 1 FROM experiments WHERE name = ?", (name,)).fetchone()
        except sqlite3.OperationalError:
            return False  # a server that was killed at its first start left an empty database
    return found is not None
