"""LoRA's variants: what is adapted, what is trained in full, 4-bit bases, and merging without a difference."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_architectures import tiny_config
from tiny_training import TINY_MODEL, VOCABULARY, Command
from transformers import AutoModelForCausalLM

from lineage.errors import BadInput, GoldpathError
from lineage.section import parse
from training.adapters import merge_adapters, with_adapters
from training.batches import PackedRows
from training.config import ModelConfig, TrainingConfig
from training.export import export_model
from training.model import build_model, count_parameters, new_config
from training.quantize import Nf4Linear
from training.scoring import Scorer
from training.vocabulary import Vocabulary

SAMPLE = torch.arange(3, 20)[None]
Build = Callable[..., Scorer]


@pytest.fixture
def build(packed_data: Path) -> Build:
    """Builds a tiny Llama, or another architecture, with adapters; no trained weight is left at its first value."""

    def build(architecture: str = "", tied: bool = True, trained: bool = True, **training: object) -> Scorer:
        config = TrainingConfig.model_validate({"objective": "sft", "steps": 1, "lora_rank": 3, **training})
        new = (
            ModelConfig(config=tiny_config(architecture))
            if architecture
            else ModelConfig(**TINY_MODEL, tie_embeddings=tied)
        )
        scorer = Scorer(build_model(new, None, Vocabulary(packed_data / "tokenizer"), config, 48))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in scorer.parameters():
                if parameter.requires_grad and trained:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return scorer

    return build


def adapted(scorer: Scorer) -> set[str]:
    """Returns the last names of the layers that have an adapter."""
    return {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in scorer.named_parameters() if ".lora_A" in name}


def test_all_linear_leaves_out_the_output_layer(build: Build) -> None:
    everything = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted(build(tied=False)) == everything
    assert adapted(build("gpt2")) == {"c_attn", "c_proj", "c_fc"}


def test_targets_by_name_and_by_pattern(build: Build) -> None:
    assert adapted(build(lora_targets=["q_proj", "mlp.down_proj"])) == {"q_proj", "down_proj"}
    scorer = build(lora_targets=r".*\.1\.self_attn\.[qv]_proj")
    names = {name for name, p in scorer.named_parameters() if p.requires_grad}
    assert len(names) == 4
    assert all(".layers.1.self_attn." in name for name in names)


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        (
            {"lora_targets": ["q_prj"]},
            "lora_targets",
            r"`q_prj` is no linear layer of the model. Fix: did you mean `q_proj`",
        ),
        ({"lora_targets": ["lm_head"]}, "lora_targets", r"`lm_head` is no linear layer"),
        ({"lora_targets": "q_proj"}, "lora_targets", r"matches no linear layer .* whole names such as `model\.layers\.0"),
        ({"lora_targets": "(["}, "lora_targets", "no regular expression"),
        ({"lora_full_modules": ["embed_token"]}, "lora_full_modules", "did you mean `embed_tokens`"),
    ],
)
def test_what_the_model_does_not_have(build: Build, changes: dict[str, Any], field: str, problem: str) -> None:
    with pytest.raises(BadInput, match=problem) as caught:
        build(**changes)
    assert caught.value.field == f"config.training.{field}"


def test_one_table_is_not_parted_into_two(build: Build) -> None:
    with pytest.raises(BadInput, match="would part the embedding from the output layer"):
        build("gpt2", lora_full_modules=["wte"])  # peft knows tied tables by the name `embed_tokens` only


def test_a_layer_that_peft_refuses(build: Build) -> None:
    with pytest.raises(BadInput, match="cannot be adapted"):
        build("mamba", lora_targets=["out_proj"])


def test_a_layer_whose_weight_is_read_directly(build: Build) -> None:
    with pytest.raises(BadInput, match=r"`dt_proj` has no effect"):
        build("mamba", lora_targets=["in_proj", "dt_proj"])


def test_options_of_adapters_without_adapters() -> None:
    for option in ({"lora_dora": True}, {"lora_rslora": True}, {"lora_quantize": "nf4"}, {"lora_full_modules": ["norm"]}):
        with pytest.raises(BadInput, match=r"is of adapters, but lora_rank is 0"):
            parse(TrainingConfig, {"objective": "sft", "steps": 1, **option}, "job.yaml")


def test_rank_stabilised_scale(build: Build) -> None:
    layers = [build(lora_rslora=choice).model.base_model.model.model.layers[0].mlp.up_proj for choice in (False, True)]
    assert [layer.scaling["default"] for layer in layers] == pytest.approx([16 / 3, 16 / 3**0.5])


VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"lora_rslora": True},
    "dora": {"lora_dora": True},
    "dora of GPT-2": {"architecture": "gpt2", "lora_dora": True},
    "embedding in full, tied": {"lora_full_modules": ["embed_tokens"]},
    "embedding and output in full": {"tied": False, "lora_full_modules": ["embed_tokens", "lm_head"]},
    "a linear layer and the norms in full": {"lora_full_modules": ["down_proj", "norm"]},
    "nf4": {"lora_quantize": "nf4"},
    "nf4 and dora": {"lora_quantize": "nf4", "lora_dora": True},
    "nf4 and embedding": {"lora_quantize": "nf4", "lora_full_modules": ["embed_tokens"]},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_merges_exports_and_loads_with_peft(
    name: str, build: Build, packed_data: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    options = VARIANTS[name]
    if "lora_quantize" in options:
        pytest.importorskip("bitsandbytes")
    scorer = build(**options)
    weights = {key: p.detach().clone() for key, p in scorer.named_parameters() if p.requires_grad}
    before = scorer.eval().model(SAMPLE).logits
    fresh = build(**options, trained=False)
    untrained = fresh.eval().model(SAMPLE).logits
    export_model(fresh, weights, Vocabulary(packed_data / "tokenizer"), "card", tmp_path, SAMPLE)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "bundle")(SAMPLE).logits
    assert (merged - before).abs().max() < 1e-5 * before.abs().max()
    assert (untrained - before).abs().max() > 1e-2 * before.abs().max()  # training did matter

    plain = {key: options[key] for key in ("architecture", "tied") if key in options}
    base = build(**plain, lora_rank=0, trained=False).model
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    difference = (loaded(SAMPLE).logits - before).abs().max() / before.abs().max()
    # On the base before quantisation the adapters are those that were trained, and the 4 bits' rounding is missing.
    assert difference < 1e-5 or (difference < 0.3 and "lora_quantize" in options)


def test_adapter_folders_of_equal_runs_are_equal(build: Build, packed_data: Path, tmp_path: Path) -> None:
    for place in ("one", "two"):
        scorer = build()
        weights = {key: p.detach().clone() for key, p in scorer.named_parameters() if p.requires_grad}
        export_model(build(), weights, Vocabulary(packed_data / "tokenizer"), "card", tmp_path / place, SAMPLE)
    names = ("adapter_config.json", "adapter_model.safetensors")
    one, two = ([(tmp_path / place / "adapter" / name).read_bytes() for name in names] for place in ("one", "two"))
    assert one == two
    targets = json.loads(one[0])["target_modules"]
    assert targets == sorted(targets)  # peft writes a set, in another order in every process


def test_a_merge_that_changes_the_model_is_refused(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build().model
    layer = next(part for name, part in model.named_modules() if name.endswith("layers.0.mlp.down_proj"))
    monkeypatch.setattr(layer, "get_delta_weight", lambda adapter: torch.ones_like(layer.base_layer.weight))
    with pytest.raises(GoldpathError, match="merging the adapters changed the logits"):
        merge_adapters(model, SAMPLE)


@pytest.fixture
def wide_linear() -> torch.nn.Linear:
    """A layer with a bias whose weights are no multiple of the block of 64."""
    torch.manual_seed(1)
    return torch.nn.Linear(37, 51)


def test_four_bit_product_and_gradient(wide_linear: torch.nn.Linear) -> None:
    pytest.importorskip("bitsandbytes")
    layer = Nf4Linear(wide_linear)
    assert layer.packed.numel() == (37 * 51 + 1) // 2
    error = (layer.weight - wide_linear.weight).abs().max() / wide_linear.weight.abs().max()
    assert 0 < error < 0.2  # NF4's widest gap is 0.3 of a block's largest weight, and half of it is the error
    x = torch.randn(3, 5, 37, requires_grad=True)
    expected = torch.nn.functional.linear(x, layer.weight, wide_linear.bias)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    layer.eval()(x.detach())  # bitsandbytes' own layer has no gradient after this
    (gradient,) = torch.autograd.grad(layer.train()(x).square().sum(), x)
    assert torch.allclose(layer(x), expected)
    assert torch.allclose(gradient, wanted, atol=1e-5)


def test_four_bit_bases_hold_a_seventh_of_the_bytes(build: Build) -> None:
    pytest.importorskip("bitsandbytes")
    scorer = build(lora_quantize="nf4")
    layers = [part for part in scorer.modules() if isinstance(part, Nf4Linear)]
    assert len(layers) == 14
    held = sum(layer.packed.nbytes + layer.scales.absmax.nbytes + layer.scales.state2.absmax.nbytes for layer in layers)
    assert held < 4 * sum(layer.in_features * layer.out_features for layer in layers) / 7
    assert count_parameters(scorer) == count_parameters(build())
    assert count_parameters(scorer)[1] == sum(p.numel() for name, p in scorer.named_parameters() if "lora_" in name)


def test_four_bit_training_on_a_processor(build: Build, packed_rows: Callable[..., PackedRows]) -> None:
    pytest.importorskip("bitsandbytes")
    scorer = build(lora_quantize="nf4", trained=False)
    batch = packed_rows("sft").batch([0, 1, 2, 3])
    inputs = (batch.input_ids, batch.position_ids, batch.predictors, batch.targets)
    trained = [p for p in scorer.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=0.05), []
    for _ in range(30):
        with torch.no_grad():
            scorer.eval()(*inputs)
        loss = -scorer.train()(*inputs).mean()
        loss.backward()
        assert all(p.grad is not None for p in trained)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.2  # the frozen embedding of a tiny random model leaves no more


def test_shapes_alone_are_adapted_too(build: Build) -> None:
    pytest.importorskip("bitsandbytes")
    config = TrainingConfig.model_validate({"objective": "sft", "steps": 1, "lora_rank": 3, "lora_quantize": "nf4"})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(new_config(ModelConfig(**TINY_MODEL), VOCABULARY, {}))
        shapes = with_adapters(model, config)
    assert {p.device.type for p in shapes.parameters()} == {"meta"}
    assert count_parameters(shapes) == count_parameters(build(lora_quantize="nf4"))


def test_four_bits_without_the_library(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    really = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "bitsandbytes":
            raise ImportError(name)
        return really(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(BadInput, match=r"needs bitsandbytes, which is not installed.*\[quantize\]"):
        build(lora_quantize="nf4")


def test_the_command_trains_adapters_on_four_bits_and_saves_only_them(training_command: Command, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    code, _, errors = training_command.run(training_command.job("pretrain", steps=2), tmp_path / "base")
    assert code == 0, errors
    options = {"lora_rank": 2, "lora_quantize": "nf4", "lora_dora": True, "steps": 4}
    job = training_command.job("sft", base=tmp_path / "base", **options)
    code, said, errors = training_command.run(job, tmp_path / "out")
    assert code == 0, errors
    assert said["metrics"]["validation_loss"] < said["metrics"]["validation_loss_before"]
    checkpoint = load_file(tmp_path / "out" / ".checkpoints" / "step-000004" / "rank-00000.safetensors")
    assert all("lora_" in name or name.startswith("rng/") for name in checkpoint)
    assert "bitsandbytes" not in errors
