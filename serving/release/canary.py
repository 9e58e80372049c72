"""The driver of one canary. Every effect is a projection of the ledger's newest entry.

Whatever gives the candidate traffic is an entry first, then the route made from it. What takes its traffic away is the
route first, under the token of the entry before: a full disk must not keep a bad candidate in service. Either way a
process that is killed anywhere leaves a ledger that says where it was, and the next call (or `reconcile`) goes on from
there or goes back.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from lineage.errors import GoldpathError
from serving.config import CanaryPolicy, Places
from serving.metrics import Observation
from serving.release.approval import address, require_approval
from serving.release.gateway_client import GatewayClient, GatewaySilent
from serving.release.judge import closing_requests, judge
from serving.release.ledger import Ledger, StaleHead
from serving.release.probes import ProbeRun
from serving.release.reconcile import desired_route, project_routes
from serving.release.states import Event, History, Release, State
from serving.release.traffic import StepTraffic
from serving.release.verdict import Judgement, Look
from serving.routes import ArmName, set_route

POLL_SECONDS = 0.2
GROWTH = 1.5  # an unclear verdict is looked at again once there is half as much traffic more
SETTLE_SECONDS = 10.0  # how long to wait until the gateway says that it serves the new champion

Report = Callable[[dict[str, Any]], None]


class TakenOver(GoldpathError):
    """The ledger went on without this process: the canary was rolled back by a person, or another process drives it."""


class _Stop(Exception):
    """The canary must go back, and why."""


@dataclass
class Canary:
    """Who drives, what it saw, and the ledger entry (`token`) that gives it the right to go on."""

    ledger: Ledger
    places: Places
    release: Release
    policy: CanaryPolicy
    actor: str
    report: Report
    gateway: GatewayClient
    looks: int = 0
    closing_looks: int = 0
    token: int = 0
    judgement: Judgement | None = None
    candidate_seen: list[Observation] = field(default_factory=list)
    champion_seen: list[Observation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.champion = self.ledger.history(self.release.name).champion
        self._begun = time.monotonic()

    @property
    def digests(self) -> dict[ArmName, str]:
        """What each arm of this canary serves."""
        stable: dict[ArmName, str] = {"stable": self.champion.digest} if self.champion else {}
        return {"canary": self.release.digest, **stable}

    def run(self, probes: ProbeRun) -> None:
        """Drives the canary to its end. Whatever goes wrong on the way, the traffic goes back to the champion."""
        self._start()
        try:
            self._await_ready()
            for weight in self._weights():
                self._step(weight, probes)
            self._promote()
        except _Stop as stop:
            self._roll_back(str(stop))
        except TakenOver:
            raise
        except BaseException as error:  # Ctrl-C, a full disk, a defect: nobody would judge the canary's traffic
            if self._require_mine().canary:  # what was promoted a moment before stays promoted
                self._roll_back(f"the canary's process failed: {type(error).__name__}: {error}")
            raise

    def _start(self) -> None:
        """Writes the first entry, or takes over where a process that died left it."""
        history = self.ledger.history(self.release.name)
        self.release = history.release(self.release.version)
        if self.release.state is State.CANARY:
            newest = self.release.entries[-1]
            self.token = newest.seq
            self.looks, self.closing_looks = (int(newest.payload.get(key, 0)) for key in ("looks", "closing_looks"))
            self._enter(self.release.weight)
            self._tell("resumed", weight=self.release.weight, token=self.token)
            return
        approval = require_approval(history, self.release.version)
        champion = {"version": self.champion.version, "digest": self.champion.digest} if self.champion else None
        payload = {"approval": approval.seq, "champion": champion, "policy": self.policy.model_dump(mode="json")}
        entry = self.ledger.append(Event.CANARY_STARTED, self.release, self.actor, payload, history.head)
        self.token = entry.seq
        self._project()
        self._tell("started", digest=self.release.digest, champion=champion, token=self.token)

    def _weights(self) -> list[float]:
        steps = self.policy.steps if self.champion else self.policy.steps[-1:]
        return [weight for weight in steps if weight >= self.release.weight]

    @property
    def _closing_weight(self) -> float:
        """The last weight at which there is still a champion to compare with; for a first release its only one."""
        return self.policy.steps[-2] if self.champion else self.policy.steps[-1]

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self.policy.ready_seconds
        why = "it is still loading"
        while time.monotonic() < deadline:
            self._require_mine()
            try:
                arms = self.gateway.arms(self.token)
                canary = arms.get("canary")
                if canary and canary.error and not canary.ready:
                    raise _Stop(f"the candidate's endpoint does not start: {canary.error}")
                wanted = {self.release.digest} | ({self.champion.digest} if self.champion else set())
                if wanted <= {arm.digest for arm in arms.values() if arm.ready}:
                    self.gateway.new_observations()  # what came before is none of this canary's
                    self._tell("ready")
                    return
            except GatewaySilent as silent:
                why = str(silent)
            time.sleep(POLL_SECONDS)
        raise _Stop(f"the arms were not ready after {self.policy.ready_seconds:g} s: {why}")

    def _step(self, weight: float, probes: ProbeRun) -> None:
        """Holds one weight until the judge lets it pass.

        Raises:
            _Stop: it failed, or is unclear when its time is over.
        """
        self._enter(weight)
        self._tell("step", weight=weight, token=self.token)
        probes.ask_more()
        traffic = StepTraffic(weight, self.policy, self.champion is not None)
        closing, started = weight == self._closing_weight, time.monotonic()
        total = closing_requests(self.policy, self.champion is None) if closing else 0
        while True:
            seconds = time.monotonic() - started
            self._require_mine()
            self._gather(traffic)
            overdue = seconds >= self.policy.maximum_seconds
            enough = traffic.enough(seconds) and len(self.candidate_seen) >= total
            if overdue or (enough and (probes.finished or seconds >= self.policy.probe_seconds)):
                if self._look(weight, closing, probes) == "pass" and traffic.enough(seconds):
                    return
                if overdue:
                    raise _Stop(f"not clear after {seconds:.0f} s at {weight:g} %: {self._unclear(traffic)}")
                self._enter(weight)  # a look is spent for good: a process that continues this canary must not repeat it
                total = int(GROWTH * len(self.candidate_seen)) + 1
            time.sleep(POLL_SECONDS)

    def _gather(self, traffic: StepTraffic) -> None:
        try:
            seen = [observation for observation in self.gateway.new_observations() if not observation.probe]
        except GatewaySilent as silent:
            traffic.silence = str(silent)
            return
        champion = self.champion.digest if self.champion else ""
        candidate = [one for one in seen if one.arm == "canary" and one.digest == self.release.digest]
        stable = [one for one in seen if one.arm == "stable" and one.digest == champion]
        traffic.add(len(candidate), len(stable))
        self.candidate_seen += candidate
        self.champion_seen += stable

    def _look(self, weight: float, closing: bool, probes: ProbeRun) -> str:
        self.looks += 1
        self.closing_looks += closing
        look = Look(self.looks, self.closing_looks if closing else 0)
        champion = self.champion_seen if self.champion else None
        found = judge(self.candidate_seen, champion, probes.results(), self.policy, look)
        self.judgement = found
        self._tell(
            "look",
            weight=weight,
            look=self.looks,
            decision=found.decision,
            reasons=found.reasons,
            canary_bad=found.candidate.bad_percent,
            stable_bad=found.champion.bad_percent,
            findings=[finding.model_dump(mode="json") for finding in found.findings],
            candidate=found.candidate.model_dump(mode="json"),
            champion=found.champion.model_dump(mode="json"),
        )
        if found.decision == "fail":
            raise _Stop(f"at {weight:g} %: {'; '.join(found.reasons)}")
        return found.decision

    def _unclear(self, traffic: StepTraffic) -> str:
        reasons = self.judgement.reasons if self.judgement and self.judgement.decision != "pass" else []
        return "; ".join([*traffic.doubts(), *reasons])

    def _promote(self) -> None:
        steps, looks = len(self._weights()), self.looks
        reason = f"passed {steps} step{'s' * (steps != 1)} and {looks} look{'s' * (looks != 1)}"
        self._advance(Event.PROMOTED, self._payload(reason))
        self._await_settled()
        self._tell("promoted", reason=reason, token=self.token)

    def _roll_back(self, reason: str) -> None:
        """Takes the traffic away first, with the token in hand; then says so in the ledger."""
        route = desired_route(self.places, self._require_mine())
        if route:
            set_route(self.places.routes, route.model_copy(update={"canary": None, "weight": 0.0}))
        self._advance(Event.ROLLED_BACK, self._payload(reason))
        self._tell("rolled_back", reason=reason, token=self.token)

    def _payload(self, reason: str) -> dict[str, Any]:
        judgement = self.judgement.model_dump(mode="json") if self.judgement else None
        return {"reason": reason, "judgement": judgement, "looks": self.looks}

    def _enter(self, weight: float) -> None:
        payload = {"weight": weight, "looks": self.looks, "closing_looks": self.closing_looks}
        self._advance(Event.CANARY_STEP, payload)

    def _advance(self, happened: Event, payload: dict[str, Any]) -> None:
        """Appends this release's next entry and projects it, as long as this process's last one is still the newest."""
        while True:
            history = self._require_mine()
            try:
                entry = self.ledger.append(happened, self.release, self.actor, payload, history.head)
            except StaleHead:  # an entry of another version of the model; whether of this one, `_require_mine` tells
                continue
            self.token = entry.seq
            self._project()
            return

    def _project(self) -> None:
        project_routes(self.ledger, self.places, self.release.name)

    def _require_mine(self) -> History:
        history = self.ledger.history(self.release.name)
        newest = history.release(self.release.version).entries[-1]
        if newest.seq != self.token:
            raise TakenOver(
                f"{address(self.release)}: entry {newest.seq} ({newest.event} by {newest.actor}) ended this canary's turn. "
                "Fix: look at the release; start it again if that is what you want"
            )
        return history

    def _await_settled(self) -> None:
        """Waits until the gateway says that the new champion is its stable arm; the promotion stands either way."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            with suppress(GatewaySilent):
                stable = self.gateway.arms(self.token).get("stable")
                if stable and stable.ready and stable.digest == self.release.digest:
                    return
            time.sleep(POLL_SECONDS)
        self._tell("warning", reason="the gateway does not yet say that it serves the new champion")

    def _tell(self, event: str, **fields: Any) -> None:
        self.report({"event": event, "seconds": round(time.monotonic() - self._begun, 2), **fields})
