"""What an engine holds of weights, gradients and optimizer state, and what its communication takes for a moment."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.choices import ZERO_ENGINES, EngineName
from training.config import TrainingConfig
from training.deepspeed_file import execution_options
from training.hardware import Precision
from training.model import blocks_of, count_parameters
from training.quantize import Nf4Linear
from training.resources import Resources

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What each engine divides over the processes (Rajbhandari et al. 2020, ZeRO, figure 1).
DIVIDED: dict[EngineName, frozenset[str]] = {
    "single": frozenset(),
    "ddp": frozenset(),
    "fsdp2": frozenset({"optimizer", "gradients", "weights"}),
    "zero1": frozenset({"optimizer"}),
    "zero2": frozenset({"optimizer", "gradients"}),
    "zero3": frozenset({"optimizer", "gradients", "weights"}),
}
# Per weight: 4 bits and the doubly quantised scale of each block of 64 (Dettmers et al. 2023); never divided.
NF4_BYTES = 0.516
STATE_BYTES = {"adamw": 8, "adamw_8bit": 2, "muon": 4}  # per trained weight; Muon's matrices have one moment
REDUCED = 4  # bytes of a gradient on its way between processes: fp32, in every engine
# DeepSpeed's own settings, in weights, where its file does not say them.
REDUCE_BUCKET, MAX_LIVE = ("reduce_bucket_size", 500_000_000), ("stage3_max_live_parameters", 1_000_000_000)


@dataclass(frozen=True)
class Held:
    """Bytes of one process.

    Attributes:
        weights, gradients, optimizer: from step to step; of a sharded engine this process's share.
        moving: what is gathered from other processes and under way to them, when that is most.
    """

    weights: int
    gradients: int
    optimizer: int
    moving: int


@dataclass(frozen=True)
class _Sizes:
    """Numbers of weights: of the whole model, outside of its blocks, and of the largest block; and the trained ones."""

    total: int
    root: int
    block: int
    trained: int
    root_trained: int
    block_trained: int


def held_by(
    model: "PreTrainedModel", resources: Resources, training: TrainingConfig, precision: Precision, gpu: bool
) -> Held:
    """Returns what an engine holds of a model; what it keeps on the CPU for a GPU does not count."""
    sizes, processes, divided = _sizes_of(model), resources.processes, DIVIDED[resources.engine]
    zero, own = resources.engine in ZERO_ENGINES, _bytes_per_weight(resources.engine, precision)

    def share(part: str, size: int) -> int:
        return size // processes if part in divided else size

    packed = sum(part.in_features * part.out_features for part in model.modules() if isinstance(part, Nf4Linear))
    weights = share("weights", own * (sizes.total - packed)) + round(NF4_BYTES * packed)
    masters = share("optimizer", 4 * sizes.trained) if zero else 0  # DeepSpeed's flat copies, also in fp32
    optimizer = share("optimizer", STATE_BYTES[training.optimizer] * sizes.trained)
    away = resources.offload if gpu else "none"
    return Held(
        weights=0 if away == "all" else weights + (masters if away == "none" else 0),
        gradients=share("gradients", 4 * sizes.trained),
        optimizer=optimizer if away == "none" else 0,
        moving=_moving(sizes, resources, precision, gpu),
    )


def _moving(sizes: _Sizes, resources: Resources, precision: Precision, gpu: bool) -> int:
    """Returns the bytes that communication needs beside what is held."""
    engine, processes = resources.engine, resources.processes
    copies = 1 if gpu else 2  # gloo reduces a copy of what it is given
    if engine == "ddp":
        return 4 * sizes.trained  # gradients lie in buckets too
    if engine == "fsdp2":
        computed = 4 if precision == "fp32" else 2
        # The root stays gathered. A block and the next one do, each in the flat buffer that it came in and as weights.
        gathered = computed * (sizes.root + 4 * sizes.block)
        # A block's gradients: as they are computed, and flat to be reduced, while those of the one before still are.
        block = sizes.block_trained * (computed + REDUCED * (1 + copies) + REDUCED // processes)
        # The root's come last.
        root = sizes.root_trained * (computed + REDUCED * copies + REDUCED // processes)
        return gathered + block + root
    if engine not in ZERO_ENGINES:
        return 0
    own = _bytes_per_weight(engine, precision)
    options = execution_options(resources.deepspeed_config).get("zero_optimization", {})
    room = int(float(options.get(*REDUCE_BUCKET)))
    # The bucket that gradients wait in is allocated whole; of a CPU's memory it takes what is written into it.
    waiting, bucket = min(sizes.trained, room), room if gpu else min(sizes.trained, room)
    converted = REDUCED * waiting if own < REDUCED else 0
    if engine == "zero1":  # waits as it is reduced, then lies flat for the optimizer
        return REDUCED * bucket + REDUCED * sizes.trained // processes
    if engine == "zero2":
        return own * bucket + converted + REDUCED * sizes.trained // processes
    # Stage 3 reduces one flat tensor of the whole bucket. Weights that were gathered stay as long as there is room.
    gathered = own * min(sizes.total, int(float(options.get(*MAX_LIVE))))
    return gathered + own * bucket + converted + copies * REDUCED * waiting


def _bytes_per_weight(engine: EngineName, precision: Precision) -> int:
    """Returns the bytes of a weight in the layers: DeepSpeed's are bf16 where the products are, over fp32 masters."""
    return 2 if engine in ZERO_ENGINES and precision == "bf16" else 4


def _sizes_of(model: "PreTrainedModel") -> _Sizes:
    total, trained = count_parameters(model)
    blocks = [count_parameters(block) for block in blocks_of(model)] or [(0, 0)]
    inside, inside_trained = (sum(counts) for counts in zip(*blocks, strict=True))
    block, block_trained = (max(counts) for counts in zip(*blocks, strict=True))
    return _Sizes(total, total - inside, block, trained, trained - inside_trained, block_trained)
