"""What the data stage is run with: a job file as flows write it, or a recipe, of which it takes the `data:` section."""

from pathlib import Path
from typing import Any

from data_contracts.config import DataConfig
from data_contracts.sources.listing import absolute_path
from lineage.bundle import MANIFEST
from lineage.job import Job, load_stage
from lineage.section import parse, read_yaml


def load_data_job(path: Path) -> tuple[Job, DataConfig]:
    """Reads a job file or a recipe. Paths in it are relative to its own folder.

    Raises:
        BadInput: naming file and field.
    """
    value = read_yaml(path)
    if "data" not in value:
        job, config = load_stage(path, DataConfig)
    else:
        given = {
            "name": value.get("name"),
            "version": str(value.get("version", "")),
            "stage": "data",
            "config": value["data"],
        }
        job = parse(Job, given, path)
        config = parse(DataConfig, value["data"], path, "data")
    config = resolve_paths(config, path.absolute().parent)
    return job.model_copy(update={"config": config.model_dump(mode="json")}), config


def resolve_paths(config: DataConfig, folder: Path) -> DataConfig:
    """Returns the section with absolute paths."""

    def absolute(path: str) -> str:
        return str((folder / path).resolve()) if path else ""

    changed: dict[str, Any] = {name: absolute(getattr(config, name)) for name in ("tokenizer", "chat_template")}
    changed["decontaminate_against"] = tuple(map(absolute, config.decontaminate_against))
    if config.toxicity.endswith(".txt"):
        changed["toxicity"] = absolute(config.toxicity)
    changed["sources"] = [
        source.model_copy(update={"path": absolute_path(source.path, source.kind, folder)}) for source in config.sources
    ]
    return config.model_copy(update=changed)


def tokenizer_folder(job: Job) -> Path | None:
    """Returns where a base model's tokenizer is: the parent `tokenizer` itself, or the bundle of that stage."""
    parent = job.parents.get("tokenizer")
    if parent is None or (parent / MANIFEST).is_file():
        return parent
    return parent / "bundle" if (parent / "bundle" / MANIFEST).is_file() else parent
