"""Data versions by name: at hand in a stage's folder, or restored through DVC, and in either case read again and hashed."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from data_contracts.version import list_versions, restore_version
from flows.console import say
from flows.plan import finished_stages, parse_address
from lineage.errors import BadInput
from lineage.record import RECORD, read_record, verify_outputs

if TYPE_CHECKING:
    from flows.settings import Settings


def known_versions(settings: "Settings") -> dict[str, list[str]]:
    """Returns every data version of this home: by DVC's name for its content, the addresses NAME@VERSION that it has."""
    found: dict[str, list[str]] = {}
    for (name, version), data_version in list_versions().items():
        found.setdefault(data_version, []).append(f"{name}@{version}")
    for _, record in finished_stages(settings, "data"):
        addresses = found.setdefault(record.stamp.data_version, [])
        if (address := f"{record.name}@{record.version}") not in addresses:
            addresses.append(address)
    return found


@contextmanager
def open_version(settings: "Settings", where: str) -> Iterator[Path]:
    """Gives a folder with the files of a data version.

    Args:
        where: NAME@VERSION, or a folder of the data stage; one without a record is taken as it is.

    Raises:
        BadInput: there is no such version.
        Tampered: a file is not what its record or its pointer says.
    """
    folder = Path(where)
    if not folder.is_dir():
        if "@" not in where:
            raise BadInput(where, "", "is neither a folder nor NAME@VERSION", "see `goldpath models`, or give a folder")
        name, version = parse_address(where)
        folder = settings.runs / name / version / "data"
    if folder.is_dir() and (folder / RECORD).is_file():
        verify_outputs(folder, read_record(folder))
        yield folder
    elif folder.is_dir() and Path(where).is_dir():
        yield folder
    else:
        settings.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".restored-", dir=settings.home) as temporary:
            say("restore", where)
            restored = Path(temporary) / "data"
            restore_version(name, version, restored)
            yield restored
