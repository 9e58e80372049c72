"""Files behind URLs that fsspec knows (`s3://`, `gs://`, `https://`, …), with credentials from the environment."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from lineage.errors import BadInput

CHUNK = 2**20
SHA256_DIGITS = 64
# What stores call the very bytes of an object: S3 and HTTP, Google (an object's generation never comes twice), Azure.
NAMES = ("ETag", "etag", "generation", "content_md5", "Content-MD5", "sha256")
STAMPS = (*NAMES, "size", "LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created")
EXTRAS = {"s3": "goldpath[s3]", "s3a": "goldpath[s3]", "gs": "goldpath[gcs]", "gcs": "goldpath[gcs]"}


def check_url(url: str, field: str) -> None:
    """Refuses URLs that are no single place, or that would put a password into every record.

    Raises:
        BadInput: naming the field.
    """
    if "::" in url:
        raise BadInput(url, field, "is a chain of URLs", "give the URL of the file itself, unpacked")
    if "@" in urlsplit(url).netloc:
        shown = url.replace(urlsplit(url).netloc.rpartition("@")[0], "***")
        raise BadInput(shown, field, "holds a user or a password", "leave them to the environment (or to ~/.netrc)")


def find_remote(url: str) -> list[tuple[str, str]]:
    """Returns (name, URL) of the files that a URL names, sorted by name: itself, with the name "", what a pattern matches,
    or all below a folder, which over HTTP ends with a slash.

    Raises:
        BadInput: there is nothing, or the place cannot be reached.
    """
    with _errors(url):
        system, path = _system(url)
        if "*" in path:
            found, root = system.glob(path), path.partition("*")[0].rpartition("/")[0]
        elif not url.endswith("/") and system.isfile(path):
            return [("", url)]
        else:
            found, root = system.find(path), path.rstrip("/")
        if not found:
            raise FileNotFoundError(2, "no such file or folder")
    for name in found:
        if ".." in name.split("/") or not name.startswith(f"{root}/"):
            raise BadInput(url, name, "leads out of the folder", "take it out, or name the files one by one")
    named = [(name.removeprefix(f"{root}/"), str(system.unstrip_protocol(name))) for name in found]
    return sorted(one for one in named if not one[0].endswith("/"))


def describe(url: str) -> tuple[tuple[int | str, ...], str]:
    """Returns (stamp, identity): all that the store tells of the file's state, and its name for the very bytes, or "".

    A weak ETag (`W/…`, RFC 9110 section 8.8.1) does not vouch for bytes, so it is no identity.
    """
    with _errors(url):
        system, path = _system(url)
        told: dict[str, Any] = system.info(path)
    name = next((f"{key} {told[key]}" for key in NAMES if told.get(key) and not str(told[key]).startswith("W/")), "")
    return tuple(str(told.get(key, "")) for key in STAMPS), f"{name} size {told.get('size')}" if name else ""


def sha256_remote(url: str) -> str:
    """Reads a file to its end and returns the sha256 of its bytes."""
    digest = hashlib.sha256()
    with _errors(url):
        system, path = _system(url)
        with system.open(path, "rb") as stream:
            while data := stream.read(CHUNK):
                digest.update(data)
    return digest.hexdigest()


@contextmanager
def open_remote(url: str, identity: str, *, seekable: bool) -> Iterator[BinaryIO]:
    """Opens a file; by way of a local copy where its identity is a sha256, or where it cannot be sought and must be."""
    with ExitStack() as opened:
        with _errors(url):
            system, path = _system(url)
            stream: BinaryIO = opened.enter_context(system.open(path, "rb"))
            is_hash = len(identity) == SHA256_DIGITS
            if is_hash or (seekable and not stream.seekable()):
                copy = opened.enter_context(tempfile.TemporaryFile(prefix="goldpath-source-"))
                shutil.copyfileobj(stream, copy, CHUNK)
                copy.seek(0)
                if is_hash and hashlib.file_digest(copy, "sha256").hexdigest() != identity:
                    problem = "was changed after it was hashed, while this stage was at work"
                    raise BadInput(url, "", problem, "let it rest, then run the same command again")
                copy.seek(0)
                stream = copy
        yield stream


def _system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url, use_listings_cache=False)
    system.invalidate_cache()
    return system, str(path)


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Each file system raises errors of the library that it stands on; all become one that names the URL."""
    try:
        yield
    except BadInput:
        raise
    except ImportError as error:
        scheme = url.partition("://")[0]
        fix = f"pip install '{EXTRAS.get(scheme, 'that package')}'"
        raise BadInput(url, "", f"`{scheme}://` needs a package that is not installed ({error})", fix) from None
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        fix = "check the address, the network and the credentials in the environment"
        raise BadInput(url, "", f"cannot be read ({type(error).__name__}: {lines[0]})", fix) from None
