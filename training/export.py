"""From trained weights to a sealed bundle: adapters merged and checked, safetensors, tokenizer, model card."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from lineage.bundle import seal_bundle
from lineage.errors import GoldpathError
from lineage.files import list_files, sync_folder, write_atomic
from training.adapters import merge_adapters, save_adapters
from training.model import plain_model
from training.scoring import Scorer
from training.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CARD = "README.md"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"
)  # fmt: skip


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
        _write_folder(out / "adapter", lambda folder: save_adapters(model, folder))
        model = merge_adapters(model, sample)
    return save_bundle(model, vocabulary, card, out / "bundle")


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
    from transformers.core_model_loading import revert_weight_conversion

    state = model.state_dict()
    # Tied weights once. An empty tensor has no address to be known by.
    named = {tensor.data_ptr() or name: name for name, tensor in reversed(state.items())}
    # On disk some weights have other names and shapes than in memory, such as a mixture's experts: one tensor each.
    kept = revert_weight_conversion(model, {name: tensor for name, tensor in state.items() if name in named.values()})
    tensors = {name: tensor.contiguous() for name, tensor in kept.items()}
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
