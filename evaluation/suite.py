"""A suite: which tasks are asked, each an lm-eval task file that names its golden set and its one metric."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from evaluation.config import Direction, EvaluationConfig
from lineage.errors import BadInput
from lineage.files import sha256_file
from lineage.section import Section, parse, read_yaml

SHIPPED = Path(__file__).parent / "suites"


class SuiteFile(Section):
    """A suite file: its name, and its tasks in the order in which they are asked."""

    name: str
    tasks: list[str] = Field(min_length=1)


@dataclass(frozen=True)
class TaskFile:
    """One task: its file, the golden set that it asks, and its metric.

    Attributes:
        metric: the name within the task; `full_name` is the one that scores and policies use.
        direction: which way is better.
    """

    name: str
    path: Path
    golden: str
    metric: str
    direction: Direction

    @property
    def full_name(self) -> str:
        return f"{self.name}.{self.metric}"


@dataclass(frozen=True)
class Suite:
    """A suite file that was read, with its tasks."""

    name: str
    path: Path
    tasks: tuple[TaskFile, ...]


def load_suite(named: str) -> Suite:
    """Reads a suite and its task files.

    Args:
        named: a shipped suite's name, or the path of a suite file. Its tasks are files beside it, or shipped ones.

    Raises:
        BadInput: naming the file and the field.
    """
    path = find_suite(named)
    suite = parse(SuiteFile, read_yaml(path), path)
    return Suite(suite.name, path, tuple(_load_task(path, name) for name in suite.tasks))


def find_suite(named: str) -> Path:
    """Returns the file of a suite, by path or by the name of a shipped one."""
    shipped = SHIPPED / f"{named}.yaml"
    path = shipped if "/" not in named and shipped.is_file() else Path(named)
    if not path.is_file():
        raise BadInput(
            path, "evaluation.suite", "there is no such suite", f"take one of {', '.join(_shipped())}, or a file"
        )
    return path


def suite_digests(config: EvaluationConfig) -> dict[str, str]:
    """Returns a sha256 for each file of a suite that Goldpath does not ship: such files are inputs of the stage.

    Shipped suites are code, and the stamp names the code's commit. Cheap: no heavy import.
    """
    path = find_suite(config.suite)
    if path.parent == SHIPPED:
        return {}
    suite = load_suite(config.suite)
    return {f"suite/{file.name}": sha256_file(file) for file in [path, *(task.path for task in suite.tasks)]}


def _shipped() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml") if "tasks" in read_task(path))


def read_task(path: Path) -> dict[str, Any]:
    """Reads a task file without importing the functions that it names.

    Raises:
        BadInput: the file is missing or is no YAML mapping.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_FunctionsAsText)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(
            path, "", f"is not a readable task file ({type(error).__name__})", "see evaluation/suites/"
        ) from None
    if not isinstance(value, dict):
        raise BadInput(path, "", "does not hold a mapping of keys", "see evaluation/suites/")
    return value


class _FunctionsAsText(yaml.SafeLoader):
    """Reads lm-eval's `!function module.name` as its text."""


_FunctionsAsText.add_constructor("!function", lambda _loader, node: node.value)


def _load_task(suite: Path, name: str) -> TaskFile:
    folders = [suite.parent, SHIPPED]
    path = next((folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()), None)
    if path is None:
        raise BadInput(suite, f"tasks.{name}", f"there is no {name}.yaml beside it", "write it, or remove the task")
    task = read_task(path)
    if task.get("task") != name:
        raise BadInput(path, "task", f"is {json.dumps(task.get('task'))}", f"name it `{name}` like its file")
    metrics = task.get("metric_list")
    if not (isinstance(metrics, list) and len(metrics) == 1 and isinstance(metrics[0], Mapping)):
        raise BadInput(path, "metric_list", "does not hold exactly one metric", "leave the one that decides")
    metric = metrics[0]
    if not isinstance(metric.get("higher_is_better"), bool):
        raise BadInput(path, "metric_list.higher_is_better", "is missing", "say true or false")
    golden = (task.get("metadata") or {}).get("golden", name)
    return TaskFile(name, path, golden, metric["metric"], "higher" if metric["higher_is_better"] else "lower")
