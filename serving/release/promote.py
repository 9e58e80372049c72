"""Takes an approved version to champion, or back; the two commands that change what is served."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from lineage.errors import GoldpathError
from serving.config import CanaryPolicy, Places
from serving.release.aliases import mirror_to_mlflow
from serving.release.approval import require_approval
from serving.release.canary import Canary, Report, TakenOver
from serving.release.gateway_client import GatewayClient
from serving.release.ledger import Ledger
from serving.release.probes import ProbeItem, ProbeRun
from serving.release.reconcile import driving, project_routes
from serving.release.states import Entry, Event, History, Release, State
from serving.release.store import verify_stored
from serving.release.verdict import Judgement

ENDED = frozenset({State.CHAMPION, State.ROLLED_BACK})


@dataclass(frozen=True)
class Outcome:
    """How a release ended.

    Attributes:
        verdict: what the version is now.
        reason: why, in one sentence.
        champion: the version that serves stable traffic now; None where nothing does.
        judgement: the last look's numbers; None where the judge never looked.
        steps: the weights that it had, rising: `weight`, and `at` (UTC) and `seq` of the ledger's entry that set it.
    """

    verdict: Literal["champion", "rolled_back"]
    reason: str
    champion: str | None
    judgement: Judgement | None
    steps: list[dict[str, Any]]


def run_canary(
    ledger: Ledger,
    places: Places,
    name: str,
    version: str,
    policy: CanaryPolicy,
    probes: Sequence[ProbeItem],
    actor: str,
    report: Report,
) -> Outcome:
    """Takes an approved version through its canary; continues one whose process died; repeats the answer of one that ended.

    Args:
        actor: who is recorded in the ledger.
        report: called with each event of the timeline, a JSON object with `event` and `seconds` since the start.

    Raises:
        NotApproved: the version has no valid approval.
        Tampered: ledger or stored bundle are not what they were.
        GatewaySilent: no gateway answers; nothing has happened then.
        Driven, TakenOver: another process is, or was, at work on the same release.
    """
    ledger.verify()
    if ledger.history(name).release(version).state not in ENDED:
        _drive(ledger, places, name, version, policy, probes, actor, report)
    project_routes(ledger, places, name)
    history = ledger.history(name)
    _mirror_or_warn(places, history, report)
    return _outcome(history, history.release(version))


def rollback(ledger: Ledger, places: Places, name: str, actor: str, reason: str) -> Outcome:
    """Ends the canary under way; where none is, brings the previous champion back.

    Raises:
        GoldpathError: there is nothing to go back to, or no reason is given.
        Tampered: the previous champion's stored bundle is not what its digest says.
    """
    if not reason.strip():
        raise GoldpathError(f"{name}: a rollback needs a reason. Fix: say why, for whoever reads the ledger in a year")
    ledger.verify()
    history = ledger.history(name)
    release = history.canary or history.champion
    if release is None:
        raise GoldpathError(f"{name} has no champion and no canary. Fix: release a version first")
    if history.canary is None and history.previous:
        verify_stored(places.bundles, history.previous.digest)
    ledger.append(Event.ROLLED_BACK, release, actor, {"reason": reason.strip()}, history.head)
    project_routes(ledger, places, name)
    history = ledger.history(name)
    mirror_to_mlflow(places, history)
    return _outcome(history, history.release(release.version))


def _drive(
    ledger: Ledger,
    places: Places,
    name: str,
    version: str,
    policy: CanaryPolicy,
    probes: Sequence[ProbeItem],
    actor: str,
    report: Report,
) -> None:
    with driving(places, name), closing(GatewayClient(places.gateway, name)) as gateway:
        history = ledger.history(name)
        release = history.release(version)
        if release.state in ENDED:  # by another process, just before this one took its turn
            return
        if release.state is not State.CANARY:
            require_approval(history, version)
        verify_stored(places.bundles, release.digest)
        gateway.arms(token=0)  # a gateway that is away now is the caller's mistake, not the candidate's
        canary = Canary(ledger, places, release, policy, actor, report, gateway)
        with closing(ProbeRun(gateway, probes, policy, canary.digests)) as asked:
            try:
                canary.run(asked)
            except TakenOver:
                if ledger.history(name).release(version).state not in ENDED:
                    raise


def _mirror_or_warn(places: Places, history: History, report: Report) -> None:
    """MLflow's aliases follow the ledger; when MLflow is away they wait for `reconcile`, and the release stands."""
    try:
        mirror_to_mlflow(places, history)
    except GoldpathError as error:
        report({"event": "warning", "reason": f"aliases wait for reconcile: {error}"})


def _outcome(history: History, release: Release) -> Outcome:
    """Tells from the ledger how a version's newest canary (or reign) ended."""
    decided, started = release.entries[-1], release.last(Event.CANARY_STARTED)
    first = started.seq if started else decided.seq
    found = decided.payload.get("judgement")
    steps: dict[float, Entry] = {}
    for entry in release.entries:
        if entry.event is Event.CANARY_STEP and entry.seq > first and entry.payload["weight"]:
            steps.setdefault(entry.payload["weight"], entry)
    return Outcome(
        verdict="champion" if release.state is State.CHAMPION else "rolled_back",
        reason=str(decided.payload.get("reason", decided.event)),
        champion=history.champion.version if history.champion else None,
        judgement=Judgement.model_validate(found) if found else None,
        steps=[{"weight": weight, "at": entry.at, "seq": entry.seq} for weight, entry in steps.items()],
    )
