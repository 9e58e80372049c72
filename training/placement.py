"""What an engine can do: asked before anything is placed, so that what cannot be is an error and no silent fallback."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from lineage.errors import BadInput
from training.choices import ZERO_ENGINES, EngineName

if TYPE_CHECKING:
    from training.config import TrainingConfig
    from training.resources import Resources

WHOLE_MATRICES: tuple[EngineName, ...] = ("single", "ddp", "fsdp2")
WHOLE_WEIGHTS: tuple[EngineName, ...] = ("single", "ddp")


def require_possible(resources: "Resources", training: "TrainingConfig") -> None:
    """Checks engine and optimizer against each other, and that their libraries are there.

    Raises:
        BadInput: naming what can be chosen instead.
    """
    engine, optimizer = resources.engine, training.optimizer
    if engine in ZERO_ENGINES:
        _require_library("deepspeed", "resources.engine", f"`{engine}`", "choose `fsdp2`")
    if optimizer == "adamw_8bit":
        _require_library("bitsandbytes", "config.training.optimizer", "`adamw_8bit`", "choose `adamw`")
    if training.precision == "fp8" and engine in ZERO_ENGINES:
        choice = " or ".join(f"`engine: {one}`" for one in WHOLE_MATRICES)
        problem = f"`fp8` is not for engine `{engine}`, which has layers of its own"
        raise BadInput("job.yaml", "config.training.precision", problem, f"choose {choice}, or `precision: bf16`")
    if optimizer == "muon" and engine not in WHOLE_MATRICES:
        _refuse_optimizer("`muon` needs whole matrices", engine, WHOLE_MATRICES)
    if optimizer == "adamw_8bit" and engine not in WHOLE_WEIGHTS:
        _refuse_optimizer("`adamw_8bit` scales its state by blocks of whole weights", engine, WHOLE_WEIGHTS)


def _require_library(name: str, field: str, what: str, otherwise: str) -> None:
    if find_spec(name) is None:
        raise BadInput("job.yaml", field, f"{what} needs {name}, which is not installed", f"install it, or {otherwise}")


def _refuse_optimizer(reason: str, engine: str, able: tuple[EngineName, ...]) -> None:
    choice = " or ".join(f"`engine: {one}`" for one in able)
    problem = f"{reason}, and engine `{engine}` divides them"
    raise BadInput("job.yaml", "config.training.optimizer", problem, f"choose {choice}, or optimizer `adamw`")
