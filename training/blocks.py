"""How a model's blocks compute: their attention, what they recompute in the backward pass, whether they are compiled."""

import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from lineage.errors import BadInput, GoldpathError
from training import document_attention
from training.attention import choose_attention, set_attention
from training.choices import Checkpointing
from training.float8 import convert_to_float8, require_float8
from training.liger import use_liger
from training.repeatable import insist

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.config import TrainingConfig
    from training.resources import Resources

# What `selective` keeps of a block: dear to compute and cheap to keep, results of products with weights and of fused
# attention. The batched products inside plain attention are not: they have seq_len x seq_len numbers per head.
KEPT = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.torch_attn._varlen_attn.default,  # `training.varlen_attention`'s, known once that is imported
    }
)


def place_blocks(
    model: "PreTrainedModel", training: "TrainingConfig", resources: "Resources", device: torch.device, seq_len: int
) -> None:
    """Makes a model's blocks compute as the resources say.

    Args:
        model: the causal language model, under its adapters.
        seq_len: tokens of a packed row.

    Raises:
        BadInput: something that is asked for is not possible here.
    """
    assert training.precision != "auto"
    if training.precision == "fp8":
        require_float8(device)
        convert_to_float8(model, model.get_output_embeddings())
    if resources.attention != "auto" or model._supports_sdpa:  # else it stays with the one attention that it has
        set_attention(model, choose_attention(resources.attention, device, training.precision, seq_len, model.config))
    if resources.kernels == "liger":
        use_liger(model, device)
    insist(device, model.config)
    recompute_activations(model, resources.activation_checkpointing)
    if resources.compile:
        compile_blocks(model, device)


def recompute_activations(model: "PreTrainedModel", how: Checkpointing) -> None:
    """Makes each block keep less for its backward pass, and compute the rest again; gradients stay the same to the bit.

    Raises:
        BadInput: the model's blocks cannot.
    """
    if how == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
    if not model.supports_gradient_checkpointing:
        raise BadInput(
            "job.yaml",
            "resources.activation_checkpointing",
            f"{type(model).__name__} cannot compute its activations again",
            "set it to `none`, and raise `accumulation` to save memory",
        )
    model.activation_checkpointing_enable(options)


def _keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """Compiles every block by itself: they share one graph, so a deep model costs no more than a shallow one.

    Raises:
        BadInput: there is no compiler for the device, or the model has no blocks.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise BadInput("job.yaml", "resources.compile", "there is no C++ compiler here", "install g++, or set it to false")
    blocks = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not blocks:
        raise BadInput(
            "job.yaml", "resources.compile", f"{type(model).__name__} has no blocks to compile", "set it to false"
        )
    # Otherwise torch goes on uncompiled, without a word, where shapes change too often.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    document_attention.stay_out_of_graphs()
    for block in blocks:
        block.compile()


def require_compiled() -> None:
    """Asserts, after a first forward pass, that compiled graphs exist."""
    if not torch._dynamo.utils.counters["stats"]["unique_graphs"]:
        raise GoldpathError("torch.compile was asked for, but no block was compiled")
