"""Between the runs and the ledger: registration of what was built, decisions on it, and the step that releases it."""

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.console import say
from flows.plan import Step, parse_address
from flows.service_state import read_services
from flows.tracking import tracking_uri
from lineage.errors import BadInput, GoldpathError
from lineage.files import write_atomic
from lineage.job import Job
from lineage.record import RECORD, read_record
from lineage.section import parse, read_yaml
from serving.config import CanaryPolicy, CanaryResources, Places
from serving.release.approval import approve, reject
from serving.release.ledger import Ledger
from serving.release.registry import record_gate, register
from serving.release.states import Event, Release

if TYPE_CHECKING:
    from flows.gating import Gate
    from flows.recipe import Recipe
    from flows.settings import Settings

POLICY = "release.yaml"  # in a version's run folder: the canary policy of its recipe


def keep_policy(recipe: "Recipe", settings: "Settings") -> None:
    """Writes the recipe's canary policy beside its stages, where the release finds it when the recipe is long gone.

    Raises:
        BadInput: the version is registered with another policy; nobody approved this one.
    """
    text = yaml.safe_dump(recipe.release.model_dump(mode="json"), sort_keys=False)
    path = settings.runs / recipe.name / recipe.version / POLICY
    if (
        path.is_file()
        and path.read_text(encoding="utf-8") != text
        and _is_registered(settings, recipe.name, recipe.version)
    ):
        where = f"{recipe.name}@{recipe.version}"
        raise BadInput(where, "release", "is not the policy that the version was registered with", "raise `version:`")
    write_atomic(path, text)


def register_candidate(recipe: "Recipe", settings: "Settings", gate: "Gate") -> Release:
    """Registers what a recipe built, with its gate's verdict, and shows it in MLflow. The same again is no second entry.

    Raises:
        BadInput: the code differed from its commit (and `GOLDPATH_ALLOW_DIRTY` gives no reason), or the version is
            registered with other bytes.
    """
    folder = settings.runs / recipe.name / recipe.version
    ledger, here = Ledger(settings.ledger), places(settings)
    try:
        stage = folder / recipe.objectives[-1]
        release = register(ledger, here, recipe.name, recipe.version, stage, requester(), settings.allow_dirty)
        release = record_gate(ledger, recipe.name, recipe.version, gate.folder, requester())
        show_in_mlflow(settings, ledger, recipe.name)
    finally:
        ledger.close()
    return release


def _is_registered(settings: "Settings", name: str, version: str) -> bool:
    ledger = Ledger(settings.ledger)
    try:
        return version in ledger.history(name).releases
    finally:
        ledger.close()


def require_registered(settings: "Settings", name: str, version: str) -> None:
    """Checks, before any server starts, that a version is in the ledger and that the ledger is intact.

    Raises:
        BadInput: the version is not registered.
        Tampered: the ledger was changed.
    """
    ledger = Ledger(settings.ledger)
    try:
        ledger.verify()
        if version not in ledger.history(name).releases:
            raise BadInput(f"{name}@{version}", "", "is not registered", "see `goldpath models` for what is")
    finally:
        ledger.close()


def decide_on(settings: "Settings", address: str, verb: str, user: str, reason: str) -> dict[str, Any]:
    """Approves or rejects a candidate, and returns what the ledger keeps of it."""
    name, version = parse_address(address)
    require_registered(settings, name, version)
    ledger = Ledger(settings.ledger)
    try:
        if verb == "approve":
            entry = approve(ledger, places(settings), name, version, user, reason)
        else:
            entry = reject(ledger, name, version, user, reason)
        show_in_mlflow(settings, ledger, name)
    finally:
        ledger.close()
    say(verb, f"{address} {entry.event} by {entry.actor}: entry {entry.seq} of the ledger, for {entry.digest[:19]}…")
    return {
        "name": name,
        "version": version,
        "event": str(entry.event),
        "by": entry.actor,
        "reason": reason,
        "digest": entry.digest,
        "entry": entry.seq,
    }


def roll_back(settings: "Settings", name: str, user: str, reason: str) -> dict[str, Any]:
    """Makes the previous champion the champion again, and returns which digest serves now."""
    from serving.release.promote import rollback

    ledger = Ledger(settings.ledger)
    try:
        rollback(ledger, places(settings), name, user, reason)
        champion = ledger.champion(name)
    finally:
        ledger.close()
    version, digest = (champion.version, champion.digest) if champion else (None, None)
    say("rollback", f"{name}@{version} is champion" if version else f"{name} has no champion: its first canary was ended")
    return {"name": name, "champion": version, "digest": digest, "by": user, "reason": reason}


def repair(settings: "Settings") -> list[str]:
    """Makes routes and MLflow's aliases say what the ledger says, for every model; returns what was repaired."""
    from serving.release.reconcile import reconcile

    ledger = Ledger(settings.ledger)
    try:
        return [line for name in ledger.names() for line in reconcile(ledger, places(settings), name)]
    finally:
        ledger.close()


def show_in_mlflow(settings: "Settings", ledger: Ledger, name: str) -> None:
    """Makes MLflow say what the ledger says. The ledger is what counts, so an MLflow that is away is told, not an error."""
    from serving.release.aliases import mirror_to_mlflow

    try:
        mirror_to_mlflow(places(settings), ledger.history(name))
    except GoldpathError as error:
        say("mlflow", f"not updated, `goldpath up` will do it: {error}")


def canary_step(settings: "Settings", name: str, version: str) -> Step:
    """Returns the step that takes a version through its canary: a new attempt, or the last one, to go on or to repeat."""
    folder = settings.runs / name / version
    policy = parse(CanaryPolicy, read_yaml(folder / POLICY), folder / POLICY)
    attempts = sorted(folder.glob("canary-*"), key=lambda path: int(path.name.removeprefix("canary-")))
    goes_on = attempts and (not (attempts[-1] / RECORD).is_file() or _decided_in(settings, name, version, attempts[-1]))
    out = attempts[-1] if goes_on else folder / f"canary-{len(attempts) + 1}"
    resources = CanaryResources(**places(settings).model_dump(), requester=requester())
    job = Job(
        name=name,
        version=version,
        stage="canary",
        config=policy.model_dump(mode="json"),
        parents={"data": folder / "data"},
        reads={"data": ["golden/probe.jsonl"]},
        resources=resources.model_dump(mode="json"),
    )
    return Step(job, out)


def _decided_in(settings: "Settings", name: str, version: str, attempt: Path) -> bool:
    """Tells whether this attempt made the version what it is now, and no later approval asks for more."""
    ledger = Ledger(settings.ledger)
    release = ledger.history(name).release(version)
    ledger.close()
    approval = release.last(Event.APPROVED)
    record = read_record(attempt)
    same = approval is not None and record.inputs.get("approval") == approval.hash
    return same and record.metrics.get("verdict") == str(release.state)


def places(settings: "Settings") -> Places:
    """Returns where release state lives, for the serving room, which looks up no settings."""
    gateway = read_services(settings).get("gateway")
    return Places(
        ledger=settings.ledger,
        bundles=settings.bundles,
        routes=settings.routes,
        gateway=gateway.url if gateway else "",
        mlflow=tracking_uri(settings),
    )


def requester() -> str:
    """Returns who is asking: the login name of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container may run under a user id that has no name
