"""Log-probabilities of target tokens: the one number per target that every objective is made of."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from training.model import plain_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 1024  # targets per softmax: its fp32 temporaries (CHUNK x vocabulary) stay near the cache


class Scorer(nn.Module):
    """A causal language model as a function from packed rows to the log-probabilities of their targets.

    The output layer is computed where there is a target only. For SFT and DPO rows, where most tokens are prompt, that
    saves most of its work; for every objective it saves the fp32 copy of all logits.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor, predictors: Tensor, targets: Tensor) -> Tensor:
        """Scores targets.

        Args:
            input_ids: (rows, seq_len) tokens of packed documents.
            position_ids: (rows, seq_len), restarting at 0 with each document. With no attention mask and no cache, this
                makes transformers keep attention inside each document (`masking_utils.find_packed_sequence_indices`).
            predictors: (targets,) flat indices into rows x seq_len: the token *before* each target.
            targets: (targets,) token ids.

        Returns:
            (targets,) natural log-probabilities, fp32.
        """
        causal = plain_model(self.model)
        decoder = getattr(causal, causal.base_model_prefix)
        hidden = decoder(
            input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False
        ).last_hidden_state
        logits = causal.get_output_embeddings()(hidden.flatten(0, 1)[predictors])
        scores: Tensor = _TargetLogProbabilities.apply(logits, targets)  # type: ignore[no-untyped-call]
        return scores


class _TargetLogProbabilities(torch.autograd.Function):
    """log softmax(logits)[target], in chunks: fp32 inside, but without ever holding fp32 logits of all targets.

    Forward: logit[target] - logsumexp(logits). Backward: d/dlogits = (onehot(target) - softmax(logits)) * grad.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """Args: logits (targets, vocab) in any float type; targets (targets,). Returns (targets,) fp32."""
        normalisers = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            normalisers[part] = logits[part].float().logsumexp(-1)
        ctx.save_for_backward(logits, targets, normalisers)
        return logits.gather(1, targets[:, None])[:, 0].float() - normalisers

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Args: one gradient (targets,). Returns the gradient of the logits, (targets, vocab)."""
        logits, targets, normalisers = ctx.saved_tensors
        result = torch.empty_like(logits)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            gradient = (logits[part].float() - normalisers[part, None]).exp_().mul_(-grads[0][part, None])
            gradient.scatter_add_(1, targets[part, None], grads[0][part, None])
            result[part] = gradient
        return result, None
