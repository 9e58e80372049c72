"""Loads a release bundle: digest first, then weights, tokenizer and the defaults that the bundle itself declares."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from lineage.bundle import verify_bundle
from lineage.errors import BadInput

# Generation settings that change the text and that this engine does not apply; the value that leaves the text alone.
NEUTRAL = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_p": None,
    "typical_p": 1.0,
    "min_new_tokens": None,
    "min_length": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": None,
    "renormalize_logits": False,
}
ONLY_ATTENTION = "serve a model of attention layers only"
ATTENTION_THAT_KEEPS_ALL = frozenset({"full_attention", "sliding_attention"})

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class LoadedModel:
    """A verified bundle in memory.

    Attributes:
        model: the causal language model, in evaluation mode.
        tokenizer: the fast tokenizer, with the bundle's chat template.
        digest: the digest of the bytes that were loaded.
        context: how many tokens prompt and answer may have together.
        ends: the tokens that end an answer.
        temperature, top_p: what a request that says nothing gets; 0 (greedy) unless the bundle's
            generation config says `do_sample`.
    """

    model: Any
    tokenizer: Any
    digest: str
    context: int
    ends: frozenset[int]
    temperature: float
    top_p: float

    @property
    def vocabulary(self) -> int:
        """Returns the number of token ids that the model knows."""
        return int(self.model.config.vocab_size)

    @cached_property
    def longest_prompt(self) -> int:
        """The characters that the context can hold at the very most: a longer text need not be tokenised to be refused."""
        return self.context * max(map(len, self.tokenizer.get_vocab()))


def load_bundle(folder: Path, digest: str | None = None, precision: Precision = "float32") -> LoadedModel:
    """Verifies and loads a bundle.

    Args:
        digest: the digest that the caller was promised; None takes the manifest's own.

    Raises:
        Tampered: the bytes are not those of the digest. Nothing was loaded.
        BadInput: the folder is no bundle, or its model is one that the engine would not serve faithfully.
    """
    verified = verify_bundle(folder, digest)
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=getattr(torch, precision)
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(folder, "config.json", f"does not load ({reason})", "serve a causal language model") from None
    _refuse_unfaithful(folder, model)
    context = _context(folder, model.config)
    settings = model.generation_config
    ends = settings.eos_token_id if settings.eos_token_id is not None else tokenizer.eos_token_id
    sampled = bool(settings.do_sample)
    return LoadedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        digest=verified,
        context=context,
        ends=frozenset([ends] if isinstance(ends, int) else ends or []),
        temperature=float(settings.temperature if settings.temperature is not None else 1.0) if sampled else 0.0,
        top_p=float(settings.top_p if settings.top_p is not None else 1.0) if sampled else 1.0,
    )


def _refuse_unfaithful(folder: Path, model: Any) -> None:
    """Refuses what would be served with other text than `model.generate` gives, instead of serving it a little wrong."""
    for name, neutral in NEUTRAL.items():
        value = getattr(model.generation_config, name, None)
        if value is not None and value != neutral:
            fix = "remove it from the bundle's generation_config.json and evaluate again"
            raise BadInput(folder / "generation_config.json", name, f"is {value!r}, which this engine does not apply", fix)
    if model._is_stateful:
        raise BadInput(
            folder / "config.json", "model_type", f"{type(model).__name__} keeps a running state", ONLY_ATTENTION
        )
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if other := sorted(kinds - ATTENTION_THAT_KEEPS_ALL):
        raise BadInput(folder / "config.json", "layer_types", f"has {other[0]}", ONLY_ATTENTION)


def _context(folder: Path, config: Any) -> int:
    # A sliding window never bites as long as the whole text fits into it.
    limits = [getattr(config, "max_position_embeddings", None), getattr(config, "sliding_window", None)]
    if not any(limits):
        fix = "write there how many tokens it was trained on"
        raise BadInput(folder / "config.json", "max_position_embeddings", "is missing", fix)
    return min(int(limit) for limit in limits if limit)
