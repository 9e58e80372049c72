"""FlashAttention over packed rows on GPUs, in the kernels that torch brings (Dao 2023): documents of many lengths at once.

A mask that keeps documents apart costs FlashAttention: torch's fused kernel takes none, and the next best one computes all
seq_len x seq_len products, reads a number of the mask for each, and skips nothing. Here the lengths take the mask's place.
"""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad

from training import document_attention

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NAME = "goldpath_varlen"
CAPABILITY = (8, 0)  # the first NVIDIA GPUs with FlashAttention-2: Ampere
WIDEST, MULTIPLE = 256, 8  # of a head, for these kernels
# Newer torch wants to be told of fewer key than query heads; older ones, which have no such argument, just take them.
GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def suits(config: "PretrainedConfig") -> bool:
    """Whether a model's attention is what `varlen_attention` computes: plain, in heads of a size that its kernels have."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return document_attention.suits(config) and size <= WIDEST and size % MULTIPLE == 0


def register() -> None:
    """Makes the attention known to transformers under `NAME`; transformers makes no mask for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, varlen_attention)


def find_boundaries(position_ids: Tensor) -> Tensor:
    """Returns where the documents in flattened rows begin, and where the last one ends: (documents + 1,) int32.

    A document of one token holds no target and is seen by no other, so a run of them, such as padding, counts as one: each
    boundary costs the kernels a place in their grid. A GPU is waited for once: how many there are decides the shape.

    Args:
        position_ids: (rows, seq_len), 0 at the first token of each document; a row begins one. Padding counts as such.
    """
    begins = position_ids == 0
    begins[:, 0] = True
    single = begins & pad(begins[:, 1:], (0, 1), value=True)
    behind_single = pad(single[:, :-1], (1, 0), value=False)
    starts = (begins & ~(single & behind_single)).flatten().nonzero()[:, 0]
    return pad(starts, (0, 1), value=position_ids.numel()).int()


def lengths(boundaries: Tensor, seq_len: int) -> dict[str, Any]:
    """Returns what attention must be told of the documents, in transformers' names (`FlashAttentionKwargs`).

    The longest document is not looked for: the row is an upper bound, and costs the kernels blocks that end at once, where
    asking a GPU would have the CPU wait for it.
    """
    return {
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": seq_len,
        "max_length_k": seq_len,
    }


def varlen_attention(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document (Vaswani et al. 2017, equation 1).

    Args:
        query: (rows, heads, seq_len, head_dim); key, value: the same with `num_kv_heads`, a divisor of heads. The value is
            what a layer computed, in half precision; the others may be wider, as rotary embeddings leave them in fp32.
        attention_mask: must be None.
        cu_seq_lens_q: of `find_boundaries`.
        max_length_q: at least the length of the longest document.

    Returns:
        (rows, seq_len, heads, head_dim), and None in place of the weights.
    """
    assert attention_mask is None, "documents are told apart by their places, not by a mask"
    rows, heads, seq_len, size = query.shape
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1).to(value.dtype) for tensor in (query, key, value))
    bounds, longest = cu_seq_lens_q, max_length_q
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0), **GROUPED)
    assert isinstance(out, Tensor)
    return out.view(rows, seq_len, heads, size), None
