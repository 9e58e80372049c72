"""The release state machine: what happened to each version, folded from the ledger's entries. Pure; no database here.

    registered → gated → approved → canary → champion → superseded
                   ↓         ↓         ↓         ↓
                rejected  rejected  rolled_back  rolled_back (the previous champion is back)

A rolled back version may be approved afresh, a superseded one once it is gated afresh; a rejected or withdrawn one never
comes back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from lineage.errors import GoldpathError


class Event(StrEnum):
    """What an entry says happened."""

    REGISTERED = "registered"
    GATED = "gated"
    APPROVED = "approved"
    REJECTED = "rejected"
    CANARY_STARTED = "canary_started"
    CANARY_STEP = "canary_step"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    WITHDRAWN = "withdrawn"


class State(StrEnum):
    """Where a version stands."""

    REGISTERED = "registered"
    GATED = "gated"
    APPROVED = "approved"
    REJECTED = "rejected"
    CANARY = "canary"
    CHAMPION = "champion"
    SUPERSEDED = "superseded"
    ROLLED_BACK = "rolled_back"
    WITHDRAWN = "withdrawn"


S, E = State, Event

# event → (the states it may follow, the state it leads to)
TRANSITIONS: Mapping[Event, tuple[frozenset[State], State]] = {
    E.GATED: (frozenset({S.REGISTERED, S.GATED, S.APPROVED, S.ROLLED_BACK, S.SUPERSEDED}), S.GATED),
    E.APPROVED: (frozenset({S.GATED, S.ROLLED_BACK, S.SUPERSEDED}), S.APPROVED),
    E.REJECTED: (frozenset({S.REGISTERED, S.GATED, S.APPROVED}), S.REJECTED),
    E.CANARY_STARTED: (frozenset({S.APPROVED}), S.CANARY),
    E.CANARY_STEP: (frozenset({S.CANARY}), S.CANARY),
    E.PROMOTED: (frozenset({S.CANARY}), S.CHAMPION),
    E.ROLLED_BACK: (frozenset({S.CANARY, S.CHAMPION}), S.ROLLED_BACK),
    E.WITHDRAWN: (frozenset(S) - {S.CANARY, S.CHAMPION, S.WITHDRAWN}, S.WITHDRAWN),
}

# What a person does next with a version in a state.
NEXT_STEP: Mapping[State, str] = {
    S.REGISTERED: "record its gate verdict first",
    S.GATED: "approve or reject it",
    S.APPROVED: "start its canary",
    S.REJECTED: "build a new version; a rejected one never comes back",
    S.CANARY: "wait for its canary to end, or roll it back",
    S.CHAMPION: "it is the champion already; roll back to leave it",
    S.SUPERSEDED: "gate it afresh (`goldpath run RECIPE --only gate`), or roll the champion back to it",
    S.ROLLED_BACK: "approve it afresh with a new reason, or build a new version",
    S.WITHDRAWN: "build a new version; a withdrawn one never comes back",
}


class IllegalTransition(GoldpathError):
    """An event that may not follow the state that a version is in."""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        seq: position in the ledger, from 1, over all models; the fencing token of every effect that it causes.
        digest: the bundle's, as `sha256:` and 64 hex digits.
        actor: who caused it.
        at: UTC time, ISO 8601.
        previous_hash, hash: the chain, 64 hex digits each (`serving.release.ledger.hash_entry`).
    """

    seq: int
    name: str
    version: str
    digest: str
    event: Event
    actor: str
    at: str
    payload: Mapping[str, Any]
    previous_hash: str
    hash: str


@dataclass(frozen=True)
class Release:
    """One version of a model: its digest, its state, and the entries that got it there."""

    name: str
    version: str
    digest: str
    state: State
    entries: tuple[Entry, ...]

    def last(self, event: Event) -> Entry | None:
        """Returns the newest entry of one event."""
        return next((entry for entry in reversed(self.entries) if entry.event == event), None)

    @property
    def requester(self) -> str:
        """Who registered the version."""
        return self.entries[0].actor

    @property
    def weight(self) -> float:
        """Percent of the traffic that its canary should get now; 0 outside a canary and before its first step."""
        newest = self.entries[-1]
        return float(newest.payload["weight"]) if self.state is S.CANARY and newest.event is E.CANARY_STEP else 0.0


