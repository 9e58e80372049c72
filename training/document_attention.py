"""Attention over packed rows on CPUs, document by document: what lies outside a document's own square is never computed.

A packed row of 512 tokens with two documents of 256 needs half of the 512 x 512 products; a mask computes all of them and
throws half away. GPUs have FlashAttention's kernels for rows of many lengths (Dao 2023); torch's CPU kernels know one only.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NAME = "goldpath_documents"


# Architectures whose attention is softmax(scaling Q K^T) V and nothing else, and that pass on what they do not know.
PLAIN = frozenset({"llama", "qwen2", "qwen3"})


def suits(config: "PretrainedConfig") -> bool:
    """Whether a model's attention is what `document_attention` computes: no windows, no dropout."""
    whole = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    return config.model_type in PLAIN and whole and not getattr(config, "attention_dropout", 0.0)


def register() -> None:
    """Makes the attention known to transformers under `NAME`; transformers makes no mask for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, document_attention)


def stay_out_of_graphs() -> None:
    """Keeps the attention out of compiled blocks: a graph would be of one step's documents, and the next has others."""
    from transformers import AttentionInterface

    opaque = torch.compiler.disable(document_attention)  # type: ignore[no-untyped-call]
    AttentionInterface.register(NAME, opaque)


def find_documents(position_ids: Tensor) -> list[slice]:
    """Returns where the documents lie in the flattened rows; those of a single token are left out.

    Args:
        position_ids: (rows, seq_len), 0 at the first token of each document; a row begins one. Padding counts as such.
    """
    begins = position_ids == 0
    begins[:, 0] = True
    starts = begins.flatten().nonzero()[:, 0].tolist()
    stops = [*starts[1:], position_ids.numel()]
    return [slice(start, stop) for start, stop in zip(starts, stops, strict=True) if stop - start > 1]


def document_attention(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    documents: Sequence[slice] | None = None,
    position_ids: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document (Vaswani et al. 2017, equation 1).

    Args:
        query: (rows, heads, seq_len, head_dim); key, value: the same with `num_kv_heads`, a divisor of heads.
        attention_mask: must be None.
        documents: of `find_documents`; None finds them anew in every layer.
        position_ids: (rows or 1, seq_len), what they are found from.

    Returns:
        (rows, seq_len, heads, head_dim), and None in place of the weights.
    """
    assert attention_mask is None, "documents are told apart by their places, not by a mask"
    rows, heads, seq_len, size = query.shape
    if documents is None:
        assert position_ids is not None
        documents = find_documents(position_ids.expand(rows, seq_len))
    flat = [tensor.transpose(0, 1).reshape(-1, rows * seq_len, size) for tensor in (query, key, value)]
    if torch.is_autocast_enabled("cpu"):
        flat = [tensor.to(torch.get_autocast_dtype("cpu")) for tensor in flat]
    flat = [tensor.repeat_interleave(heads // len(tensor), 0) if len(tensor) < heads else tensor for tensor in flat]
    out: Tensor = _DocumentAttention.apply(*flat, scaling, documents)  # type: ignore[no-untyped-call]
    return out.view(heads, rows, seq_len, size).permute(1, 2, 0, 3), None


class _DocumentAttention(torch.autograd.Function):
    """softmax(scaling Q K^T + causal mask) V of every document, with the weights kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, documents: Sequence[slice]) -> Tensor:
        """Args: query, key, value (heads, tokens, head_dim). Returns (heads, tokens, head_dim)."""
        out, weights = value.clone(), []  # a token that is alone attends to itself
        longest = max((here.stop - here.start for here in documents), default=0)
        mask = torch.full((longest, longest), float("-inf"), dtype=query.dtype).triu_(1)
        with torch.autocast("cpu", enabled=False):  # softmax of bf16 numbers computes in fp32 inside
            for here, (q, k, v) in _per_document(documents, query, key, value):
                allowed = mask[: q.shape[1], : q.shape[1]]
                weights.append(torch.softmax(torch.baddbmm(allowed, q, k.transpose(1, 2), alpha=scaling), -1))
                out[:, here] = torch.bmm(weights[-1], v)
        ctx.save_for_backward(query, key, value, *weights)
        ctx.scaling, ctx.documents = scaling, documents
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Args: one gradient (heads, tokens, head_dim). Returns those of query, key and value.

        With weights P and the gradient dO of the result: dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(P dP)), dQ = dS K
        and dK = dS^T Q, the last two times `scaling`.
        """
        query, key, value, *weights = ctx.saved_tensors
        onto_query, onto_key, onto_value = torch.zeros_like(query), torch.zeros_like(key), grads[0].clone()
        with torch.autocast("cpu", enabled=False):
            places = _per_document(ctx.documents, query, key, value, grads[0])
            for (here, (q, k, v, grad)), weight in zip(places, weights, strict=True):
                onto_weight = torch.bmm(grad, v.transpose(1, 2))
                onto_score = torch._softmax_backward_data(onto_weight, weight, -1, weight.dtype).mul_(ctx.scaling)
                onto_query[:, here] = torch.bmm(onto_score, k)
                onto_key[:, here] = torch.bmm(onto_score.transpose(1, 2), q)
                onto_value[:, here] = torch.bmm(weight.transpose(1, 2), grad)
        return onto_query, onto_key, onto_value, None, None


def _per_document(documents: Sequence[slice], *tensors: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    for here in documents:
        yield here, [tensor[:, here] for tensor in tensors]
