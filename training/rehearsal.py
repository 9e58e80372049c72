"""How much memory a forward and backward pass takes: the very pass, on tensors that have shapes but no numbers.

Every operation runs as fake tensors (`torch._subclasses.fake_tensor`), and what it allocates and frees is counted. So the
count holds for any architecture, attention, adapter and checkpointing, and no formula has to follow their code.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training import document_attention, varlen_attention
from training.behaviour import Behaviour
from training.model import plain_model
from training.scoring import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


HEAP_PIECE = 32 << 20  # larger pieces go back to the kernel at once, smaller ones to the C library's heap (mallopt(3))


@dataclass(frozen=True)
class Pass:
    """Bytes that a micro-batch holds beside the weights.

    Attributes:
        kept: when the forward pass has ended: what the backward pass reads.
        peak: the most at any time, gradients included where they were kept.
        traffic: all that is allocated in pieces of at most `HEAP_PIECE`, freed or not.
    """

    kept: int
    peak: int
    traffic: int


def rehearse(
    model: "PreTrainedModel",
    *,
    rows: int,
    seq_len: int,
    targets: int,
    documents: Sequence[slice] = (),
    half: bool,
    half_weights: bool = False,
    keep_gradients: bool = True,
    micro_batches: int = 1,
) -> Pass:
    """Runs micro-batches of a model on the meta device, which is used up.

    Args:
        rows, seq_len, targets: the micro-batch.
        documents: where its documents lie in the flattened rows; none given: each row is one.
        half: matrix products in bf16.
        half_weights: the layers' own weights are bf16 too, as sharded engines have them.
        keep_gradients: gradients stay until the last micro-batch, else they go as soon as they are complete.
        micro_batches: the last of several finds the gradients of those before it.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _Live() as live:
        _materialise(model, torch.bfloat16 if half_weights else torch.float32)
        scorer = _Rehearsed(model, documents or [slice(row * seq_len, (row + 1) * seq_len) for row in range(rows)])
        scorer.train()
        weights = live.bytes
        if not keep_gradients:
            for parameter in scorer.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_forget)  # type: ignore[no-untyped-call]
        kept = 0
        for _ in range(micro_batches):
            live.peak, live.traffic = live.bytes, 0
            tokens = torch.zeros(2, rows, seq_len, dtype=torch.long)
            chosen = torch.zeros(2, targets, dtype=torch.long)
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                scores: Tensor = scorer(tokens[0], tokens[1], chosen[0], chosen[1])
            kept = live.bytes - weights
            scores.sum().backward()  # type: ignore[no-untyped-call]
            del scores
        return Pass(kept, live.peak - weights, live.traffic)


class _Rehearsed(Scorer):
    """A scorer of tensors without numbers.

    Args:
        documents: where they lie in the flattened rows.
    """

    def __init__(self, model: "PreTrainedModel", documents: Sequence[slice]) -> None:
        super().__init__(model, behaviour=_behaviour_of(plain_model(model)))
        self._documents = list(documents)

    def documents(self, inputs: Mapping[str, Tensor]) -> list[slice]:
        return self._documents

    def boundaries(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.zeros(len(self._documents) + 1, dtype=torch.int32)


@torch.no_grad()
def _behaviour_of(model: "PreTrainedModel") -> Behaviour:
    """Returns how a model must be asked, as far as shapes tell it.

    Its head is plain where the very storage that the decoder ends with goes into the output layer, and what that gives is
    the result. Whether documents keep apart only numbers would show, so it is taken for granted.
    """
    decoder, head = getattr(model, model.base_model_prefix, None), model.get_output_embeddings()
    if decoder is None or head is None:
        return Behaviour(plain_head=False, keeps_apart=True)
    seen: list[Tensor] = []
    hooks = [
        decoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output.last_hidden_state)),
        head.register_forward_hook(lambda _module, inputs, output: seen.extend([inputs[0], output])),
    ]
    tokens = torch.zeros(1, 2, dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": tokens, "position_ids": tokens, "attention_mask": None, "use_cache": False}
    if model.config._attn_implementation == document_attention.NAME:
        inputs["documents"] = [slice(0, 2)]
    elif model.config._attn_implementation == varlen_attention.NAME:
        inputs |= varlen_attention.lengths(torch.zeros(2, dtype=torch.int32), 2)
    try:
        seen.append(model(**inputs).logits)
    finally:
        for hook in hooks:
            hook.remove()
    storages = [tensor.untyped_storage()._cdata for tensor in seen]
    return Behaviour(
        plain_head=len(seen) == 4 and storages[0] == storages[1] and storages[2] == storages[3], keeps_apart=True
    )


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are alive, their peak, and the traffic of the small ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = self.traffic = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype is torch.float32:
            # Experts' products: devices compute them in fp32 too, only their description for fake tensors refuses to.
            result = func(*(arg.bfloat16() for arg in args[:2]), *args[2:], **(kwargs or {})).float()
        else:
            result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        size = self._sizes[key] = storage.nbytes()
        self.bytes += size
        self.traffic += size if size <= HEAP_PIECE else 0
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)


def _materialise(model: nn.Module, dtype: torch.dtype) -> None:
    """Replaces tensors on the meta device by fake ones on the CPU; a tensor that is used twice stays one."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=dtype if isinstance(old, nn.Parameter) else old.dtype)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                tensors[name] = made[id(old)]  # type: ignore[assignment]


def _forget(parameter: Tensor) -> None:
    parameter.grad = None