@dataclass(frozen=True)
class History:
    """All that the ledger says about one model.

    Attributes:
        head: seq of the model's newest entry, 0 before its first; what `Ledger.append` compares.
        releases: by version, in order of registration.
        reigns: versions that became champion and were not rolled back, rejected or withdrawn since, oldest first.
    """

    name: str
    head: int = 0
    releases: Mapping[str, Release] = field(default_factory=dict)
    reigns: tuple[str, ...] = ()

    @property
    def champion(self) -> Release | None:
        """The release that serves all stable traffic."""
        return self.releases[self.reigns[-1]] if self.reigns else None

    @property
    def previous(self) -> Release | None:
        """The release that a rollback would bring back."""
        return self.releases[self.reigns[-2]] if len(self.reigns) > 1 else None

    @property
    def canary(self) -> Release | None:
        """The release that is meeting real traffic now."""
        return next((release for release in self.releases.values() if release.state is S.CANARY), None)

    @property
    def candidates(self) -> list[Release]:
        """Releases on their way to champion, newest last."""
        underway = {S.REGISTERED, S.GATED, S.APPROVED, S.CANARY}
        return [release for release in self.releases.values() if release.state in underway]

    def release(self, version: str) -> Release:
        """Returns one version's release.

        Raises:
            GoldpathError: it was never registered.
        """
        if version not in self.releases:
            known = ", ".join(self.releases) or "none"
            raise GoldpathError(f"{self.name}@{version} is not registered (known: {known}). Fix: register it first")
        return self.releases[version]


def follow(history: History, entry: Entry) -> History:
    """Returns the history after one more entry.

    Raises:
        IllegalTransition: saying what to do instead.
    """
    release = _next_release(history, entry)
    reigns = history.reigns
    releases = {**history.releases, entry.version: release}
    if entry.event is E.PROMOTED:
        if history.champion and history.champion.version != entry.version:
            releases[history.champion.version] = replace(releases[history.champion.version], state=S.SUPERSEDED)
        reigns = (*(version for version in reigns if version != entry.version), entry.version)
    elif entry.event is E.ROLLED_BACK and history.champion and history.champion.version == entry.version:
        reigns = reigns[:-1]
        releases[reigns[-1]] = replace(releases[reigns[-1]], state=S.CHAMPION)
    elif entry.event in (E.WITHDRAWN, E.REJECTED):
        reigns = tuple(version for version in reigns if version != entry.version)
    return History(history.name, entry.seq, releases, reigns)


def _next_release(history: History, entry: Entry) -> Release:
    address = f"{entry.name}@{entry.version}"
    if entry.event is E.REGISTERED:
        if entry.version in history.releases:
            raise IllegalTransition(f"{address} is registered already. Fix: choose a new version; a version never changes")
        return Release(entry.name, entry.version, entry.digest, S.REGISTERED, (entry,))
    before = history.release(entry.version)
    allowed, after = TRANSITIONS[entry.event]
    if before.state not in allowed:
        raise IllegalTransition(
            f"{address} is {before.state}, so it cannot be {entry.event}. Fix: {NEXT_STEP[before.state]}"
        )
    if entry.digest != before.digest:
        raise IllegalTransition(
            f"{address} was registered as {before.digest}, not {entry.digest}. Fix: register the new bytes as a new version"
        )
    if entry.event is E.CANARY_STARTED and (other := history.canary):
        raise IllegalTransition(
            f"{entry.name}@{other.version} is in its canary. Fix: wait for its end, or roll it back first"
        )
    if entry.event is E.ROLLED_BACK and before.state is S.CHAMPION and not history.previous:
        raise IllegalTransition(f"{address} is the only champion {entry.name} ever had. Fix: release another version")
    return replace(before, state=after, entries=(*before.entries, entry))
