"""Liger's kernels for GPUs: norms, rotary embeddings and gated layers in one kernel each (Hsu et al. 2024).

Its loss is not taken: it computes the gradient in the forward pass, for a loss that is a plain mean over all targets. Here
the objectives weigh every target in their own way, and `training.scoring` scores in chunks itself.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from lineage.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROTATE = "apply_rotary_pos_emb"  # transformers' name, in the module of each architecture
OTHERWISE = "set `kernels: torch`"


def use_liger(model: "PreTrainedModel", device: torch.device) -> None:
    """Makes a model compute with Liger's kernels. Other models of its architecture, such as the one to export, do not.

    Args:
        model: the causal language model, under its adapters.

    Raises:
        BadInput: they are for GPUs, the library is not installed, or it does not know the architecture.
    """
    if device.type != "cuda":
        _refuse(f"`liger` is for GPUs, and the device is `{device.type}`", OTHERWISE)
    if find_spec("liger_kernel") is None:
        _refuse("`liger` needs liger-kernel, which is not installed", f"pip install 'goldpath[liger]', or {OTHERWISE}")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        _refuse(f"`liger` has no kernels for {kind}", OTHERWISE)
    architecture = sys.modules[type(model).__module__]
    before = dict(vars(architecture))
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
    # It replaces layers in this model, and besides the classes of all models to come. Those are put back: the next one is
    # made on the CPU, where these kernels do not run. The rotary embedding is a function, which all models share.
    fused = vars(architecture).get(ROTATE)
    for name, value in before.items():
        setattr(architecture, name, value)
    if fused is not before.get(ROTATE):
        setattr(architecture, ROTATE, _by_device(fused, before[ROTATE]))
    if not any(part.forward.__module__.startswith("liger_kernel") for part in model.modules()):
        _refuse(f"`liger` replaced no layer of {type(model).__name__}", OTHERWISE)


def _by_device(fused: Any, plain: Any) -> Callable[..., Any]:
    def rotate(query: torch.Tensor, *rest: Any, **named: Any) -> Any:
        return (fused if query.is_cuda else plain)(query, *rest, **named)

    return rotate


def _refuse(problem: str, fix: str) -> None:
    raise BadInput("job.yaml", "resources.kernels", problem, fix)
