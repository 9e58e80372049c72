"""Which attention computes a run. Whichever it is, packed documents do not see each other."""

import os
from typing import TYPE_CHECKING

import torch

from lineage.errors import BadInput
from training import document_attention, varlen_attention
from training.choices import Attention
from training.hardware import Precision

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


AUTO = "set `attention: auto`"
SHORT = 512  # tokens; beyond that seq_len x seq_len weights outgrow a CPU's caches


def choose_attention(
    asked: Attention, device: torch.device, precision: Precision, seq_len: int, config: "PretrainedConfig"
) -> str:
    """Returns transformers' name of the attention to train with.

    `auto` takes the fastest that every device has; it and the others give the same numbers. On CPUs torch's fused kernel
    does not use bf16 matrix instructions: plain matrix products take half its time at 256 tokens (whole steps are 19 %
    faster, 5 % at 512), and less document by document (10 % of the step at 512, GSM8K's rows). On GPUs the mask of packed
    documents would cost FlashAttention (`training.varlen_attention`), which computes in half precision alone.

    Raises:
        BadInput: the attention that is asked for does not run here.
    """
    if asked == "auto":
        if device.type == "cuda":
            return varlen_attention.NAME if _obstacle(device, precision, config) is None else "sdpa"
        products = device.type == "cpu" and precision == "bf16" and seq_len <= SHORT
        return (document_attention.NAME if document_attention.suits(config) else "eager") if products else "sdpa"
    if asked == "documents":
        if device.type != "cpu" or not document_attention.suits(config):
            _refuse(f"`documents` is for plain attention on CPUs, and this is {config.model_type} on {device.type}", AUTO)
        return document_attention.NAME
    if asked in ("varlen", "flash", "flex") and device.type != "cuda":
        _refuse(f"`{asked}` trains on GPUs only, and the device is `{device.type}`", AUTO)
    if asked == "varlen":
        if obstacle := _obstacle(device, precision, config):
            _refuse(f"`varlen` is for {obstacle}", AUTO)
        return varlen_attention.NAME
    if asked == "flex":
        return "flex_attention"
    return _flash(precision) if asked == "flash" else asked


def set_attention(model: "PreTrainedModel", name: str) -> None:
    """Makes a model compute its attention so, and makes sure that it does.

    Raises:
        BadInput: the model has no such attention.
    """
    if name.startswith("flash"):  # its backward pass adds in any order, unless it is told; equal jobs give equal bytes
        os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"
    if name == document_attention.NAME:
        document_attention.register()
    if name == varlen_attention.NAME:
        varlen_attention.register()
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        _refuse(f"{type(model).__name__} has no `{name}` ({str(error).splitlines()[0]})", AUTO)
    if model.config._attn_implementation != name:
        _refuse(f"{type(model).__name__} took `{model.config._attn_implementation}`, not `{name}`", AUTO)


def _obstacle(device: torch.device, precision: Precision, config: "PretrainedConfig") -> str | None:
    """Returns what `varlen` would need and does not have on a GPU; None where it can compute."""
    if precision == "fp32":
        return "half precision, and the precision is `fp32`"
    if not varlen_attention.suits(config):
        return f"plain attention with heads of at most {varlen_attention.WIDEST}, and this is {config.model_type}"
    # Where there is no GPU, `plan` asks for one.
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < varlen_attention.CAPABILITY:
        return "GPUs of compute capability 8.0 or higher, and this is none"
    return None


def _flash(precision: Precision) -> str:
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    if precision == "fp32":
        _refuse("`flash` computes in half precision, and the precision is `fp32`", "set `precision: bf16`")
    if is_flash_attn_3_available():
        return "flash_attention_3"
    if is_flash_attn_2_available():
        return "flash_attention_2"
    return _refuse("`flash` needs the library flash-attn, which is not installed", "install it, or set `attention: auto`")


def _refuse(problem: str, fix: str) -> str:
    raise BadInput("job.yaml", "resources.attention", problem, fix)
