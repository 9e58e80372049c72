"""What was built on data: every stage record and every model whose lineage leads back to some data versions."""

from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineage.bundle import MANIFEST, read_manifest
from lineage.errors import Tampered
from lineage.files import sha256_file
from lineage.record import RECORD, Record, read_record

if TYPE_CHECKING:
    from flows.settings import Settings
    from serving.release.states import Release

BUNDLE = "bundle"
TOKENIZER = "tokenizer"  # the role in which a data stage reads a base model: of it, it takes the tokenizer alone


def find_descent(settings: "Settings", data_versions: Set[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns the records and the models that some data versions went into, also by way of a base model.

    Records that cannot be read are listed too, with the `problem`: nobody knows what they are of.
    """
    stages, unread = _stages(settings)
    releases = _releases(settings)
    digests = {release.digest for release in releases if _data_version(release) in data_versions}
    proofs = {sha for digest in digests for sha in _proofs(settings.bundles / digest.removeprefix("sha256:"))}
    touched: dict[Path, Record] = {}
    while True:  # until nothing more is built on what was found
        more = {
            folder: record
            for folder, record in stages.items()
            if folder not in touched and (record.stamp.data_version in data_versions or _builds_on(record, proofs))
        }
        if not more:
            break
        touched |= more
        proofs |= {sha for folder in more for place in (folder, folder / BUNDLE) for sha in _proofs(place)}
    digests |= {digest for folder in touched if (digest := _digest(folder))}
    addresses = {folder: f"{record.name}@{record.version}" for folder, record in touched.items()}
    records: list[dict[str, Any]] = [
        {"address": addresses[folder], "stage": folder.name, "fingerprint": record.fingerprint, "folder": str(folder)}
        for folder, record in sorted(touched.items())
    ]
    return {"records": records + unread, "models": _models(touched, releases, digests)}


def _models(touched: dict[Path, Record], releases: "list[Release]", digests: set[str]) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = []
    for digest in sorted(digests):
        made = [(folder, record) for folder, record in touched.items() if _digest(folder) == digest]
        named = [release for release in releases if release.digest == digest]
        models.append(
            {
                "digest": digest,
                "made_by": [f"{record.name}@{record.version} {folder.name}" for folder, record in sorted(made)],
                "registered": {f"{release.name}@{release.version}": str(release.state) for release in named},
            }
        )
    return models


def _stages(settings: "Settings") -> tuple[dict[Path, Record], list[dict[str, Any]]]:
    found, unread = {}, []
    for path in sorted(settings.runs.glob(f"*/*/*/{RECORD}")):
        folder = path.parent
        if folder.is_symlink():
            continue  # the record is found where it was written
        try:
            found[folder.resolve()] = read_record(folder)
        except Tampered as error:
            address = f"{folder.parent.parent.name}@{folder.parent.name}"
            unread.append({"address": address, "stage": folder.name, "folder": str(folder), "problem": str(error)})
    return found, unread


def _builds_on(record: Record, proofs: Set[str]) -> bool:
    """Whether a stage read one of the stages or bundles with these proofs; by hash, because folders move."""
    roles = [role for role in record.parents if not (role == TOKENIZER and record.stage == "data")]
    return any(record.parents[role].sha256 in proofs for role in roles)


def _proofs(folder: Path) -> list[str]:
    """What a record says of a parent: the sha256 of its record, or of its bundle's manifest."""
    return [sha256_file(folder / name) for name in (RECORD, MANIFEST) if (folder / name).is_file()]


def _digest(stage: Path) -> str:
    """Returns the digest of the bundle that a stage made; "" where it made none that can be read."""
    if not (stage / BUNDLE / MANIFEST).is_file():
        return ""
    try:
        return read_manifest(stage / BUNDLE).digest
    except Tampered:
        return ""


def _releases(settings: "Settings") -> "list[Release]":
    if not settings.ledger_url and not (settings.home / "ledger.db").is_file():
        return []
    from serving.release.ledger import Ledger

    ledger = Ledger(settings.ledger)
    ledger.verify()
    releases = [release for name in ledger.names() for release in ledger.history(name).releases.values()]
    ledger.close()
    return releases


def _data_version(release: "Release") -> str:
    return str(release.entries[0].payload.get("data_version", ""))
