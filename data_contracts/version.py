"""Data versions: every output of the stage, its snapshot of the inputs included, pushed to a DVC remote under one name.

All versions live in one small DVC repository, `$GOLDPATH_HOME/versions`, that holds a pointer per data version and no data:
`versions/<name>/<version>.dvc`. It has a local remote beside it; `dvc remote modify goldpath url s3://…` there moves it.
Anyone with DVC can `dvc pull` in that folder; `restore_version` does, and then checks what came.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lineage.errors import BadInput, GoldpathError, Tampered
from lineage.files import list_files, write_atomic
from lineage.stage import NOT_OUTPUTS

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_data.hashfile.tree import Tree

# A DVC repository is a folder with this file. Nothing is reported to anyone.
CONFIG = """\
[core]
    no_scm = True
    analytics = False
    check_update = False
    autostage = False
    remote = goldpath
[cache]
    dir = ../../dvc/cache
['remote "goldpath"']
    url = ../../dvc/remote
"""


def home_folder() -> Path:
    """Returns Goldpath's home: `$GOLDPATH_HOME`, or `.goldpath` in the current folder."""
    return Path(os.environ.get("GOLDPATH_HOME", ".goldpath")).absolute()


def version_data(out: Path, name: str, version: str) -> str:
    """Pushes a finished folder to the remote and returns its data version: DVC's md5 of the folder, `….dir`.

    The same files give the same data version anywhere, because only names and contents count.

    Raises:
        GoldpathError: the remote cannot be written.
    """
    with _repository() as repo, _staged(out) as folder:
        place = Path(repo.root_dir) / name / version
        place.parent.mkdir(parents=True, exist_ok=True)
        stage = repo.stage.create(
            single_stage=True, validate=False, fname=f"{place}.dvc", wdir=str(place.parent), outs=[version]
        )
        # What `dvc add --to-remote` does, but with `update`: only files that the remote does not have are copied, and no
        # temporary copies stay behind there (DVC 3.67 leaves one per file in a local remote).
        pushed = stage.outs[0].transfer(str(folder), odb=repo.cloud.get_remote_odb(None, "push"), update=True)
        stage.dump()
        return str(pushed.hash_info.value)


def restore_version(name: str, version: str, out: Path) -> str:
    """Pulls a data version from the remote into a new folder and returns its data version.

    Raises:
        BadInput: there is no such data version, or the folder exists.
        Tampered: what came is not what the pointer names; the folder is not made.
    """
    if out.exists():
        raise BadInput(out, "--out", "exists already", "name a new folder, or delete that one")
    with _repository() as repo:
        place = Path(repo.root_dir) / name / version
        pointer = place.with_name(f"{version}.dvc")
        if not pointer.is_file():
            raise BadInput(f"{name}@{version}", "", "is no data version here", f"see the pointers in {repo.root_dir}")
        repo.pull([str(pointer)], force=True)
        promised = repo.stage.load_file(str(pointer))[0].outs[0]
        if hash_folder(place) != promised.hash_info.value:
            wrong = _first_difference(place, promised.get_obj())
            shutil.rmtree(place)
            shutil.rmtree(repo.cache.local.path)  # it holds the same bytes, and DVC would trust them the next time
            raise Tampered(
                f"{name}@{version}", wrong, "is not what was versioned", "mend the remote, or run the data stage again"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(place, out)
        return str(promised.hash_info.value)


def list_versions() -> dict[tuple[str, str], str]:
    """Returns every data version of this home that has a pointer: DVC's md5 by (name, version).

    Raises:
        Tampered: a pointer is none.
    """
    import yaml

    found = {}
    for path in sorted((home_folder() / "versions").glob("*/*.dvc")):
        try:
            md5 = str(yaml.safe_load(path.read_bytes())["outs"][0]["md5"])
        except (yaml.YAMLError, LookupError, TypeError):
            raise Tampered(path, "outs", "names no data version", "run the data stage of that version again") from None
        found[path.parent.name, path.name.removesuffix(".dvc")] = md5
    return found


def hash_folder(folder: Path) -> str:
    """Returns DVC's name for a folder's content, computed from the bytes; DVC itself trusts its notes of earlier times."""
    from dvc.fs import LocalFileSystem
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB

    _, _, tree = build(HashFileDB(LocalFileSystem(), str(folder)), str(folder), LocalFileSystem(), "md5", dry_run=True)
    return str(tree.hash_info.value)


def _first_difference(folder: Path, promised: "Tree") -> str:
    """Names the first file that is missing or whose bytes are not those of the listing."""
    for key, _, hash_info in sorted(promised, key=lambda entry: entry[0]):
        path = folder.joinpath(*key)
        if not path.is_file() or hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != hash_info.value:
            return "/".join(key)
    return "a file that the listing does not have"


@contextmanager
def _repository() -> Iterator["Repo"]:
    """Opens the repository of data versions under a lock of its own, and makes it first where there is none."""
    home = home_folder()
    root = home / "versions"
    os.environ["DVC_SITE_CACHE_DIR"] = str(home / "dvc" / "index")  # else it is /var/tmp/dvc, shared by all users
    if not (root / ".dvc" / "config").is_file():
        write_atomic(root / ".dvc" / "config", CONFIG)
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with (root / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two stages may end at once; DVC's own lock gives up after some seconds
        try:
            with Repo(str(root)) as repo:
                yield repo
        except DvcException as error:
            raise GoldpathError(
                f"data version: DVC says: {error}. Fix: look at {root}/.dvc/config and at the remote"
            ) from None


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A hidden folder of hard links to the outputs alone: no lock, log, job file or record is part of a data version."""
    staging = out / ".version"
    shutil.rmtree(staging, ignore_errors=True)
    for path in list_files(out):
        name = path.relative_to(out)
        if name.as_posix() not in NOT_OUTPUTS:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, staging / name)
    try:
        yield staging
    finally:
        shutil.rmtree(staging)
