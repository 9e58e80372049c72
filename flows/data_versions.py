"""Data versions by name: at hand in a stage's folder, or restored through DVC, and in either case read again and hashed."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_contracts.version import list_versions, restore_version
from flows.console import say
from flows.plan import finished_stages, parse_address
from lineage.errors import BadInput
from lineage.record import RECORD, read_record, verify_outputs

if TYPE_CHECKING:
    from flows.settings import Settings


@dataclass(frozen=True)
class KnownVersion:
    """A data version of this home: its addresses NAME@VERSION, and its folder where it is at hand."""

    addresses: tuple[str, ...]
    folder: Path | None


def known_versions(settings: "Settings") -> dict[str, KnownVersion]:
    """Returns every data version of this home by DVC's name for its content."""
    addresses: dict[str, list[str]] = {}
    folders: dict[str, Path] = {}
    for (name, version), data_version in list_versions().items():
        addresses.setdefault(data_version, []).append(f"{name}@{version}")
    for folder, record in finished_stages(settings, "data"):
        known = addresses.setdefault(record.stamp.data_version, [])
        folders.setdefault(record.stamp.data_version, folder)
        if (address := f"{record.name}@{record.version}") not in known:
            known.append(address)
    return {
        data_version: KnownVersion(tuple(known), folders.get(data_version)) for data_version, known in addresses.items()
    }


@contextmanager
def open_known(settings: "Settings", known: KnownVersion) -> Iterator[Path]:
    """Gives a folder with the files of a known data version.

    Raises:
        Tampered: a file is not what its record or its pointer says.
    """
    with open_version(settings, str(known.folder)) if known.folder else _restored(settings, known.addresses[0]) as folder:
        yield folder


@contextmanager
def open_version(settings: "Settings", where: str) -> Iterator[Path]:
    """Gives a folder with the files of a data version.

    Args:
        where: NAME@VERSION, or a folder of the data stage; one without a record is taken as it is.

    Raises:
        BadInput: there is no such version.
        Tampered: a file is not what its record or its pointer says.
    """
    folder, is_address = Path(where), False
    if not folder.is_dir():
        if "@" not in where:
            raise BadInput(where, "", "is neither a folder nor NAME@VERSION", "see `goldpath models`, or give a folder")
        name, version = parse_address(where)
        folder, is_address = settings.runs / name / version / "data", True
    if (folder / RECORD).is_file():
        verify_outputs(folder, read_record(folder))
    elif is_address:
        with _restored(settings, where) as folder:
            yield folder
        return
    yield folder


@contextmanager
def _restored(settings: "Settings", address: str) -> Iterator[Path]:
    """Restores a data version for as long as it is read."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".restored-", dir=settings.home) as temporary:
        say("restore", address)
        folder = Path(temporary) / "data"
        restore_version(*parse_address(address), folder)
        yield folder
