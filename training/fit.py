"""What to change where a stage does not fit: the cheapest setting that does."""

from collections.abc import Iterator
from dataclasses import replace

from lineage.errors import BadInput
from training.engine_memory import DIVIDED
from training.estimate import Place, Stage, memory_of

RECOMPUTE = "activation_checkpointing: full"
LORA_RANK = 16


def cheapest_fit(stage: Stage, place: Place) -> str:
    """Returns the setting that makes a stage fit, as a recipe writes it; "" where none that is known does.

    In the order of what they cost: smaller micro-batches cost next to nothing, checkpointing repeats the forward pass (a
    third more arithmetic), dividing the state over more processes costs hardware. Adapters come last: they train something
    else.
    """
    if place.memory_bytes is None:
        return ""
    for words, changed in _changes(stage, place.gpu):
        if _fits(changed, place, place.memory_bytes):
            return words
    return ""


def _fits(stage: Stage, place: Place, memory_bytes: int) -> bool:
    """Whether a stage fits; what cannot be trained so, such as a model that recomputes nothing, does not."""
    try:
        return memory_of(stage, place).total <= memory_bytes
    except BadInput:
        return False


def _changes(stage: Stage, gpu: bool) -> Iterator[tuple[str, Stage]]:
    """Yields changes with their words, the cheapest first."""
    training, resources = stage.training, stage.resources
    rows = training.rows_per_step // resources.processes
    smaller = [n for n in range(training.accumulation + 1, rows + 1) if rows % n == 0]
    for number in smaller:
        yield f"accumulation: {number}", _train(stage, accumulation=number)
    recomputing = resources.model_copy(update={"activation_checkpointing": "full"})
    checkpointed = replace(stage, resources=recomputing)
    for number in [training.accumulation, *smaller]:
        yield f"{RECOMPUTE}, accumulation: {number}", _train(checkpointed, accumulation=number)
    counts = [resources.processes] if resources.processes > 1 and not DIVIDED[resources.engine] else []
    counts += [n for n in range(resources.processes + 1, training.rows_per_step + 1) if training.rows_per_step % n == 0]
    for number in (n for n in counts if n % resources.nodes == 0):
        turns = training.rows_per_step // number
        words = f"resources: {{processes: {number}, engine: fsdp2}}, {RECOMPUTE}, accumulation: {turns}"
        sharing = recomputing.model_copy(update={"processes": number, "engine": "fsdp2"})
        where = "GPU" if gpu else "machine like this one"
        yield f"{words}, each process on a {where}", replace(_train(checkpointed, accumulation=turns), resources=sharing)
    if not training.lora_rank and training.optimizer != "muon":  # it trains whole matrices
        words = f"lora_rank: {LORA_RANK}, {RECOMPUTE}, accumulation: {rows}, which trains adapters alone"
        yield words, _train(checkpointed, lora_rank=LORA_RANK, accumulation=rows)


def _train(stage: Stage, **changes: object) -> Stage:
    return replace(stage, training=stage.training.model_copy(update=changes))
