"""What a recipe's training will take on this machine: memory, time, money; and whether it fits."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from flows.calibrate import known_speed
from flows.plan import resolve_base

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from flows.settings import Settings
    from training.estimate import Place, Stage
    from training.resources import Resources

NVIDIA = Path("/dev/nvidia0")


def forecast(recipe: "Recipe", objective: str, settings: "Settings") -> dict[str, Any]:
    """Returns one training stage's parameters, memory (bytes, by part), arithmetic, time (seconds) and cost.

    `speed` says what the time follows from: `calibrated` (this very stage was measured here), `device` (another one was),
    or `table`.
    """
    from training.estimate import TOKENS_PER_PARAMETER, estimate

    stage, place = stage_of(recipe, objective, settings), place_for(recipe.resources)
    rate, speed = known_speed(settings, stage, place)
    found = estimate(stage, place, rate)
    view: dict[str, Any] = {
        "parameters": found.parameters,
        "trained_parameters": found.trained,
        "memory_bytes": found.memory.total,
        "memory": vars(found.memory),
        "tokens": found.tokens,
        "flops": found.flops,
        "seconds": found.seconds,
        "speed": speed,
    }
    if (price := _price(place, recipe.resources.processes)) is not None:
        view["cost"] = price * found.seconds / 3600
    if place.memory_bytes is not None and found.memory.total > place.memory_bytes:
        view["warning"] = _does_not_fit(stage, place, found.memory.total)
    if objective == "pretrain":
        optimal = TOKENS_PER_PARAMETER * found.parameters
        view["hint"] = f"{found.tokens:,} tokens; compute-optimal for {found.parameters:,} parameters are about {optimal:,}"
    return view


def stage_of(recipe: "Recipe", objective: str, settings: "Settings") -> "Stage":
    """Returns a recipe's training stage as the training room knows it before it runs."""
    from training.estimate import Stage

    base = resolve_base(recipe, settings)
    return Stage(
        model=recipe.model,
        training=getattr(recipe, objective),
        resources=recipe.resources,
        base=base,
        vocabulary=_vocabulary(base) if base else recipe.data.vocab_size,
        seq_len=recipe.data.seq_len,
    )


def place_for(resources: "Resources") -> "Place":
    """Returns where processes would run if they ran here."""
    from training.estimate import Place

    gpu = resources.device == "cuda" or (resources.device == "auto" and NVIDIA.exists())
    threads = resources.threads or max(1, len(os.sched_getaffinity(0)) // resources.processes)
    memory = _gpu_memory() if gpu else psutil.virtual_memory().total // resources.processes
    return Place(gpu=gpu, threads=threads, memory_bytes=memory)


def _does_not_fit(stage: "Stage", place: "Place", needed: int) -> str:
    from training.fit import cheapest_fit

    assert place.memory_bytes is not None
    setting = cheapest_fit(stage, place)
    fix = f"the cheapest setting that does is {setting}" if setting else "no setting that is known here does"
    return f"needs {needed / 2**30:.1f} GiB, and a process has {place.memory_bytes / 2**30:.1f} GiB: it will not fit; {fix}"


def _price(place: "Place", processes: int) -> float | None:
    import torch

    from training.prices import price_of_hour

    if place.gpu and not torch.cuda.is_available():
        return None  # which GPU it will be is not known here
    return price_of_hour(torch.device("cuda" if place.gpu else "cpu"), processes, place.threads)


def _gpu_memory() -> int | None:
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _vocabulary(base: Path) -> int:
    values = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return int(values.get("text_config", values)["vocab_size"])
