"""MLflow's view of the ledger: a model version per registered bundle, lineage as tags, and the aliases that people use.

MLflow's aliases are last-writer-wins, so they decide nothing here. They are written from the ledger, again and again.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from sqlalchemy.engine import make_url

from lineage.errors import GoldpathError
from serving.config import Places
from serving.release.approval import address, gate_verdict
from serving.release.states import History, Release
from serving.release.store import verify_stored

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "goldpath."
ARTIFACT = "bundle"


def desired_aliases(history: History) -> dict[str, str]:
    """Returns the version behind each alias: candidate, champion, previous; an alias without one is left out."""
    candidates = history.candidates
    named = {
        "candidate": candidates[-1] if candidates else None,
        "champion": history.champion,
        "previous": history.previous,
    }
    return {alias: release.version for alias, release in named.items() if release}


def mirror_to_mlflow(places: Places, history: History) -> list[str]:
    """Makes MLflow say what the ledger says about one model, and returns what had to be changed, in words.

    Raises:
        GoldpathError: MLflow does not answer, or refuses.
        Tampered: a bundle that MLflow lacks is not intact in the store.
    """
    if not history.releases:
        return []
    client = _connect(places.mlflow)
    from mlflow.exceptions import MlflowException  # here, because MLflow takes 1.5 s to import

    try:
        with _one_at_a_time(places.bundles):
            versions, changes = _mirror_versions(client, places, history)
            return changes + _mirror_aliases(client, history, versions)
    except MlflowException as error:
        raise GoldpathError(f"{places.mlflow}: MLflow refused ({error}). Fix: mend it, then reconcile") from None


def _mirror_versions(client: "MlflowClient", places: Places, history: History) -> tuple[dict[str, str], list[str]]:
    """Returns MLflow's version number by our version, after adding missing versions and mending tags."""
    _ensure_model(client, history.name)
    found = {model.tags.get(f"{PREFIX}version"): model for model in client.search_model_versions(f"name='{history.name}'")}
    numbers, changes = {}, []
    for release in history.releases.values():
        tags = _tags(release)
        model = found.get(release.version)
        if model is None:
            model = _add_version(client, places, release, tags)
            changes.append(f"MLflow: added {address(release)} as version {model.version}")
        for key, value in tags.items():
            if model.tags.get(key) != value:
                client.set_model_version_tag(release.name, str(model.version), key, value)
                changes.append(f"MLflow: {address(release)}: {key} = {value}")
        numbers[release.version] = str(model.version)
    return numbers, changes


def _mirror_aliases(client: "MlflowClient", history: History, numbers: dict[str, str]) -> list[str]:
    aliases = {alias: str(number) for alias, number in client.get_registered_model(history.name).aliases.items()}
    desired, changes = desired_aliases(history), []
    for alias in ("candidate", "champion", "previous"):
        version = desired.get(alias)
        if version is None and alias in aliases:
            client.delete_registered_model_alias(history.name, alias)
            changes.append(f"MLflow: removed alias {alias}")
        elif version is not None and aliases.get(alias) != numbers[version]:
            client.set_registered_model_alias(history.name, alias, numbers[version])
            changes.append(f"MLflow: alias {alias} = {version}")
    return changes


def _tags(release: Release) -> dict[str, str]:
    lineage = release.entries[0].payload
    verdict, sha256 = gate_verdict(release)
    tags = {
        "version": release.version,
        "digest": release.digest,
        "data_version": lineage["data_version"],
        "commit": lineage["commit"],
        "waiver": lineage["waiver"],
        "gate": verdict,
        "gate_sha256": sha256,
        "state": str(release.state),
    }
    return {f"{PREFIX}{key}": str(value) for key, value in tags.items() if value}


def _ensure_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _add_version(client: "MlflowClient", places: Places, release: Release, tags: dict[str, str]) -> Any:
    """Logs the bundle into a run of its own and makes a model version of it. A run that a kill cut short is left behind."""
    bundle = verify_stored(places.bundles, release.digest)
    run = client.create_run(
        _experiment(client, places.mlflow, release.name), tags=tags, run_name=f"{release.version}/release"
    )
    client.log_artifacts(run.info.run_id, str(bundle), ARTIFACT)
    client.set_terminated(run.info.run_id)
    source = f"{run.info.artifact_uri}/{ARTIFACT}"
    return client.create_model_version(release.name, source=source, run_id=run.info.run_id, tags=tags)


def _experiment(client: "MlflowClient", uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # A server has its own artifact store. A bare database would put artifacts into the current folder.
    location = None if _is_server(uri) else f"file://{Path(str(make_url(uri).database)).absolute().parent / 'artifacts'}"
    return str(client.create_experiment(name, artifact_location=location))


def _connect(uri: str) -> "MlflowClient":
    """MLflow's own client retries for minutes before it says that nobody is there; this says so at once."""
    if _is_server(uri):
        try:
            httpx.get(f"{uri.rstrip('/')}/health", timeout=10)
        except httpx.HTTPError as error:
            raise GoldpathError(f"{uri}: no MLflow server answers ({error}). Fix: start it, then reconcile") from None
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Two mirrors at once would each add the version that both of them found missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".mlflow.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
