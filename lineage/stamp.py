"""Where a result came from: the commit of the code, whether the code was changed since, and the versions under it."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lineage.section import Section

CODE_FOLDER = Path(__file__).resolve().parent.parent
CODE = ("lineage", "data_contracts", "training", "evaluation", "serving", "flows", "pyproject.toml", "constraints.txt")
STACK = ("torch", "transformers", "tokenizers", "peft", "accelerate", "deepspeed", "lm_eval", "great_expectations", "dvc")


class Stamp(Section):
    """The provenance of one stage run.

    Attributes:
        commit: the code's git commit, or "unknown" outside a git checkout.
        dirty: whether code differs from that commit (always true where the commit is unknown). Such a tree may run
            but may not register a model.
        config_sha256: sha256 of the stage's canonical configuration.
        data_version: the DVC version of the data that the stage wrote or read, "" before there is one.
        python: the interpreter's version.
        packages: the versions of the libraries that shape a result.
    """

    commit: str
    dirty: bool
    config_sha256: str
    data_version: str
    python: str
    packages: dict[str, str]


def make_stamp(config_sha256: str, data_version: str) -> Stamp:
    """Returns the stamp of this code, interpreter and stack for one configuration."""
    commit, dirty = code_state()
    packages = {name: found for name in STACK if (found := _version(name))}
    return Stamp(
        commit=commit,
        dirty=dirty,
        config_sha256=config_sha256,
        data_version=data_version,
        python=platform.python_version(),
        packages=packages,
    )


@cache
def code_state() -> tuple[str, bool]:
    """Returns the code's commit and whether the code folders differ from it."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return "unknown", True
    return commit, bool(_git("status", "--porcelain", "--", *CODE))


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(CODE_FOLDER), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # an installed wheel has no repository; the stamp then says "unknown"
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
