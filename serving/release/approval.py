"""Approval: a person's decision, stored as a fact about exact bytes and the very verdict that the person saw.

A verdict is a comparison with one champion. When another one reigns, the verdict says nothing about the release any more,
and neither does an approval of it.

The person who asked for a release may not approve it (separation of duties, NIST SP 800-53 AC-5).
"""

from lineage.errors import BadInput, ExitCode, GoldpathError
from serving.config import Places
from serving.release.ledger import Ledger
from serving.release.states import NEXT_STEP, Entry, Event, History, Release, State
from serving.release.store import verify_stored

GATE_AGAIN = "gate it against the champion of now (`goldpath run RECIPE --only gate`)"


class NotApproved(GoldpathError):
    """A release without a valid approval; the exit code tells the caller that a person has to decide."""

    exit_code = ExitCode.AWAITING_APPROVAL


def approve(ledger: Ledger, places: Places, name: str, version: str, approver: str, reason: str) -> Entry:
    """Stores an approval, bound to the version's digest and to the sha256 of its gate's verdict.

    Raises:
        BadInput: the reason is blank, the approver is the requester, or the gate did not pass against the champion of now.
        Tampered: the stored bundle is not what its digest says.
        IllegalTransition: the version is in no state to be approved.
    """
    history = ledger.history(name)
    release = history.release(version)
    check_decision(release, approver, reason)
    verdict, sha256 = gate_verdict(release)
    if verdict != "pass":
        said = f"said `{verdict}`" if verdict else "has not judged it"
        raise BadInput(address(release), "gate", f"the gate {said}", "only what the gate passed can be approved")
    if outdated := _outdated_comparison(history, release):
        raise BadInput(address(release), "gate", outdated, GATE_AGAIN)
    verify_stored(places.bundles, release.digest)
    payload = {"reason": reason.strip(), "gate_sha256": sha256}
    return ledger.append(Event.APPROVED, release, approver, payload, history.head)


def reject(ledger: Ledger, name: str, version: str, approver: str, reason: str) -> Entry:
    """Stores a refusal, for good. The requester may refuse an own candidate.

    Raises:
        BadInput: the reason is blank.
        IllegalTransition: the version is in no state to be rejected.
    """
    history = ledger.history(name)
    release = history.release(version)
    _check_reason(release, reason)
    payload = {"reason": reason.strip(), "gate_sha256": gate_verdict(release)[1]}
    return ledger.append(Event.REJECTED, release, approver, payload, history.head)


def require_approval(history: History, version: str) -> Entry:
    """Returns the approval that lets a version meet traffic, checked afresh: digest, gate verdict, champion, requester.

    Raises:
        NotApproved: there is none, or it does not hold.
    """
    release = history.release(version)
    approval = release.last(Event.APPROVED)
    if release.state is not State.APPROVED or approval is None:
        raise NotApproved(f"{address(release)} is {release.state}, not approved. Fix: {NEXT_STEP[release.state]}")
    verdict, sha256 = gate_verdict(release)
    if approval.digest != release.digest or approval.payload.get("gate_sha256") != sha256 or verdict != "pass":
        raise NotApproved(
            f"{address(release)}: approval {approval.seq} is for another digest or verdict. Fix: approve it afresh"
        )
    if outdated := _outdated_comparison(history, release):
        raise NotApproved(f"{address(release)}: {outdated}. Fix: {GATE_AGAIN}, then approve it afresh")
    try:
        check_decision(release, approval.actor, str(approval.payload.get("reason", "")))
    except BadInput as error:
        raise NotApproved(f"{address(release)}: approval {approval.seq} does not hold ({error})") from None
    return approval


def check_decision(release: Release, approver: str, reason: str) -> None:
    """Checks who approves and why.

    Raises:
        BadInput: the approver is the requester or nobody, or the reason is blank.
    """
    if not approver.strip():
        raise BadInput(address(release), "approver", "is blank", "say who approves")
    if approver.strip().casefold() == release.requester.strip().casefold():
        raise BadInput(address(release), "approver", f"{approver} registered this version", "let somebody else approve it")
    _check_reason(release, reason)


def gate_verdict(release: Release) -> tuple[str, str]:
    """Returns the newest gate verdict and the sha256 of its file, or two empty texts."""
    gate = release.last(Event.GATED)
    return (str(gate.payload["verdict"]), str(gate.payload["verdict_sha256"])) if gate else ("", "")


def _outdated_comparison(history: History, release: Release) -> str:
    """Says whom the gate compared a release with, where that is not the champion of now; "" where it is."""
    gate, champion = release.last(Event.GATED), history.champion
    compared = str(gate.payload.get("champion", "")) if gate else ""
    if compared == (champion.digest if champion else ""):
        return ""
    known = [other.version for other in history.releases.values() if other.digest == compared]
    against = f"with {known[0]}" if known else f"with {compared}" if compared else "with no champion"
    return f"the gate compared it {against}, and the champion is {champion.version if champion else 'none'} now"


def address(release: Release) -> str:
    """Returns `name@version`."""
    return f"{release.name}@{release.version}"


def _check_reason(release: Release, reason: str) -> None:
    if not reason.strip():
        raise BadInput(address(release), "reason", "is blank", "say why, for whoever reads the ledger in a year")
