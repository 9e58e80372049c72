"""Turns an allocator's last words into what to change."""

import torch

from lineage.errors import GoldpathError
from training.config import TrainingConfig
from training.resources import Resources

# torch has a type for GPUs only; on the CPU it is a RuntimeError of c10's allocator.
CPU_ALLOCATOR = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    on_cpu = isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error)
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


def out_of_memory(error: BaseException, training: TrainingConfig, resources: Resources) -> GoldpathError:
    """Returns the error that a person can act on: what lowers memory and is not at its limit yet, the cheapest first."""
    rows = training.rows_per_step // (resources.processes * training.accumulation)
    fixes = []
    if rows > 1:
        fixes.append(f"`accumulation: {training.accumulation * 2}` (a process holds {rows} rows at a time; same result)")
    if resources.activation_checkpointing != "full":
        fixes.append("`activation_checkpointing: full` under `resources:` (slower by a third; same result)")
    if resources.engine in ("single", "ddp"):
        fixes.append("`engine: fsdp2` with more `processes` (weights and optimizer state are divided)")
    if not training.lora_rank and training.objective != "pretrain":
        fixes.append("`lora_rank: 16` (another result: only adapters are trained)")
    fixes.append("a shorter `seq_len` under `data:`, or a smaller model")
    first_line = str(error).strip().partition("\n")[0][:200]
    return GoldpathError(f"out of memory ({first_line}). Fix: {'; or '.join(fixes)}. `goldpath plan` says what will fit")
