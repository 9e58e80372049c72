"""The release bundle: one immutable folder, named everywhere by the digest of its manifest.

What is evaluated, approved, served and rolled back is the same bytes because it is the same digest.
"""

import json
from pathlib import Path

from lineage.errors import BadInput, Tampered
from lineage.files import canonical_json, list_files, sha256_file, sha256_text, write_json
from lineage.section import Section, parse

MANIFEST = "manifest.json"
# Formats that run code when they are loaded (pickle and kin); a bundle's weights are safetensors and nothing else.
UNSAFE_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".h5", ".msgpack", ".py"}
)


class FileEntry(Section):
    """One file's content: sha256 (64 hex digits) and size in bytes."""

    sha256: str
    bytes: int


class Manifest(Section):
    """A bundle's files by relative POSIX path."""

    files: dict[str, FileEntry]

    @property
    def digest(self) -> str:
        """sha256 over the sorted file manifest, as `sha256:` and 64 hex digits."""
        return "sha256:" + sha256_text(canonical_json(self.model_dump(mode="json")))


def describe_file(path: Path) -> FileEntry:
    """Hashes one file."""
    return FileEntry(sha256=sha256_file(path), bytes=path.stat().st_size)


def seal_bundle(folder: Path) -> str:
    """Writes the bundle's manifest, last, and returns its digest.

    Raises:
        BadInput: the folder holds a format that can run code, or no safetensors weights.
    """
    files = {str(path.relative_to(folder).as_posix()): path for path in list_files(folder) if path.name != MANIFEST}
    for name, path in files.items():
        if path.suffix in UNSAFE_SUFFIXES:
            raise BadInput(folder, name, "is a format that can run code when loaded", "save the weights as safetensors")
    if not any(name.endswith(".safetensors") for name in files):
        raise BadInput(folder, "", "holds no safetensors weights", "save the model with `save_pretrained` first")
    manifest = Manifest(files={name: describe_file(path) for name, path in files.items()})
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return manifest.digest


def digest_model(folder: Path) -> str:
    """Returns the digest that names a model folder: a bundle's own, verified; a plain folder's as if sealed.

    Raises:
        Tampered: the bundle is not what its manifest says.
        BadInput: the folder holds no model.
    """
    if (folder / MANIFEST).is_file():
        return verify_bundle(folder)
    if not (folder / "config.json").is_file():
        raise BadInput(folder, "", "is neither a release bundle nor a model folder", "give a `bundle` folder of a run")
    files = list_files(folder, linked=True)
    return Manifest(files={path.relative_to(folder).as_posix(): describe_file(path) for path in files}).digest


def read_manifest(folder: Path) -> Manifest:
    """Reads a bundle's manifest without hashing its files.

    Raises:
        BadInput: there is no bundle at that folder, or its manifest is not one.
    """
    path = folder / MANIFEST
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise BadInput(
            folder, "", "is not a release bundle (no manifest.json)", "give a `bundle` folder of a run"
        ) from None
    except (ValueError, RecursionError):
        raise Tampered(path, "", "is not JSON", "take the bundle from its run or its registry again") from None
    return parse(Manifest, value, path)


def verify_bundle(folder: Path, digest: str | None = None) -> str:
    """Re-hashes every file of a bundle and returns its digest.

    Args:
        digest: the digest that the caller was promised; None takes the manifest's own.

    Raises:
        Tampered: naming the first file that is missing, changed, or not in the manifest.
        BadInput: the folder is no bundle.
    """
    manifest = read_manifest(folder)
    restore = "take the bundle from its run or its registry again"
    if digest is not None and manifest.digest != digest:
        raise Tampered(folder / MANIFEST, "digest", f"is {manifest.digest}, not {digest}", restore)
    for path in folder.rglob("*"):
        # Libraries would follow a link or read a hidden file that no manifest lists.
        if path.is_symlink() or path.name.startswith("."):
            raise Tampered(
                folder, path.relative_to(folder).as_posix(), "is a link or hidden, so no manifest can list it", restore
            )
    present = {path.relative_to(folder).as_posix() for path in list_files(folder)} - {MANIFEST}
    for name, entry in manifest.files.items():
        if name not in present:
            raise Tampered(folder, name, "is missing", restore)
        if describe_file(folder / name) != entry:
            raise Tampered(folder, name, "was changed after the bundle was sealed", restore)
    if extra := sorted(present - set(manifest.files)):
        raise Tampered(folder, extra[0], "is not in the manifest", restore)
    return manifest.digest
