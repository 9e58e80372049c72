"""Makes routes and aliases say what the ledger says. It may run at any time, as often as one likes."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lineage.errors import GoldpathError, Tampered
from serving.config import Places
from serving.release.aliases import mirror_to_mlflow
from serving.release.ledger import Ledger
from serving.release.states import Event, History, Release
from serving.release.store import stored_bundle
from serving.routes import Arm, Route, StaleToken, read_routes, set_route

ATTEMPTS = 5


class Driven(GoldpathError):
    """A live process drives the model's canary."""


def reconcile(ledger: Ledger, places: Places, name: str, actor: str = "reconcile") -> list[str]:
    """Repairs routes and aliases of one model, and returns what was repaired, in words; nothing to repair is [].

    A canary whose process is gone is rolled back: nobody judges the traffic that it gets. (To continue it instead, start
    it again; `serving.release.promote.run_canary` picks it up.)

    Raises:
        Tampered: the ledger's chain is broken, or the ledger is older than the routes that were made from it.
        GoldpathError: MLflow does not answer; the routes are repaired by then.
    """
    ledger.verify()
    repairs = _end_abandoned_canary(ledger, places, name, actor)
    repairs += project_routes(ledger, places, name)
    return repairs + mirror_to_mlflow(places, ledger.history(name))


def project_routes(ledger: Ledger, places: Places, name: str) -> list[str]:
    """Writes the route that the ledger wants, with the model's newest entry as fencing token; returns what changed.

    The token is written even where the route stays as it is: it shuts out a process that is about to write an older one.

    Raises:
        Tampered: the ledger ends before the entry that the present route was made from.
        StaleToken: other processes kept writing later routes.
    """
    for attempt in range(ATTEMPTS):
        # The route first: whoever wrote it appended its entry before, so an intact ledger is never behind it.
        present = read_routes(places.routes).routes.get(name)
        history = ledger.history(name)
        if present and present.token > history.head:
            problem = f"is missing although {name}'s route was made from it"
            raise Tampered("ledger", f"entry {present.token}", problem, "restore the ledger; its end was cut off")
        desired = desired_route(places, history)
        if desired is None and present is None:
            return []
        desired = desired or Route(model=name, token=history.head)
        try:
            set_route(places.routes, desired)
        except StaleToken:
            if attempt == ATTEMPTS - 1:
                raise
            continue
        if present and present.model_copy(update={"token": desired.token}) == desired:
            return []
        return [f"routes: {describe(desired)}" + (f" (was: {describe(present)})" if present else "")]
    raise AssertionError("unreachable")


def desired_route(places: Places, history: History) -> Route | None:
    """Returns the route that follows from a model's history; None while nothing may serve."""
    champion, canary = history.champion, history.canary
    if champion is None and canary is None:
        return None
    return Route(
        model=history.name,
        token=history.head,
        stable=make_arm(places.bundles, champion),
        canary=make_arm(places.bundles, canary),
        weight=canary.weight if canary else 0.0,
    )


def make_arm(bundles: Path, release: Release | None) -> Arm | None:
    """Returns the arm that serves a release from the content store."""
    if release is None:
        return None
    return Arm(digest=release.digest, version=release.version, bundle=stored_bundle(bundles, release.digest))


def describe(route: Route) -> str:
    """Returns a route in a few words, such as `m: stable 1.0.0, canary 1.1.0 at 25 %`."""
    stable = f"stable {route.stable.version}" if route.stable else "no stable arm"
    return f"{route.model}: {stable}" + (f", canary {route.canary.version} at {route.weight:g} %" if route.canary else "")


@contextmanager
def driving(places: Places, name: str) -> Iterator[None]:
    """Holds the right to drive a model's canary on this host; the kernel gives it back when the process ends, however.

    Raises:
        Driven: another process holds it.
    """
    places.routes.parent.mkdir(parents=True, exist_ok=True)
    with (places.routes.parent / f".canary-{name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Driven(f"{name}: another process drives its canary. Fix: wait for its end, or roll it back") from None
        yield


def _end_abandoned_canary(ledger: Ledger, places: Places, name: str, actor: str) -> list[str]:
    if ledger.history(name).canary is None:
        return []
    try:
        with driving(places, name):
            history = ledger.history(name)
            if (abandoned := history.canary) is None:
                return []
            payload = {"reason": "its process ended before the canary did", "champion": _version(history.champion)}
            ledger.append(Event.ROLLED_BACK, abandoned, actor, payload, history.head)
    except Driven:
        return []
    return [f"ledger: rolled back {name}@{abandoned.version}, whose canary nobody drove any more"]


def _version(release: Release | None) -> str | None:
    return release.version if release else None
