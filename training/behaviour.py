"""How a model must be asked so that it scores every document as if it were alone: observed on a few tokens, not assumed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lineage.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTH = 4  # tokens of each of the two documents: the shortest rows that the data stage packs hold both
TOLERANCE = (
    1e-4  # of the largest logit: fp32 sums in another order differ by about 1e-6, documents that meet by 1e-3 and more
)
AMPLIFIED = 1e3  # logits far beyond any soft cap


@dataclass(frozen=True)
class Behaviour:
    """What a causal language model does beyond the minimum that all share.

    Attributes:
        plain_head: the logits are the output layer of the decoder's last hidden states and nothing else. Where they are not
            (Gemma's soft cap, Cohere's scale, OPT's projection) the model's own forward pass makes them.
        keeps_apart: documents in a packed row do not meet where their positions restart. Recurrent models and those that
            take no positions mix them, so each document is given a row of its own.
    """

    plain_head: bool
    keeps_apart: bool


@torch.no_grad()
def observe(model: "PreTrainedModel") -> Behaviour:
    """Asks a model, in fp32 on the CPU, for two short documents: alone, packed, and as one.

    Where the model shows no difference between packed documents and one long document, nothing is proven, and they are
    kept apart by rows: right before quick.

    Raises:
        BadInput: a token's prediction depends on tokens after it.
    """
    training = model.training
    model.eval()
    try:
        return _observe(model)
    finally:
        model.train(training)


def _observe(model: "PreTrainedModel") -> Behaviour:
    rows = model.get_input_embeddings().num_embeddings
    other, document = ((torch.arange(LENGTH) * step + 1)[None] % rows for step in (3, 7))
    alone = _logits(model, document)
    if not bool(alone.isfinite().all()):
        raise BadInput(
            model.config.name_or_path or "job.yaml",
            "weights",
            "give predictions that are no finite numbers",
            "give a model that is whole: one of its weights is NaN or infinite",
        )
    changed = document.clone()
    changed[:, -1] = (changed[:, -1] + 1) % rows
    scale = max(float(alone.abs().max()), 1e-12)  # an output layer may begin at zero
    if _differ(alone[:, :-1], _logits(model, changed)[:, :-1], scale):
        raise BadInput(
            model.config.name_or_path or "job.yaml",
            "config.json",
            f"{type(model).__name__} sees the tokens that it is to predict",
            "give a causal language model (an encoder may need `is_decoder: true`)",
        )
    both, positions = torch.cat([other, document], dim=1), torch.arange(LENGTH).repeat(2)[None]
    packed = _logits(model, both, position_ids=positions)[:, LENGTH:]
    as_one = _logits(model, both)[:, LENGTH:]
    keeps_apart = not _differ(packed, alone, scale) and _differ(as_one, alone, scale)
    return Behaviour(_has_plain_head(model, document, AMPLIFIED / scale), keeps_apart)


def _has_plain_head(model: "PreTrainedModel", tokens: Tensor, factor: float) -> bool:
    """Compares the model's logits of amplified hidden states with the output layer's alone: a soft cap shows far out."""
    decoder, head = getattr(model, model.base_model_prefix, None), model.get_output_embeddings()
    if decoder is None or head is None:
        return False
    seen: list[Tensor] = []

    def amplify(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state * factor
        seen.append(output.last_hidden_state)
        return output

    hook = decoder.register_forward_hook(amplify)
    try:
        logits = _logits(model, tokens)
    finally:
        hook.remove()
    return bool(seen) and not _differ(logits, head(seen[0]), AMPLIFIED)


def _logits(model: "PreTrainedModel", tokens: Tensor, **more: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=tokens, use_cache=False, **more).logits
    return logits


def _differ(left: Tensor, right: Tensor, scale: float) -> bool:
    """Whether two tensors of logits are further apart than rounding; not-a-number differs from everything."""
    return not float((left - right).abs().max()) <= TOLERANCE * scale
