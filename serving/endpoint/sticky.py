"""Which arm a session belongs to: the same one for as long as the route lasts, and in the asked share."""

import hashlib
from collections.abc import Mapping
from typing import Any

from serving.routes import ArmName, Route

SESSION_HEADER = "x-session-id"


def choose_arm(route: Route, session: str) -> ArmName:
    """Returns a session's arm.

    The canary's digest salts the hash, so that it is not always the same people who try a canary; the weight does not,
    so that raising it moves sessions to the canary and never one back.
    """
    if route.canary is None:
        return "stable"
    return "canary" if place(route.canary.digest, session) < route.weight else "stable"


def place(salt: str, session: str) -> float:
    """Returns where a session lies in [0, 100), uniformly over sessions."""
    digest = hashlib.sha256(f"{salt}\0{session}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * 100


def session_of(headers: Mapping[str, str], body: Mapping[str, Any], client: str) -> str:
    """Returns whose request this is: the session header, else the `user` field, else the client's address."""
    user = body.get("user")
    return headers.get(SESSION_HEADER) or (user if isinstance(user, str) else "") or client
