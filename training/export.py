"""From trained weights to a sealed bundle: adapters merged and checked, safetensors, tokenizer, model card."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from lineage.bundle import seal_bundle
from lineage.errors import GoldpathError
from lineage.files import list_files, sync_folder, write_atomic
from training.model import Vocabulary, plain_model
from training.scoring import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CARD = "README.md"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"
)  # fmt: skip
MERGE_TOLERANCE = 1e-3  # of the largest logit: merging only reorders fp32 sums


def export_model(
    scorer: Scorer, weights: Mapping[str, Tensor], vocabulary: Vocabulary, card: str, out: Path, sample: Tensor
) -> str:
    """Writes `<out>/bundle` (and `<out>/adapter` for a LoRA run) and returns the bundle's digest.

    Args:
        scorer: a freshly built model of the same job, on the CPU; it takes the trained weights.
        weights: the trained weights by the scorer's parameter names, as `Engine.full_weights` gives them.
        sample: (rows, seq_len) tokens on which merged and unmerged adapters must agree.

    Raises:
        GoldpathError: merging changed what the model says.
    """
    missing = set(weights) ^ {name for name, p in scorer.named_parameters() if p.requires_grad}
    if missing:
        raise GoldpathError(f"the trained weights do not fit the model: {sorted(missing)[:3]} …")
    scorer.load_state_dict(dict(weights), strict=False)
    model = scorer.model
    if hasattr(model, "peft_config"):
        _write_folder(out / "adapter", lambda folder: _save_adapter(model, folder))
        model = merge_adapters(model, sample)
    return save_bundle(model, vocabulary, card, out / "bundle")


@torch.no_grad()
def merge_adapters(model: "PreTrainedModel", sample: Tensor) -> "PreTrainedModel":
    """Returns the plain model with W + (alpha / r) B A in place of each adapted W; checks that its logits stay the same.

    Raises:
        GoldpathError: they differ by more than `MERGE_TOLERANCE` of the largest.
    """
    model.eval()
    before = model(input_ids=sample, use_cache=False).logits
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    after = merged(input_ids=sample, use_cache=False).logits
    difference = float((after - before).abs().max() / before.abs().max())
    if not difference <= MERGE_TOLERANCE:
        raise GoldpathError(
            f"merging the adapters changed the logits by {difference:.2e} of the largest, not a rounding error"
        )
    return merged


def save_bundle(model: "PreTrainedModel", vocabulary: Vocabulary, card: str, folder: Path) -> str:
    """Writes a model as a sealed release bundle, whole or not at all, and returns its digest."""
    plain = plain_model(model)
    _set_generation_defaults(plain, vocabulary)
    digest = ""

    def fill(target: Path) -> None:
        nonlocal digest
        _save_weights(plain, target)
        for name in TOKENIZER_FILES:
            if (vocabulary.folder / name).is_file():
                shutil.copyfile(vocabulary.folder / name, target / name)
        write_atomic(target / CARD, card)
        digest = seal_bundle(target)

    _write_folder(folder, fill)
    return digest


def _save_weights(model: "PreTrainedModel", folder: Path) -> None:
    """Writes what `save_pretrained` writes for a whole model, without importing DeepSpeed (1.5 s) on the way."""
    named = {tensor.data_ptr(): name for name, tensor in reversed(model.state_dict().items())}  # tied weights once
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name in named.values()}
    # One entry only: safetensors writes metadata in random order, and equal runs must give equal bytes.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def _set_generation_defaults(model: "PreTrainedModel", vocabulary: Vocabulary) -> None:
    """A bundle says itself where its answers end: with the tokenizer's end token."""
    for key, token in vocabulary.special.items():
        setattr(model.generation_config, key, token)
        setattr(model.config, key, token)
    model.config.use_cache = True


def _save_adapter(model: "PreTrainedModel", folder: Path) -> None:
    model.peft_config["default"].base_model_name_or_path = None  # a path of this machine means nothing elsewhere
    model.save_pretrained(folder)
    (folder / CARD).unlink(missing_ok=True)  # peft's template, with nothing filled in


def _write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fills a folder under a temporary name, then renames it; readable by all, durable."""
    temporary = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)
    for path in list_files(temporary):
        path.chmod(0o644)  # save_pretrained gives weights 0600, which a server under another user could not read
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt whose record was never written
    temporary.rename(folder)
    sync_folder(folder.parent)
