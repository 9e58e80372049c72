"""The roofline: how quickly this device multiplies matrices of this model's shape, measured here and now."""

import time
from typing import TYPE_CHECKING

import torch
from torch import nn

from training.hardware import Precision
from training.model import plain_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SECONDS = 0.2  # of measurement
MAX_ROWS = 4096  # more do not make a product quicker
BURST = 16  # products between two waits: waiting for a GPU costs a tenth of one product
# For fp8 the bf16 peak is the yardstick, as usual: parts of the model always compute in bf16.
TYPES: dict[Precision, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8": torch.bfloat16,
}


def measured_peak(device: torch.device, precision: Precision, rows: int, inside: int, outside: int) -> float:
    """Returns the floating-point operations per second of a (rows, inside) x (inside, outside) product, the best of many.

    Not cached: it takes a fifth of a second, and a figure from a busier hour would be no peak.
    """
    rows = min(rows, MAX_ROWS)
    # Random numbers: on equal ones a GPU's transistors hardly switch, and it is a tenth quicker than it will ever be again.
    chance = torch.Generator(device).manual_seed(0)
    left = torch.randn(rows, inside, dtype=TYPES[precision], device=device, generator=chance)
    right = torch.randn(inside, outside, dtype=TYPES[precision], device=device, generator=chance)
    burst = BURST if device.type == "cuda" else 1
    result = left @ right  # chooses its kernel
    best, end = float("inf"), time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        _wait(device)
        start = time.perf_counter()
        for _ in range(burst):
            torch.matmul(left, right, out=result)
        _wait(device)
        best = min(best, (time.perf_counter() - start) / burst)
    return 2.0 * rows * inside * outside / best


def widest_product(model: "PreTrainedModel") -> tuple[int, int]:
    """Returns the (inside, outside) of the model's largest linear layer but its last."""
    head = plain_model(model).get_output_embeddings()
    layers = [part for part in model.modules() if isinstance(part, nn.Linear) and part is not head]
    shapes = [(part.in_features, part.out_features) for part in layers]
    width = plain_model(model).config.get_text_config().hidden_size
    return max(shapes, key=lambda shape: shape[0] * shape[1], default=(width, 4 * width))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
