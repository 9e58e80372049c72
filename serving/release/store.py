"""The content store: one read-only folder per bundle, named by its digest. What is served comes from here alone."""

import os
import shutil
import tempfile
from pathlib import Path

from lineage.bundle import verify_bundle
from lineage.files import list_files, sync_folder


def stored_bundle(bundles: Path, digest: str) -> Path:
    """Returns where a digest's bundle lies in the store, whether or not it is there."""
    return bundles / digest.removeprefix("sha256:")


def verify_stored(bundles: Path, digest: str) -> Path:
    """Re-hashes a stored bundle and returns its folder.

    Raises:
        BadInput: it is not in the store.
        Tampered: it is not what its digest says.
    """
    folder = stored_bundle(bundles, digest)
    verify_bundle(folder, digest)
    return folder


def store_bundle(bundle: Path, bundles: Path) -> str:
    """Copies a bundle into the store and returns its digest; a bundle that is there already is verified instead.

    The copy is made beside its place, verified, made read-only, and renamed: the store holds whole bundles or none.

    Raises:
        BadInput: the folder is no bundle.
        Tampered: the bundle, or the stored copy of it, is not what its digest says.
    """
    digest = verify_bundle(bundle)
    target = stored_bundle(bundles, digest)
    if target.exists():
        verify_stored(bundles, digest)
        return digest
    bundles.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=bundles, prefix=f".{target.name[:12]}."))
    try:
        copy = temporary / "bundle"
        shutil.copytree(bundle, copy, ignore=_hidden)
        verify_bundle(copy, digest)
        _make_durable_and_read_only(copy)
        _move(copy, target, digest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(bundles)
    return digest


def _move(copy: Path, target: Path, digest: str) -> None:
    try:
        copy.rename(target)
    except OSError:
        if not target.exists():
            raise
        verify_bundle(target, digest)  # another process stored the same bytes first


def _make_durable_and_read_only(folder: Path) -> None:
    for path in list_files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.chmod(0o444)
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        sync_folder(path)
        # The owner may still enter and rename the folder itself; its files are what must not change.
        path.chmod(0o755 if path == folder else 0o555)


def _hidden(_: str, names: list[str]) -> set[str]:
    return {name for name in names if name.startswith(".")}
