"""Registration: a finished run's bundle becomes a candidate, with its lineage and its gate's verdict.

The ledger's entry is what counts; MLflow's model version is made from it (`serving.release.aliases`).
"""

import json
from collections.abc import Iterator
from pathlib import Path

from lineage.errors import BadInput, Tampered
from lineage.files import sha256_file
from lineage.record import RECORD, Record, read_record, verify_outputs
from serving.config import Places
from serving.release.ledger import Ledger
from serving.release.states import Event, Release
from serving.release.store import store_bundle

BUNDLE = "bundle"
VERDICTS = frozenset({"pass", "fail", "inconclusive"})


def register(
    ledger: Ledger, places: Places, name: str, version: str, stage: Path, requester: str, waiver: str = ""
) -> Release:
    """Registers the bundle that a training stage made; the same bytes again are no error and no second entry.

    Args:
        stage: the stage's folder, with its record and `bundle/`.
        requester: who asks for the release; may not approve it.
        waiver: why a result of a changed checkout may be released all the same. It is recorded with the requester's name.

    Raises:
        BadInput: the stage did not finish, its code differs from its commit and no waiver is given, or the version is
            registered with other bytes.
        Tampered: bundle or record are not what they were.
    """
    record = read_record(stage)
    verify_outputs(stage, record)
    dirty = sorted({found.stage for found in _ancestry(stage) if found.stamp.dirty})
    if dirty and not waiver.strip():
        raise BadInput(
            stage / RECORD,
            "stamp.dirty",
            f"the code of {', '.join(dirty)} differed from its commit, so nobody could repeat it",
            "commit, then run the version again; or give a waiver that says why this may be released",
        )
    digest = store_bundle(stage / BUNDLE, places.bundles)
    history = ledger.history(name)
    if known := history.releases.get(version):
        if known.digest != digest:
            raise BadInput(
                f"{name}@{version}", "digest", f"is registered as {known.digest}, not {digest}", "raise `version:`"
            )
        return known
    lineage = {
        "commit": record.stamp.commit,
        "data_version": record.stamp.data_version,
        "dirty": dirty,
        "waiver": waiver.strip() if dirty else "",
        "stage": record.stage,
        "fingerprint": record.fingerprint,
        "record_sha256": sha256_file(stage / RECORD),
    }
    ledger.register(name, version, digest, requester, lineage, history.head)
    return ledger.history(name).release(version)


def record_gate(ledger: Ledger, name: str, version: str, gate: Path, actor: str) -> Release:
    """Records what the gate said about a registered version; the same verdict again is no second entry.

    The entry keeps the digest of the champion that the version was compared with ("" where only floors were checked): an
    approval holds as long as that is the champion.

    Args:
        gate: the gate stage's folder: its record, `verdict.json`, and the record's parents `candidate` and, where there
            was a champion, `champion`, with the scores.

    Raises:
        BadInput: the gate did not finish, or it judged another bundle.
        Tampered: the verdict is not what its record says.
    """
    record = read_record(gate)
    verify_outputs(gate, record)
    history = ledger.history(name)
    release = history.release(version)
    judged = _scored_digest(gate, record, "candidate")
    if judged != release.digest:
        raise BadInput(
            gate, "candidate", f"is {judged}, but {name}@{version} is {release.digest}", "gate this very version"
        )
    path = gate / "verdict.json"
    verdict, sha256 = json.loads(path.read_text(encoding="utf-8")), record.outputs[path.name].sha256
    if verdict.get("verdict") not in VERDICTS:
        raise BadInput(path, "verdict", f"is {verdict.get('verdict')!r}", "run the gate again")
    champion = _scored_digest(gate, record, "champion") if "champion" in record.parents else ""
    payload = {"verdict": verdict["verdict"], "verdict_sha256": sha256, "champion": champion}
    newest = release.last(Event.GATED)
    if newest and all(newest.payload.get(key) == value for key, value in payload.items()):
        return release
    payload["reasons"] = verdict.get("reasons", [])
    ledger.append(Event.GATED, release, actor, payload, history.head)
    return ledger.history(name).release(version)


def _ancestry(stage: Path) -> Iterator[Record]:
    """Yields the record of a stage and of every stage that it was built on.

    Raises:
        Tampered: a parent's record is not the one that was built on.
    """
    record = read_record(stage)
    yield record
    for role, parent in record.parents.items():
        path = Path(parent.path) / RECORD
        if not path.is_file():
            continue  # a bundle or a plain folder from outside has no record; its digest is among the inputs
        if sha256_file(path) != parent.sha256:
            raise Tampered(
                path, "", f"is not the record that `{record.stage}` was built on ({role})", "run the version again"
            )
        yield from _ancestry(path.parent)


def _scored_digest(gate: Path, record: Record, role: str) -> str:
    """Returns the digest of the model whose scores the gate read in a role."""
    if role not in record.parents:
        raise BadInput(gate / RECORD, f"parents.{role}", "is missing", "give the folder of a gate stage")
    scores = Path(record.parents[role].path) / "scores.json"
    expected = record.inputs.get(f"{role}/scores.json")
    if not scores.is_file() or (expected and sha256_file(scores) != expected):
        raise Tampered(scores, "", "is not the file that the gate judged", "run evaluation and gate again")
    try:
        return str(json.loads(scores.read_text(encoding="utf-8"))["models"]["candidate"]["digest"])
    except (ValueError, KeyError, TypeError):
        raise BadInput(scores, "models.candidate.digest", "is missing", "run evaluation and gate again") from None
