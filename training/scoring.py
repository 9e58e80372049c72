"""Log-probabilities of target tokens: the one number per target that every objective is made of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from training import document_attention, varlen_attention
from training.behaviour import Behaviour, observe
from training.model import plain_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Numbers of one softmax's fp32 temporaries. On a CPU 4 MiB stay in the caches and in the heap; what is larger is mapped
# anew, page by page, every time (the loss of 1,250 targets over 8,192 tokens takes 60 instead of 12 ms). GPUs like more.
NUMBERS = {"cpu": 2**20, "cuda": 2**26}


class Scorer(nn.Module):
    """A causal language model as a function from packed rows to the log-probabilities of their targets.

    The output layer is computed where there is a target only. For SFT and DPO rows, where most tokens are prompt, that
    saves most of its work; for every objective it saves the fp32 copy of all logits. Models that do more after the output
    layer, or that would mix documents in a row, are asked in the slower way that is right (`training.behaviour`).

    Args:
        model: in fp32 on the CPU, where it is observed.
        regularise: what training, not validation, mixes into the log-probabilities.
        collisions: whether training, not validation, needs `log_collisions` beside them.
        behaviour: how the model must be asked, where that is known.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        regularise: "Regularisation | None" = None,
        collisions: bool = False,
        behaviour: Behaviour | None = None,
    ) -> None:
        super().__init__()
        self.model, self.regularise, self.collisions = model, regularise or Regularisation(), collisions
        self.behaviour = behaviour or observe(plain_model(model))

    def forward(self, input_ids: Tensor, position_ids: Tensor, predictors: Tensor, targets: Tensor) -> Tensor:
        """Scores targets.

        Args:
            input_ids: (rows, seq_len) tokens of packed documents.
            position_ids: (rows, seq_len), restarting at 0 with each document. With no attention mask and no cache, this
                makes transformers keep attention inside each document (`masking_utils.find_packed_sequence_indices`).
            predictors: (targets,) flat indices into rows x seq_len: the token *before* each target.
            targets: (targets,) token ids.

        Returns:
            (targets,) natural log-probabilities, fp32; in training mode regularised. With collisions it is (2, targets) in
            training mode: below them the `log_collisions` of their distributions.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids}
        if not self.behaviour.keeps_apart:
            inputs["input_ids"], predictors = one_document_per_row(input_ids, position_ids, predictors)
            del inputs["position_ids"]  # they count from 0 in every row, and not every model takes them
        causal = plain_model(self.model)
        attention = causal.config._attn_implementation
        flash = attention.startswith("flash")
        if attention == document_attention.NAME:
            inputs["documents"] = self.documents(inputs)
        elif attention == varlen_attention.NAME or (flash and varlen_attention.suits(causal.config)):
            # What transformers would find out from the positions, in every layer, and wait for a GPU each time.
            inputs |= varlen_attention.lengths(self.boundaries(inputs), inputs["input_ids"].shape[1])
        if self.behaviour.keeps_apart and flash:
            # It keeps documents apart in one long row only.
            inputs |= {name: inputs[name].view(1, -1) for name in ("input_ids", "position_ids")}
        if self.behaviour.plain_head:
            decoder = getattr(causal, causal.base_model_prefix)
            hidden = decoder(**inputs, attention_mask=None, use_cache=False).last_hidden_state
            logits = causal.get_output_embeddings()(hidden.flatten(0, 1)[predictors])
        else:
            logits = causal(**inputs, attention_mask=None, use_cache=False).logits.flatten(0, 1)[predictors]
        regularise = self.regularise if self.training else Regularisation()
        scores: Tensor = _TargetLogProbabilities.apply(logits, targets, regularise)  # type: ignore[no-untyped-call]
        return torch.stack([scores, log_collisions(logits)]) if self.training and self.collisions else scores

    def documents(self, inputs: Mapping[str, Tensor]) -> list[slice]:
        """Returns where the documents lie in the flattened rows."""
        return document_attention.find_documents(_positions(inputs))

    def boundaries(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns where the documents begin in the flattened rows, and where the last one ends."""
        return varlen_attention.find_boundaries(_positions(inputs))


def _positions(inputs: Mapping[str, Tensor]) -> Tensor:
    """Returns (rows, seq_len) positions: where each document has a row of its own, only the row begins one."""
    return inputs["position_ids"] if "position_ids" in inputs else torch.ones_like(inputs["input_ids"])


