"""Frozen linear layers in 4 bits: NF4 with double quantisation (Dettmers et al. 2023, QLoRA, section 3)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lineage.errors import BadInput

BLOCK = 64  # weights per scale; 256 scales share a second one: 4.127 bits a weight


class Nf4Linear(nn.Linear):
    """A linear layer whose weight is kept in 4 bits and made anew for each product, forwards and backwards.

    bitsandbytes' own `Linear4bit` repacks itself for inference the first time that a CPU evaluates it, and has no gradient
    from then on; here evaluation and training alternate. Its quantisation is used, which is the same on every device.

    Args:
        linear: the layer to replace; its weight is (out_features, in_features), of any float type.
    """

    packed: Tensor
    scales: Any  # bitsandbytes' QuantState

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: there is no weight to make
        from bitsandbytes.functional import quantize_4bit

        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, self.scales = linear.weight.data, None
        if weight.device.type == "meta":  # shapes alone, for an estimate
            packed = torch.empty((weight.numel() + 1) // 2, 1, dtype=torch.uint8, device="meta")
        else:
            numbers = weight.float().contiguous()
            packed, self.scales = quantize_4bit(numbers, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
        self.register_buffer("packed", packed, persistent=False)
        self.register_parameter("bias", linear.bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # peft and the merge read it as they read any layer's
        """What the 4 bits stand for: (out_features, in_features) fp32."""
        from bitsandbytes.functional import dequantize_4bit

        if self.scales is None:
            return torch.empty(self.out_features, self.in_features, device=self.packed.device)
        weight: Tensor = dequantize_4bit(self.packed, self.scales)
        return weight

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        """Returns x W^T + b, (…, out_features), for x (…, in_features)."""
        product: Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        return product

    def _apply(self, fn: Any, recurse: bool = True) -> "Nf4Linear":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scales is not None:
            self.scales.to(self.packed.device)
        return self


class _Product(torch.autograd.Function):
    """The product saves its layer instead of its weight: a saved weight would stay whole until the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: Nf4Linear) -> Tensor:
        """Args: inputs (…, in_features). Returns (…, out_features)."""
        ctx.layer, ctx.dtype = layer, inputs.dtype
        return nn.functional.linear(inputs, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Args: one gradient (…, out_features). Returns the inputs' one; the layer is frozen."""
        return (grads[0] @ ctx.layer.weight.to(grads[0].dtype)).to(ctx.dtype), None


def quantize(model: nn.Module, kept: Iterable[str]) -> None:
    """Replaces every linear layer, except the named ones, by one of 4 bits, layer by layer.

    Raises:
        BadInput: bitsandbytes is not installed, or the model has no such layer.
    """
    field = "config.training.lora_quantize"
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        problem, fix = "`nf4` needs bitsandbytes, which is not installed", "install it: `pip install 'goldpath[quantize]'`"
        raise BadInput("job.yaml", field, problem, fix) from None
    kept = set(kept)
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear) and name not in kept}
    if not layers:
        raise BadInput("job.yaml", field, "finds no linear layer in the model", "write `lora_quantize: none`")
    for name, layer in layers.items():
        _replace(model, name, Nf4Linear(layer))


def move_packed(model: nn.Module, device: torch.device) -> None:
    """Moves the 4-bit layers to where they compute: engines that divide weights move those, and know no others."""
    for part in model.modules():
        if isinstance(part, Nf4Linear):
            part.to(device)


def dequantize(model: nn.Module) -> None:
    """Replaces every 4-bit layer by a plain one with the weight that its bits stand for."""
    layers = {name: part for name, part in model.named_modules() if isinstance(part, Nf4Linear)}
    for name, layer in layers.items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight, plain.bias = nn.Parameter(layer.weight, requires_grad=False), layer.bias
        _replace(model, name, plain)


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, part)
