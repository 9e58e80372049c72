"""The arithmetic of a model, counted from its layers: what MFU and `plan` divide by."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from training.model import plain_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Arithmetic:
    """What a token costs, as numbers of weights in matrix products; embeddings are looked up and cost nothing.

    Attributes:
        body, body_trained: of all layers but the last, and those of them that are trained; of a mixture of experts, the
            share that a token passes through.
        head, head_trained: of the output layer, which is computed where there is a target only.
        attention: layers x heads x head dimension.
    """

    body: int
    body_trained: int
    head: int
    head_trained: int
    attention: int

    def training(self, tokens: int, targets: int, seq_len: int) -> float:
        """Returns the floating-point operations of one update over `tokens`, of which `targets` are predicted.

        Per token 6 N + 12 L H Q T (Chowdhery et al. 2022, PaLM, appendix B): 2 N forward, 2 N for the gradients of the
        activations, 2 N for those of the weights, which frozen ones do not have. What activation checkpointing
        repeats is no work of the model and does not count, padding neither.
        """
        body = 4 * self.body + 2 * self.body_trained + 12 * self.attention * seq_len
        return float(tokens * body + targets * (4 * self.head + 2 * self.head_trained))

    def scoring(self, tokens: int, targets: int, seq_len: int) -> float:
        """Returns the floating-point operations of a forward pass alone."""
        return float(tokens * (2 * self.body + 4 * self.attention * seq_len) + targets * 2 * self.head)


def arithmetic_of(model: "PreTrainedModel") -> Arithmetic:
    """Counts a causal language model, with adapters or without, on any device (`meta` too), before it is divided."""
    causal = plain_model(model)
    head = causal.get_output_embeddings()
    config = causal.config.get_text_config()
    body = trained = 0
    for name, module in model.named_modules():
        if module is head or isinstance(module, nn.Embedding):
            continue
        share = _active_share(config) if ".experts" in name else 1.0
        for weight in module.parameters(recurse=False):
            if weight.ndim < 2:
                continue
            # a quantised layer packs its weights: its features say how many there are
            size = module.in_features * module.out_features if isinstance(module, nn.Linear) else weight.numel()
            body += round(share * size)
            trained += round(share * size) if weight.requires_grad else 0
    of_head = head.weight.numel()
    heads = getattr(config, "num_attention_heads", None) or 0
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    attention = config.num_hidden_layers * heads * width
    return Arithmetic(body, trained, of_head, of_head if head.weight.requires_grad else 0, attention)


def _active_share(config: object) -> float:
    """Returns the share of a mixture's experts that a token passes through."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((value for name in names if (value := getattr(config, name, None))), 1)
    return min(1.0, (getattr(config, "num_experts_per_tok", None) or experts) / experts)
