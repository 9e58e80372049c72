"""Models by their name on the Hugging Face hub: the files that a model is made of, at one commit, as a plain folder."""

import os
import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import mkdtemp

from lineage.errors import BadInput

# Weights that cannot run code, configuration and tokenizer; no pickles, no code, no second copies in subfolders.
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
UNWANTED = ("*/*", "consolidated*")
COMMIT = r"[0-9a-f]{40}"
FIX = "give a folder, NAME@VERSION in a recipe, or a model name that the hub knows"


def find_base(base: str, revision: str, home: Path) -> Path:
    """Returns the folder of a model: a local one by its path, else the hub's by name.

    Args:
        revision: a branch, tag or commit of the hub's repository; "" is `main`.
        home: where models from the hub are kept: `<home>/<org>--<name>/<commit>/`, in files of their own and without links,
            so that what is hashed is what is read. They share the disk space of the hub's cache where the disk allows.

    Raises:
        BadInput: there is no such folder, and the hub gives no such model, or cannot be reached and has not been before.
    """
    if Path(base).is_dir():
        if revision:
            raise BadInput(base, "model.revision", "is of a model on the hub, but this is a folder", "leave it out")
        return Path(base)
    shelf = home / base.replace("/", "--")
    if re.fullmatch(COMMIT, revision) and (shelf / revision).is_dir():
        return shelf / revision
    snapshot = _download(base, revision)
    folder = shelf / snapshot.name  # the hub's cache names snapshots by their commit
    if not folder.is_dir():
        _copy(snapshot, folder)
    return folder


def _download(name: str, revision: str) -> Path:
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED))
        )
    except (HfHubHTTPError, HFValidationError, HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        at = f" at `{revision}`" if revision else ""
        raise BadInput(f"`{name}`", "model.base", f"is no folder, and the hub gave nothing{at} ({reason})", FIX) from None


def _copy(snapshot: Path, folder: Path) -> None:
    """Makes a folder of the wanted files, whole or not at all; of several processes the first one wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(dir=folder.parent, prefix=".writing-"))
    try:
        for path in sorted(snapshot.iterdir()):
            if (
                path.is_file()
                and any(fnmatchcase(path.name, p) for p in WANTED)
                and not fnmatchcase(path.name, UNWANTED[1])
            ):
                _link_or_copy(path.resolve(), temporary / path.name)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)