@torch.no_grad()
def log_collisions(logits: Tensor) -> Tensor:
    """Returns log sum p^2 of every softmax p of (targets, vocab) logits, (targets,) fp32: how sure the model is.

    It is the mean log-probability's yardstick in WPO: the probability that two words drawn from p are the same.
    """
    result = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    for part in _parts(logits):
        numbers = logits[part].float()
        result[part] = (2 * numbers).logsumexp(-1) - 2 * numbers.logsumexp(-1)
    return result


def _parts(logits: Tensor) -> Iterator[slice]:
    """Divides (targets, vocab) logits into runs of targets for whose fp32 copies there is room."""
    size = max(1, NUMBERS.get(logits.device.type, NUMBERS["cpu"]) // logits.shape[1])
    for start in range(0, len(logits), size):
        yield slice(start, start + size)


def one_document_per_row(input_ids: Tensor, position_ids: Tensor, predictors: Tensor) -> tuple[Tensor, Tensor]:
    """Takes packed rows apart, for models that would mix their documents.

    Documents without a predictor, such as padding, are left out. Rows are filled up on the right, where a causal model does
    not look; they are as long as the longest document.

    Args:
        input_ids, position_ids: (rows, seq_len); positions restart at 0 with each document.
        predictors: (targets,) flat indices into rows x seq_len.

    Returns:
        (documents, longest) tokens, and (targets,) the same predictors as flat indices into it.
    """
    tokens, begins = input_ids.flatten(), position_ids == 0
    begins[:, 0] = True
    starts = begins.flatten().nonzero()[:, 0]
    lengths = torch.diff(starts, append=starts.new_tensor([len(tokens)]))
    document = begins.flatten().cumsum(0)[predictors] - 1
    used, row = torch.unique(document if len(document) else document.new_zeros(1), return_inverse=True)
    starts, lengths = starts[used], lengths[used]
    column = torch.arange(int(lengths.max()), device=tokens.device)
    places = (starts[:, None] + column).clamp(max=len(tokens) - 1)
    apart = tokens[places].where(column < lengths[:, None], 0)
    row = row[: len(predictors)]
    return apart, row * len(column) + predictors - starts[row]


@dataclass(frozen=True)
class Regularisation:
    """Turns a target's log-probability l - Z into (1 - smoothing) l + smoothing * mean(logits) - Z - z_loss * Z^2.

    l is the target's logit and Z the logarithm of the softmax's normaliser.

    Attributes:
        smoothing: the share of each target that is spread evenly over the vocabulary (Szegedy et al. 2016, section 7).
        z_loss: keeps Z near 0, so that logits do not drift (Chowdhery et al. 2022, PaLM, section 5: 1e-4).
    """

    smoothing: float = 0.0
    z_loss: float = 0.0


class _TargetLogProbabilities(torch.autograd.Function):
    """log softmax(logits)[target], regularised, in chunks: without ever holding fp32 logits of all targets.

    The gradient of the logits is (1 - smoothing) onehot(target) + smoothing / vocab - (1 + 2 z_loss Z) softmax(logits).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, regularise: Regularisation) -> Tensor:
        """Args: logits (targets, vocab) in any float type; targets (targets,). Returns (targets,) fp32."""
        smoothing, z_loss = regularise.smoothing, regularise.z_loss
        normalisers = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
        means = torch.zeros_like(normalisers)
        for part in _parts(logits):
            numbers = logits[part].float()
            normalisers[part] = numbers.logsumexp(-1)
            if smoothing:
                means[part] = numbers.mean(-1)
        ctx.save_for_backward(logits, targets, normalisers)
        ctx.regularise = regularise
        chosen = logits.gather(1, targets[:, None])[:, 0].float()
        scores = chosen - normalisers
        return scores + smoothing * (means - chosen) - z_loss * normalisers.square() if smoothing or z_loss else scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Args: one gradient (targets,). Returns the gradient of the logits, (targets, vocab)."""
        logits, targets, normalisers = ctx.saved_tensors
        smoothing, z_loss = ctx.regularise.smoothing, ctx.regularise.z_loss
        onto_all = -grads[0] * (1 + 2 * z_loss * normalisers) if z_loss else -grads[0]
        onto_target = (1 - smoothing) * grads[0]
        result = torch.empty_like(logits)
        for part in _parts(logits):
            gradient = (logits[part].float() - normalisers[part, None]).exp_().mul_(onto_all[part, None])
            gradient.scatter_add_(1, targets[part, None], onto_target[part, None])
            if smoothing:
                gradient.add_(grads[0][part, None], alpha=smoothing / logits.shape[1])
            result[part] = gradient
        return result, None, None
