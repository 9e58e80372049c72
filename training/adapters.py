"""LoRA and its variants: which layers get an adapter, what is trained beside them, how adapters become plain weights."""

import difflib
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lineage.errors import BadInput, GoldpathError
from lineage.files import write_json
from training.choices import ALL_LINEAR
from training.quantize import dequantize, quantize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.config import TrainingConfig

# Of the largest logit. Merging only reorders fp32 sums: 1e-6 at 6 M weights, 4e-6 at 110 M, growing with the width; a layer
# that is merged wrongly, or not at all, shows by 1e-3 and more.
MERGE_TOLERANCE = 1e-4
FIELD = "config.training"
# Architectures that read these layers' weights in fused kernels, so that an adapter has no effect; peft refuses the first.
MAMBA = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
PASSED_BY = frozenset({"out_proj", "dt_proj"})


def with_adapters(model: "PreTrainedModel", training: "TrainingConfig", new_tokens: bool = False) -> "PreTrainedModel":
    """Returns the model with LoRA adapters (Hu et al. 2021); only they and `lora_full_modules` are trained.

    Args:
        new_tokens: whether the embedding has rows that nothing was learnt into yet.

    Raises:
        BadInput: a target is no linear layer, a module in full is none, new tokens would not be trained, or 4-bit weights
            are asked for without the library.
    """
    # Where bitsandbytes is installed, peft imports it, and it says which of its optional kernels it does without.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peft import LoraConfig, get_peft_model

    full = _full_modules(model, training.lora_full_modules)
    if new_tokens:
        _require_trained_tables(model, full)
    targets = [name for name in _linear_targets(model, training.lora_targets) if name not in full]
    tied = model.get_input_embeddings().weight is getattr(model.get_output_embeddings(), "weight", None)
    adapters = LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        use_rslora=training.lora_rslora,
        use_dora=training.lora_dora,
        target_modules=_short_names(model, targets),
        modules_to_save=list(training.lora_full_modules) or None,
        ensure_weight_tying=tied and bool(full.keys() & _tables(model).keys()),
        lora_dropout=0.0,  # a resumed run repeats the same numbers, and adapters this small do not overfit without it
        task_type="CAUSAL_LM",
    )
    model.requires_grad_(False)
    if training.lora_quantize == "nf4":
        quantize(model, kept=[*full, *_tables(model)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft uses transformers' old name
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)  # GPT-2's layers; peft sets it
        try:
            adapted: PreTrainedModel = get_peft_model(model, adapters)
        except (ValueError, NotImplementedError) as error:  # a layer that peft, or this variant of LoRA, cannot adapt
            reason = str(error).strip().splitlines()[0]
            raise BadInput("job.yaml", f"{FIELD}.lora_targets", f"cannot be adapted ({reason})", "choose others") from None
    if tied and adapted.get_input_embeddings().weight is not adapted.get_output_embeddings().weight:
        problem = "would part the embedding from the output layer, which are one table in this model"
        fix = "leave them out, or train all weights (`lora_rank: 0`)"
        raise BadInput("job.yaml", f"{FIELD}.lora_full_modules", problem, fix)
    if adapted.device.type != "meta":  # shapes alone show no effect
        _require_effect(adapted)
    return adapted


@torch.no_grad()
def merge_adapters(model: "PreTrainedModel", sample: Tensor) -> "PreTrainedModel":
    """Returns the plain model with W + scale B A in place of each adapted W; checks that its logits stay the same.

    A quantised W is first what its 4 bits stand for: that model was trained and validated. Merging into the weights from
    before quantisation would give one that nobody has seen.

    Raises:
        GoldpathError: they differ by more than `MERGE_TOLERANCE` of the largest.
    """
    model.eval()
    before = model(input_ids=sample, use_cache=False).logits
    dequantize(model)
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    after = merged(input_ids=sample, use_cache=False).logits
    difference = float((after - before).abs().max() / before.abs().max())
    if not difference <= MERGE_TOLERANCE:
        raise GoldpathError(
            f"merging the adapters changed the logits by {difference:.2e} of the largest, not a rounding error"
        )
    print(f"adapters merged: the logits differ by {difference:.1e} of the largest", file=sys.stderr)
    return merged


def save_adapters(model: "PreTrainedModel", folder: Path) -> None:
    """Writes the adapters alone, as peft loads them; equal adapters give equal bytes."""
    model.peft_config["default"].base_model_name_or_path = None  # a path of this machine means nothing elsewhere
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's template, with nothing filled in
    config = folder / "adapter_config.json"  # peft writes sets in the order of this process's string hashes
    values = json.loads(config.read_text(encoding="utf-8"))
    write_json(config, {key: sorted(value) if isinstance(value, list) else value for key, value in values.items()})


def _linear_targets(model: "PreTrainedModel", wanted: str | Iterable[str]) -> list[str]:
    """Returns the full names of the layers that `lora_targets` means, in the model's order.

    Raises:
        BadInput: a name or the expression means none of them.
    """
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    linear = [name for name, part in model.named_modules() if isinstance(part, (nn.Linear, Conv1D))]
    inner = [name for name in linear if name not in _tables(model)]
    if wanted == ALL_LINEAR:
        passed_by = PASSED_BY if model.config.model_type in MAMBA else ()
        return [name for name in inner if name.rpartition(".")[2] not in passed_by]
    if isinstance(wanted, str):
        try:
            found = [name for name in linear if re.fullmatch(wanted, name)]
        except re.error as error:
            raise BadInput(
                "job.yaml", f"{FIELD}.lora_targets", f"is no regular expression ({error})", "correct it"
            ) from None
        if not found:
            fix = f"it must match whole names such as `{inner[0]}`" if inner else "give another base"
            raise BadInput("job.yaml", f"{FIELD}.lora_targets", f"`{wanted}` matches no linear layer of the model", fix)
        return found
    for target in wanted:
        _require_known(target, inner, "lora_targets", "linear layer")
    return [name for name in linear if any(_means(target, name) for target in wanted)]


def _full_modules(model: "PreTrainedModel", wanted: Iterable[str]) -> dict[str, nn.Module]:
    """Returns the modules that are trained in full, by full name; a linear layer among them needs no adapter."""
    modules = {
        name: part for name, part in model.named_modules() if name and any(True for _ in part.parameters(recurse=False))
    }
    for target in wanted:
        _require_known(target, modules, "lora_full_modules", "module with weights")
    return {name: part for name, part in modules.items() if any(_means(target, name) for target in wanted)}


def _require_known(target: str, names: Iterable[str], field: str, kind: str) -> None:
    names = list(names)
    if any(_means(target, name) for name in names):
        return
    short = sorted({name.rpartition(".")[2] for name in names})
    near = difflib.get_close_matches(target, short, n=1)
    fix = f"did you mean `{near[0]}`?" if near else f"choose from {', '.join(short)}"
    raise BadInput("job.yaml", f"{FIELD}.{field}", f"`{target}` is no {kind} of the model", fix)


def _require_trained_tables(model: "PreTrainedModel", full: dict[str, nn.Module]) -> None:
    """New tokens are learnt in the embedding and in the output layer, or not at all."""
    frozen = [
        name for name, part in _tables(model).items() if not any(part.weight is other.weight for other in full.values())
    ]
    if frozen:
        short = ", ".join(name.rpartition(".")[2] for name in _tables(model))
        raise BadInput(
            "job.yaml",
            f"{FIELD}.lora_full_modules",
            f"leaves out `{frozen[0]}`, so adapters alone would never learn the new tokens",
            f"write `lora_full_modules: [{short}]`, or train all weights (`lora_rank: 0`)",
        )


def _require_effect(model: "PreTrainedModel") -> None:
    """Refuses layers of which the model reads the weight only: their adapters would be trained in vain, and merged wrongly.

    An expert may see none of these few tokens, so a kind of layer is refused where none of its adapters has a gradient.
    """
    tokens = torch.arange(1, 9)[None] % model.get_input_embeddings().weight.shape[0]
    with torch.enable_grad():
        model(input_ids=tokens, use_cache=False).logits.square().mean().backward()
    effects: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            kind = name.partition(".lora_B.")[0].rpartition(".")[2]
            effects[kind] = effects.get(kind, False) or (parameter.grad is not None and bool(parameter.grad.any()))
        parameter.grad = None
    if idle := sorted(kind for kind, effect in effects.items() if not effect):
        fix = "list `lora_targets` without it"
        raise BadInput("job.yaml", f"{FIELD}.lora_targets", f"`{idle[0]}` has no effect: its weight is read directly", fix)


def _tables(model: "PreTrainedModel") -> dict[str, Any]:
    """Returns embedding and output layer by full name."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    return {name: part for name, part in model.named_modules() if any(part is end for end in ends)}


def _short_names(model: "PreTrainedModel", targets: list[str]) -> list[str]:
    """Returns last names instead of full ones where they mean the same layers: what a person would have written."""
    short = sorted({name.rpartition(".")[2] for name in targets})
    meant = {name for name, _ in model.named_modules() if any(_means(target, name) for target in short)}
    return short if meant == set(targets) else targets


def _means(target: str, name: str) -> bool:
    """Whether a target means a module, as peft reads lists: by full name, or by the end of it."""
    return name == target or name.endswith(f".{target}")
