"""What a recipe's training will take on this machine: memory, time, money; and whether it fits."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from flows.calibrate import known_speed
from flows.plan import resolve_base
from lineage.errors import BadInput

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from flows.settings import Settings
    from training.estimate import Place, Stage
    from training.resources import Resources

NVIDIA = Path("/dev/nvidia0")


def forecast(recipe: "Recipe", objective: str, settings: "Settings", data: Path | None = None) -> dict[str, Any]:
    """Returns one training stage's parameters, memory (bytes, by part), rows, arithmetic, time (seconds) and cost.

    `speed` says what the time follows from: `calibrated` (this very stage was measured here), `device` (another one was),
    or `table`. `rows` says whether they are those of the data version, or assumed.

    Args:
        data: the folder of the recipe's data stage, where it has finished.
    """
    from training.estimate import TOKENS_PER_PARAMETER, estimate

    stage, place = stage_of(recipe, objective, settings, data), place_for(recipe.resources)
    rate, speed = known_speed(settings, stage, place)
    found = estimate(stage, place, rate)
    rows = _rows(stage)
    view: dict[str, Any] = {
        "parameters": found.parameters,
        "trained_parameters": found.trained,
        "precision": stage.precision(place.gpu),
        "processes": recipe.resources.processes,
        "memory_bytes": found.memory.total,
        "memory": vars(found.memory),
        "rows": rows,
        "tokens": found.tokens,
        "flops": found.flops,
        "seconds": found.seconds,
        "speed": speed,
    }
    if (price := _price(place, recipe.resources.processes)) is not None:
        view["cost"] = price * found.seconds / 3600
    if place.memory_bytes is not None and found.memory.total > place.memory_bytes:
        view["warning"] = _does_not_fit(stage, place, found.memory.total)
    if (nodes := recipe.resources.nodes) > 1:
        view["nodes"] = nodes
        view["note"] = (
            f"each of {nodes} nodes is taken to be like this machine; what they tell each other over the network takes "
            "further time that is not known here"
        )
    if not stage.rows.is_counted:
        view["assumption"] = _assumption(stage)
    if objective == "pretrain":
        optimal = TOKENS_PER_PARAMETER * found.parameters
        epochs = f" ({rows['epochs']:.3g} epochs of the data)" if "epochs" in rows else ""
        view["hint"] = (
            f"{found.tokens:,} tokens{epochs}; compute-optimal for {found.parameters:,} parameters are about {optimal:,} "
            f"(Chinchilla), which is `steps: {-(-optimal // stage.tokens_per_step)}`"
        )
    return view


@contextmanager
def told_of(recipe_file: Path, objective: str) -> Iterator[None]:
    """Makes an error about a job, which nobody has written, one about the recipe that it would follow from."""
    try:
        yield
    except BadInput as error:
        if error.where not in ("job.yaml", "recipe"):
            raise
        field = "model.max_positions" if error.field == "max_positions" else error.field
        field = field.replace("config.training", objective)
        raise BadInput(recipe_file, field, error.problem, error.fix) from None


def stage_of(recipe: "Recipe", objective: str, settings: "Settings", data: Path | None = None) -> "Stage":
    """Returns a recipe's training stage as the training room knows it before it runs.

    Args:
        data: the folder of the recipe's data stage, where it has finished.

    Raises:
        BadInput: the stage cannot be trained as the recipe says, or from that data.
    """
    from training.batches import PackedRows
    from training.estimate import Stage
    from training.launch_files import settle
    from training.row_shape import count_rows

    base = resolve_base(recipe, settings)
    resources, training = settle(recipe.resources, getattr(recipe, objective), "recipe", tell=False)
    counted = None
    if data:
        rows = PackedRows(data, training.objective, "train")
        PackedRows(data, training.objective, "validation")  # or the stage would end before its first step
        if rows.num_rows < resources.processes:
            problem = f"holds {rows.num_rows} packed rows, fewer than the {resources.processes} processes"
            raise BadInput(rows.path, "", problem, "use fewer processes, more data, or a smaller `data: seq_len`")
        counted = count_rows(rows)
    return Stage(
        model=recipe.model,
        training=training,
        resources=resources,
        base=base,
        vocabulary=_vocabulary(recipe, base, data),
        seq_len=counted.seq_len if counted else recipe.data.seq_len,
        counted=counted,
    )


def place_for(resources: "Resources") -> "Place":
    """Returns where processes would run if every node were like this machine."""
    from training.estimate import Place

    gpu = resources.device == "cuda" or (resources.device == "auto" and NVIDIA.exists())
    processes = resources.processes // resources.nodes
    threads = resources.threads or max(1, len(os.sched_getaffinity(0)) // processes)
    memory = _gpu_memory() if gpu else psutil.virtual_memory().total // processes
    return Place(gpu=gpu, threads=threads, memory_bytes=memory)


def _rows(stage: "Stage") -> dict[str, Any]:
    """Returns what an epoch of the data holds, or what a row is taken to hold."""
    rows, learnt = stage.rows, stage.training.steps * stage.training.rows_per_step
    if not rows.is_counted:
        return {"counted": False, "target_share": rows.target_share}
    number = len(rows.tokens)
    return {
        "counted": True,
        "target_share": rows.target_share,
        "rows": number,
        "tokens": int(rows.tokens.sum()),
        "targets": int(rows.targets.sum()),
        "steps_per_epoch": number / stage.training.rows_per_step,
        "epochs": learnt / number,
    }


def _assumption(stage: "Stage") -> str:
    from training.row_shape import DOCUMENTS

    what = {1: "one document", 2: "one pair"}[DOCUMENTS[stage.training.objective]]
    return (
        f"the data is not built yet, so rows are taken to be full, each {what}, with {stage.rows.target_share:.0%} of the "
        "tokens to learn; after `goldpath run RECIPE --only data` they are counted"
    )


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


def _vocabulary(recipe: "Recipe", base: Path | None, data: Path | None) -> int:
    """Returns how many tokens the model will know: the data version's, else those that it will be made with."""
    from training.model import config_of
    from training.vocabulary import Vocabulary

    rows = config_of(base).get_text_config().vocab_size if base else 0
    own = recipe.data.tokenizer if recipe.model.grow_vocabulary or not base else ""
    if data:
        tokens = Vocabulary(data / "tokenizer").size
    elif own:
        tokens = Vocabulary(Path(own)).size + len(recipe.data.add_tokens)
    else:
        tokens = len(recipe.data.add_tokens) + Vocabulary(base).size if base else recipe.data.vocab_size
    return max(tokens, rows)
