"""The routes in force: follows the desired routes of the file, and never lets an arm go before the next one is ready."""

import asyncio
import sys
from pathlib import Path
from typing import Any

from lineage.errors import GoldpathError
from serving.endpoint.supervisor import Endpoint, Served, Supervisor
from serving.routes import Arm, Route, RouteTable, read_routes

SECONDS_BETWEEN_LOOKS = 0.1


class Board:
    """Desired routes, routes in force, and the endpoints of both."""

    def __init__(self, path: Path, supervisor: Supervisor) -> None:
        self._path, self._supervisor = path, supervisor
        self._desired = read_routes(path)
        self._seen = _stamp(path)
        self._in_force: dict[str, Route] = {}

    @property
    def models(self) -> list[str]:
        """Returns the names of the models that are routed."""
        return sorted(self._in_force)

    def route(self, model: str) -> Route | None:
        """Returns the route in force."""
        return self._in_force.get(model)

    def endpoint(self, model: str, arm: Arm) -> Endpoint | None:
        """Returns an arm's endpoint."""
        return self._supervisor.get(model, arm)

    async def follow(self) -> None:
        """Watches the routes file for as long as the gateway lives."""
        while True:
            self.look()
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

    def look(self) -> None:
        """Reads the file if it has changed, and brings the routes in force as near to it as readiness allows."""
        stamp = _stamp(self._path)
        if stamp is not None and stamp != self._seen:
            self._seen = stamp
            try:
                self._desired = read_routes(self._path)
            except (GoldpathError, OSError) as error:  # the last good routes stay in force
                print(f"error: {error}", file=sys.stderr)
        self._start(self._desired)
        self._in_force = {name: self._nearest(route) for name, route in self._desired.routes.items()}
        self._start(self._desired)

    def status(self) -> dict[str, Any]:
        """Returns the body of `GET /goldpath/status`: what is in force, and a stable arm that is still awaited."""
        return {"models": {name: self._describe(route) for name, route in sorted(self._in_force.items())}}

    def _nearest(self, desired: Route) -> Route:
        """Returns the desired route, with the present stable arm for as long as the desired one is not ready."""
        present = self._in_force.get(desired.model)
        if present is None or present.stable is None or desired.stable is None:
            return desired
        awaited = self._supervisor.get(desired.model, desired.stable)
        if awaited is not None and awaited.ready.is_set():
            return desired
        return desired.model_copy(update={"stable": present.stable})

    def _start(self, desired: RouteTable) -> None:
        routes = [*desired.routes.values(), *(route for name, route in self._in_force.items() if name in desired.routes)]
        self._supervisor.want({Served.of(route.model, arm) for route in routes for arm in route.arms().values()})

    def _describe(self, route: Route) -> dict[str, Any]:
        desired = self._desired.routes[route.model].stable
        awaited = desired if desired != route.stable else None
        return {
            "token": route.token,
            "stable": self._describe_arm(route.model, route.stable),
            "canary": self._describe_arm(route.model, route.canary),
            "awaited": self._describe_arm(route.model, awaited),
            "weight": route.weight,
        }

    def _describe_arm(self, model: str, arm: Arm | None) -> dict[str, Any] | None:
        if arm is None:
            return None
        endpoint = self._supervisor.get(model, arm)
        return {
            "digest": arm.digest,
            "version": arm.version,
            "ready": endpoint is not None and endpoint.ready.is_set(),
            "in_flight": endpoint.in_flight if endpoint else 0,
            "restarts": endpoint.restarts if endpoint else 0,
            "pid": endpoint.pid if endpoint else None,
            "error": endpoint.error if endpoint else "",
        }


def _stamp(path: Path) -> tuple[int, int] | None:
    """Returns what changes when the file is replaced; None where there is none."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns
