"""What the hardware is called, and what it computes quickly."""

import os
from pathlib import Path
from typing import Literal

Precision = Literal["bf16", "fp16", "fp32", "fp8"]
CPUINFO = Path("/proc/cpuinfo")
# AVX-512 BF16 and AMX on x86, BF16 on Arm. Without them a CPU converts every number first: on an Ice Lake Xeon, bf16
# trained at 1,375 tokens/s and fp32 at 3,427 (docs/LOG.md).
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

# What torch's libraries read once. Micro-batches have as many targets as it happens: without expandable segments a GPU's
# memory falls to pieces of sizes that never recur. cuBLAS computes the same each time where every product has memory of
# its own (`training.repeatable`).
GPU_ENVIRONMENT = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def prepare_gpus() -> None:
    """Sets what GPUs compute with, where the environment does not say it. To be called before torch is imported."""
    for name, value in GPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def quickest_precision(device: str) -> Precision:
    """Returns `bf16` where the device (`cpu` or `cuda`) has instructions for bf16 matrix products, else `fp32`."""
    if device == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if BF16_FLAGS & cpu_flags() else "fp32"


def cpu_flags() -> frozenset[str]:
    """Returns the instruction sets that Linux names for the first core; none where there is no `/proc/cpuinfo`."""
    return frozenset(_cpuinfo("flags", "Features").split())


def cpu_name() -> str:
    """Returns the processor's name, `cpu` where Linux does not say it."""
    return _cpuinfo("model name") or "cpu"


def _cpuinfo(*keys: str) -> str:
    """Returns what Linux says of the first core under the first of these keys; "" where there is no `/proc/cpuinfo`."""
    if not CPUINFO.is_file():
        return ""
    for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in keys:
            return value.strip()
    return ""
