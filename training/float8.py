"""fp8: the blocks' matrix products in 8-bit floats with a scale per tensor (Micikevicius et al. 2022), by torchao."""

from importlib.util import find_spec

import torch
from torch import nn

from lineage.errors import BadInput

CAPABILITY = (8, 9)  # the first NVIDIA GPUs with fp8 matrix products: Ada; Hopper is 9.0
MULTIPLE = 16  # of both sizes of a matrix, which those products ask for


def require_float8(device: torch.device) -> None:
    """Checks that device and library compute in fp8.

    Raises:
        BadInput: they do not.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        _refuse("`fp8` needs a GPU of compute capability 8.9 or higher, and this is none", "set `precision: bf16`")
    if find_spec("torchao") is None:
        _refuse("`fp8` needs torchao, which is not installed", "install it, or set `precision: bf16`")


def convert_to_float8(model: nn.Module, head: nn.Module, *, emulate: bool = False) -> None:
    """Makes linear layers compute in fp8, all but the output layer; weights stay the parameters that they were.

    Args:
        model: the causal language model.
        head: its output layer.
        emulate: round as fp8 does but compute in fp32, which every device can; for tests.

    Raises:
        BadInput: no layer has sizes that fp8 takes.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def takes_float8(part: nn.Module, name: str) -> bool:
        return part is not head and isinstance(part, nn.Linear) and not any(size % MULTIPLE for size in part.weight.shape)

    before = {id(part) for part in model.modules()}
    convert_to_float8_training(model, module_filter_fn=takes_float8, config=Float8LinearConfig(emulate=emulate))
    if all(id(part) in before for part in model.modules()):
        _refuse(f"no layer of {type(model).__name__} has sizes divisible by {MULTIPLE}", "set `precision: bf16`")


def _refuse(problem: str, fix: str) -> None:
    raise BadInput("job.yaml", "config.training.precision", problem, fix)
