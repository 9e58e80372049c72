"""Files of other launchers, `accelerate`'s and DeepSpeed's: what they say, in Goldpath's words, and whether it fits."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lineage.errors import BadInput
from lineage.section import parse
from training.config import TrainingConfig
from training.resources import Resources

AUTO = "auto"  # in these files: what the recipe says


@dataclass
class Said:
    """What a file says.

    Attributes:
        path: the file.
        resources: fields of `Resources`, each with its value and the file's own key.
        training: fields of `TrainingConfig`; all but `precision` must be the recipe's already.
        unused: keys that have no effect here.
    """

    path: Path
    resources: dict[str, tuple[Any, str]] = field(default_factory=dict)
    training: dict[str, tuple[Any, str]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def refuse(self, key: str, problem: str, fix: str) -> BadInput:
        """Returns the error about one of the file's keys."""
        return BadInput(self.path, key, problem, fix)

    def section(self, within: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Returns a section of the file, {} where it is absent or null.

        Args:
            key: with the sections that it lies in, as the error names it; its last part is looked up.

        Raises:
            BadInput: it is something else than a section.
        """
        value = within.get(key.rpartition(".")[2])
        if value is not None and not isinstance(value, dict):
            raise self.refuse(key, f"is `{value}`, and no section", "write it as the launcher's documentation does")
        return value or {}


def settle(
    resources: Resources, training: TrainingConfig, where: Path | str, tell: bool = True
) -> tuple[Resources, TrainingConfig]:
    """Returns what is asked for, with what the launcher's files say filled in; once settled it stays the same.

    Args:
        where: the file that names the launcher's files: their paths are absolute, or relative to its folder.
        tell: name the keys that have no effect, on stderr.

    Raises:
        BadInput: a file cannot be read, has a key that is unknown or impossible here, or contradicts the recipe.
    """
    from training.accelerate_file import read_accelerate
    from training.deepspeed_file import read_deepspeed

    for name, read in (("accelerate_config", read_accelerate), ("deepspeed_config", read_deepspeed)):
        if not getattr(resources, name):
            continue
        path = (Path(where).parent / getattr(resources, name)).resolve()
        said = read(path)
        said.resources[name] = (str(path), "")
        resources = _settled(resources, said, where)
        parse(Resources, resources.model_dump(), path)
        training = _agreed(training, said, where, resources.processes)
        if said.unused and tell and os.environ.get("RANK", "0") == "0":
            print(f"{path}: without effect here: {', '.join(sorted(said.unused))}", file=sys.stderr)
    parse(Resources, {**resources.model_dump(), "accelerate_config": "", "deepspeed_config": ""}, where, "resources")
    return resources, training


def _settled(resources: Resources, said: Said, where: Path | str) -> Resources:
    for name, (value, key) in said.resources.items():
        written = getattr(resources, name)
        if key and name in resources.model_fields_set and written not in (value, AUTO):
            raise _contradiction(said, key, value, f"resources.{name}", written, where)
    return resources.model_copy(update={name: value for name, (value, _) in said.resources.items()})


def _agreed(training: TrainingConfig, said: Said, where: Path | str, processes: int) -> TrainingConfig:
    precision, key = said.training.get("precision", (AUTO, ""))
    if training.precision == AUTO:
        training = training.model_copy(update={"precision": precision})
    elif precision not in (AUTO, training.precision):
        raise _contradiction(said, key, precision, "precision", training.precision, where)
    micro_batch = training.rows_per_step // (processes * training.accumulation)
    recipe: Mapping[str, Any] = {**training.model_dump(), "rows of each process at a time": micro_batch}
    for name, (value, key) in said.training.items():
        if name != "precision" and value not in (AUTO, recipe[name]):
            raise _contradiction(said, key, value, name, recipe[name], where)
    return training


def _contradiction(said: Said, key: str, value: Any, name: str, written: Any, where: Path | str) -> BadInput:
    problem = f"is `{value}`, but {where} says {name} `{written}`"
    return said.refuse(key, problem, f"write the same in both, or `{AUTO}` or nothing in {said.path.name}")


def as_choice(said: Said, key: str, value: Any, choices: Mapping[Any, Any]) -> Any:
    """Returns what a value means.

    Raises:
        BadInput: it is none of the choices.
    """
    for choice, meaning in choices.items():
        if value == choice:
            return meaning
    known = ", ".join(f"`{choice}`" for choice in choices)
    raise said.refuse(key, f"is `{value}`, which Goldpath does not have", f"choose from {known}")
