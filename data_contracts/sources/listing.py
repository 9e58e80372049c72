"""Which files a source names: one file, a pattern, a folder, a URL of any of them, a saved data set, or one of the hub."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from data_contracts.config import Format, Source
from data_contracts.sources.places import SourceFile, is_url
from lineage.errors import BadInput

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv",
    ".txt": "text", ".text": "text", ".md": "text",
}  # fmt: skip
PACKED = (".gz", ".zst", ".zstd")
SAVED = ({"dataset_dict.json"}, {"state.json", "dataset_info.json"})  # what `datasets` leaves in a folder that it saved
LOCAL = ("file://", "local://")
MAGIC = "*?["  # of paths; of URLs the star alone, as `?` begins a query


def absolute_path(path: str, kind: str, folder: Path) -> str:
    """Returns a source's path as it is from anywhere; URLs and names on the hub are so already.

    Args:
        folder: the one that paths are relative to.

    Raises:
        BadInput: it holds a null byte.
    """
    if "\0" in path:
        raise BadInput("data.sources", "path", "holds a path with a null byte", "correct that path")
    path = next((path.removeprefix(scheme) for scheme in LOCAL if path.startswith(scheme)), path)
    if not path or kind == "hub" or is_url(path):
        return path
    return os.path.abspath(folder / path)  # noqa: PTH100  (a link keeps its own name, which says its format)


def list_source(source: Source, field: str) -> tuple[SourceFile, ...]:
    """Returns a source's files in the order in which they are read: by their path below what the source names, bytewise.

    Of a folder these are the files of one format at any depth, without hidden ones (`.name`, `_name`); others are ignored.
    A pattern means all that it matches but `.name`.

    Raises:
        BadInput: there are none, a link leads out of the folder, several formats are mixed, or none is known by the name.
    """
    if source.kind == "hub":
        from data_contracts.sources.hugging_face import find_on_hub

        return (find_on_hub(source, field),)
    try:
        if is_url(source.path):
            return _list_remote(source, field)
        return _list_local(source, Path(source.path), field)
    except OSError as error:
        raise _unreadable(source, field, error.strerror or str(error)) from None


def short_name(location: str) -> str:
    """Returns a file's name without the suffixes that say how it is read."""
    name = PurePosixPath(_path_of(location)).name
    for known in (PACKED, tuple(FORMATS)):
        stem, dot, suffix = name.rpartition(".")
        if stem and (dot + suffix).lower() in known:
            name = stem
    return name


def source_name(source: Source) -> str:
    """Returns what a source's rows are said to come from: a file's short name, or the folder's."""
    path = source.path
    if is_url(path):
        path = path.partition("*")[0].rpartition("/")[0] if "*" in path else path
    elif source.kind != "hub" and _is_pattern(path) and not Path(path).exists():
        path = str(_divide_pattern(path)[0])
    return short_name(path.rstrip("/")) or "source"


def suffix_of(location: str) -> str:
    """Returns the suffix of a path or URL that says its format, in small letters."""
    path = PurePosixPath(_path_of(location).lower())
    return path.with_suffix("").suffix if path.suffix in PACKED else path.suffix


def format_of(location: str) -> Format | None:
    """Returns the format that a path or URL says."""
    return FORMATS.get(suffix_of(location))


def _list_local(source: Source, path: Path, field: str) -> tuple[SourceFile, ...]:
    if path.is_dir():
        if source.format is None and any(all((path / name).is_file() for name in names) for names in SAVED):
            return (SourceFile(source_name(source), str(path), "saved"),)
        return _several(source, field, _walk(path, field), path)
    if _is_pattern(str(path)) and not path.exists():
        root, pattern = _divide_pattern(str(path))
        if ".." in pattern.split("/"):
            raise BadInput(path, field, f"leads out of {root}", "write the pattern without `..`")
        named = [(one.relative_to(root).as_posix(), one) for one in root.glob(pattern) if one.is_file()]
        visible = sorted((one for one in named if not _is_hidden(one[0], ".")), key=lambda one: one[0].encode())
        for _, one in visible:
            _refuse_outside(one, root, field)
        return _several(source, field, [(name, str(one)) for name, one in visible], root, chosen=True)
    path.stat()
    return (_single(source, field, str(path)),)


