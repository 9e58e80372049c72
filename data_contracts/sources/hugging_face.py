"""Records of data sets of the library `datasets`: a folder that `save_to_disk` wrote, or one of the hub, by its name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_contracts.config import Source
from data_contracts.sources.places import SourceFile
from data_contracts.sources.records import Fault, Record
from data_contracts.sources.tables import BATCH, row_records
from lineage.errors import BadInput


def read_saved(folder: Path, split: str) -> Iterator[Record | Fault]:
    """Yields the rows of a saved data set, which stays mapped from disk; of several splits, the named one or `train`.

    Raises:
        BadInput: the folder is not whole, leads out of itself, or has no such split.
    """
    chosen = _choose_split(folder, split)
    _check_files(chosen)
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_from_disk(str(chosen))
    except Exception as error:  # what it raises depends on which of its files is wrong
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(chosen, "", f"is no whole data set ({reason})", "save it again with `save_to_disk`") from None
    passed = 0
    for batch in rows.iter(batch_size=BATCH):
        names = list(batch)
        values = [dict(zip(names, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]
        yield from row_records(values, passed)
        passed += len(values)


def find_on_hub(source: Source, field: str) -> SourceFile:
    """Returns a data set of the hub at the commit that its revision is now.

    Raises:
        BadInput: there is no network, or no such data set.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        problem = "is a data set of the hub, but HF_HUB_OFFLINE is set"
        raise BadInput(f"`{source.path}`", field, problem, "unset it, or give the path of files that you have")
    try:
        commit = HfApi().dataset_info(source.path, revision=source.revision or None).sha
    except Exception as error:
        raise _refused(source, field, error) from None
    return SourceFile(source.path.rpartition("/")[2], f"hf://datasets/{source.path}", "hub", str(commit))


def read_hub(source: Source, commit: str, field: str) -> Iterator[Record | Fault]:
    """Yields the rows of a data set of the hub, as they arrive.

    Raises:
        BadInput: it cannot be reached, or has no such subset or split.
    """
    import datasets

    if Path(source.path).exists():  # `datasets` would take it for the data set, whatever the commit
        fix = "run from another folder, or leave out `kind: hub` to read this one"
        raise BadInput(source.path, field, "is the name of a folder here, too", fix)
    datasets.disable_progress_bars()
    try:
        rows: Any = datasets.load_dataset(
            source.path, source.subset or None, split=source.split or "train", revision=commit, streaming=True
        )
        for number, value in enumerate(rows):
            yield from row_records([value], number)
    except Exception as error:
        raise _refused(source, field, error) from None


def _refused(source: Source, field: str, error: Exception) -> BadInput:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    fix = "check the name, `subset:`, `split:`, the network, and HF_TOKEN for a private one"
    return BadInput(f"`{source.path}`", field, f"the hub gave nothing ({reason})", fix)


def _choose_split(folder: Path, split: str) -> Path:
    listing = folder / "dataset_dict.json"
    if not listing.is_file():
        if split:
            raise BadInput(folder, split, "is a split, but the folder holds one data set alone", "leave `split:` out")
        return folder
    splits = _read_json(listing).get("splits", [])
    wanted = split or "train"
    if wanted not in splits:
        raise BadInput(folder, "split", f"there is no `{wanted}` in it", f"say `split:` with one of {', '.join(splits)}")
    return folder / wanted


def _check_files(folder: Path) -> None:
    """Refuses a data set whose list of files names others than its own."""
    files = [entry.get("filename", "") for entry in _read_json(folder / "state.json").get("_data_files", [])]
    for name in [folder.name, *files]:
        path = folder / name if name in files else folder
        if Path(name).name != name or not path.resolve().is_relative_to(folder.parent.resolve()):
            raise BadInput(folder / "state.json", str(name), "leads out of the folder", "save it again with `save_to_disk`")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(path, "", f"cannot be read ({error})", "save the data set again with `save_to_disk`") from None
    if not isinstance(value, dict):
        raise BadInput(path, "", "is no object", "save the data set again with `save_to_disk`")
    return value
