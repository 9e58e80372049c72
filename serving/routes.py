"""Which bundle answers for which model: the desired state that the release wing writes and the gateway follows.

The file is written whole or not at all, one writer at a time. Every route carries the fencing token of the release that
set it: a release that lost its turn (its process slept, a later one began) cannot overwrite the later one's route.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from lineage.errors import BadInput, GoldpathError
from lineage.files import write_json
from lineage.section import Section, parse

ArmName = Literal["stable", "canary"]


class StaleToken(GoldpathError):
    """A route was refused because a later release already set it."""


class Arm(Section):
    """One bundle that takes traffic.

    Attributes:
        digest: the bundle's digest (`sha256:` and 64 hex digits); the endpoint verifies it before it loads.
        version: the label that people know it by.
        bundle: the bundle's folder.
    """

    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    version: str
    bundle: Path


class Route(Section):
    """Where the traffic of one model goes.

    Attributes:
        model: the name that clients put in a request's `model` field.
        token: the fencing token of the release that set this route; it never decreases.
        stable: the arm of all traffic that the canary does not take; None before the first release.
        canary: the arm under trial.
        weight: percent of the sessions that the canary takes. An arm of weight 0 runs and answers probes only.
    """

    model: str = Field(min_length=1)
    token: int = Field(ge=0)
    stable: Arm | None = None
    canary: Arm | None = None
    weight: float = Field(default=0.0, ge=0, le=100)

    @model_validator(mode="after")
    def _every_session_has_an_arm(self) -> "Route":
        if self.canary is None and self.weight:
            raise ValueError("weight needs a canary arm")
        if self.stable is None and 0 < self.weight < 100:
            raise ValueError("without a stable arm the weight is 0 or 100: nothing would answer the other sessions")
        return self

    def arms(self) -> dict[ArmName, Arm]:
        """Returns the arms that exist."""
        named: dict[ArmName, Arm | None] = {"stable": self.stable, "canary": self.canary}
        return {name: arm for name, arm in named.items() if arm is not None}


class RouteTable(Section):
    """All routes by model name."""

    routes: dict[str, Route] = Field(default_factory=dict)


def read_routes(path: Path) -> RouteTable:
    """Reads the routes file; a missing file is an empty table.

    Raises:
        BadInput: the file is not a routes file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return RouteTable()
    try:
        return parse(RouteTable, json.loads(text), path)
    except ValueError:
        raise BadInput(path, "", "is not JSON", "delete it and run `goldpath doctor`, which rebuilds it") from None


def set_route(path: Path, route: Route) -> RouteTable:
    """Sets one model's route and leaves all others, under a lock that lasts for the write only.

    Returns:
        The table as written.

    Raises:
        StaleToken: the file's route carries a higher token. An equal one is the same release taking its next step.
        BadInput: the file is not a routes file.
    """
    with _locked(path):
        table = read_routes(path)
        current = table.routes.get(route.model)
        if current is not None and current.token > route.token:
            raise StaleToken(
                f"{path}: {route.model}: token {route.token} is older than {current.token}, which a later release holds. "
                "Fix: look at `goldpath models`, then start the release again"
            )
        table = RouteTable(routes={**table.routes, route.model: route})
        write_json(path, table.model_dump(mode="json"))
        return table


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # A file of its own: the routes file itself is replaced by each write, and a lock on it would go with it.
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
