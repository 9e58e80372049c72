"""The record: proof that a stage finished, written last. No record means that it did not happen."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lineage.bundle import FileEntry, describe_file
from lineage.errors import BadInput, Tampered
from lineage.files import canonical_json, sha256_text, write_json
from lineage.section import Section, parse
from lineage.stamp import Stamp

RECORD = "record.json"

Metric = float | int | str | bool | None


class Parent(Section):
    """A record that a stage built on: its folder, its fingerprint, and the sha256 of its `record.json`."""

    path: str
    fingerprint: str
    sha256: str


class Record(Section):
    """What one finished stage was, did and wrote.

    Attributes:
        fingerprint: the identity that decides reuse (`lineage.fingerprint`).
        parents: the records (or bundles) it read, by role.
        outputs: every file it wrote, by relative POSIX path.
        metrics: its main figures.
        argv: the command that produced it, ready to be replayed.
        seconds, cpu_seconds, peak_memory_bytes: what it cost; memory is the resident peak of the process and its children.
        seal: sha256 over everything above, so that an edited record is no record.
    """

    stage: str
    name: str
    version: str
    config: dict[str, Any]
    fingerprint: str
    stamp: Stamp
    parents: dict[str, Parent]
    inputs: dict[str, str]
    outputs: dict[str, FileEntry]
    metrics: dict[str, Metric]
    argv: list[str]
    started_at: str
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    seal: str = ""

    def expected_seal(self) -> str:
        """Returns the seal that fits the record's content."""
        return sha256_text(canonical_json(self.model_dump(mode="json", exclude={"seal"})))


def write_record(folder: Path, record: Record) -> Record:
    """Seals a record and writes it, atomically; returns it as written."""
    sealed = record.model_copy(update={"seal": record.expected_seal()})
    write_json(folder / RECORD, sealed.model_dump(mode="json"))
    return sealed


def read_record(folder: Path) -> Record:
    """Reads a stage's record.

    Raises:
        BadInput: the stage did not finish there.
        Tampered: the record is not a record, or was edited.
    """
    path = folder / RECORD
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise BadInput(folder, "", "has no record.json, so its stage did not finish", "run that stage first") from None
    except (ValueError, RecursionError):
        raise Tampered(path, "", "is not JSON", "delete the folder and run the stage again") from None
    try:
        record = parse(Record, value, path)
    except BadInput as error:
        raise Tampered(path, error.field, error.problem, "delete the folder and run the stage again") from None
    if record.seal != record.expected_seal():
        raise Tampered(
            path, "seal", "does not fit the content: the record was edited", "delete the folder and run the stage again"
        )
    return record


def verify_outputs(folder: Path, record: Record, names: Iterable[str] | None = None) -> None:
    """Re-hashes a stage's outputs (all of them, or those named).

    Raises:
        Tampered: naming the first file that is missing or is not what the record says.
    """
    fix = "delete the folder and run the stage again"
    for name in record.outputs if names is None else names:
        if not (folder / name).is_file():
            raise Tampered(folder, name, "is missing although its record lists it", fix)
        if describe_file(folder / name) != record.outputs[name]:
            raise Tampered(folder, name, "was changed after its record was written", fix)