def _list_remote(source: Source, field: str) -> tuple[SourceFile, ...]:
    from data_contracts.sources.remote import check_url, find_remote

    check_url(source.path, field)
    found = find_remote(source.path)
    if found == [("", source.path)]:
        return (_single(source, field, source.path),)
    chosen = "*" in source.path
    visible = [(name, url) for name, url in found if not _is_hidden(name, "." if chosen else "._")]
    return _several(source, field, visible, source.path, chosen=chosen)


def _single(source: Source, field: str, location: str) -> SourceFile:
    layout = _format(source) or format_of(location)
    if layout is None:
        fix = f"say `format:`, or name it after one ({', '.join(FORMATS)}, each also .gz or .zst)"
        raise BadInput(location, field, "its name does not say what format it has", fix)
    return SourceFile(short_name(location), location, layout)


def _several(
    source: Source, field: str, named: Sequence[tuple[str, str]], root: Path | str, *, chosen: bool = False
) -> tuple[SourceFile, ...]:
    """Returns files of a folder or a pattern. A pattern means all that it matches; a folder what has a known format."""
    given = _format(source)
    if chosen and not named:
        raise BadInput(source.path, field, "cannot be read: it matches no file", "give a file, a folder or a pattern")
    if chosen and given:
        formats = {name: given for name, _ in named}
    else:
        formats = {name: layout for name, _ in named if (layout := format_of(name)) and given in (None, layout)}
    unknown = [name for name, _ in named if name not in formats]
    if chosen and unknown:
        raise BadInput(root, unknown[0], "its name does not say what format it has", "say `format:`, or narrow the pattern")
    if not formats:
        what = f"{given} file" if given else "file of a known format"
        raise BadInput(source.path, field, f"cannot be read: it holds no {what}", "give a file, a folder or a pattern")
    mixed = sorted(set(formats.values()))
    if len(mixed) > 1:
        problem = f"holds files of several formats ({', '.join(mixed)})"
        raise BadInput(source.path, field, problem, f"say `format: {mixed[0]}`, or give a pattern such as `*.{mixed[0]}`")
    prefix = source_name(source)
    return tuple(SourceFile(f"{prefix}/{name}", at, formats[name]) for name, at in named if name in formats)


def _walk(root: Path, field: str) -> list[tuple[str, str]]:
    """Returns (relative path, path) of every visible file below a folder, sorted; links to folders are not followed."""
    named = []
    for folder, folders, files in os.walk(root, onerror=_raise):
        for name in [*folders, *files]:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if not _is_hidden(relative) and path.is_symlink():
                _refuse_outside(path, root, field)
        named += [Path(folder, name) for name in files]
    return sorted(
        (
            (relative, str(path))
            for path in named
            if not _is_hidden(relative := path.relative_to(root).as_posix()) and path.is_file()
        ),
        key=lambda one: one[0].encode(),
    )


def _raise(error: OSError) -> None:
    raise error


def _refuse_outside(path: Path, root: Path, field: str) -> None:
    if not path.resolve().is_relative_to(root.resolve()):
        raise BadInput(path, field, f"leads out of {root}", "replace the link by the file, or give the file itself")


def _is_hidden(relative: str, marks: str = "._") -> bool:
    return any(part.startswith(tuple(marks)) for part in relative.split("/"))


def _path_of(location: str) -> str:
    """Returns a path, and of a URL what is one in it: bucket and key, without a query."""
    return "".join(urlsplit(location)[1:3]) if is_url(location) else location


def _is_pattern(path: str) -> bool:
    return any(character in path for character in MAGIC)


def _divide_pattern(path: str) -> tuple[Path, str]:
    """Divides a path with a pattern into the folder before the first part that is one, and the rest."""
    parts = Path(path).parts
    magic = next(i for i, part in enumerate(parts) if _is_pattern(part))
    return Path(*parts[:magic]), "/".join(parts[magic:])


def _format(source: Source) -> Format | None:
    return "jsonl" if source.kind == "jsonl" else source.format


def _unreadable(source: Source, field: str, reason: str) -> BadInput:
    return BadInput(source.path, field, f"cannot be read ({reason})", "give the path of a file that you may read")
