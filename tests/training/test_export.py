"""Bundles hold what transformers reads back, adapters merge without a difference, equal models give equal bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import TINY_MODEL
from transformers import AutoModelForCausalLM, AutoTokenizer

from lineage.errors import GoldpathError
from training.config import ModelConfig, TrainingConfig
from training.export import export_model, save_bundle
from training.model import build_model
from training.scoring import Scorer
from training.vocabulary import Vocabulary


@pytest.fixture
def build(packed_data: Path) -> Callable[..., Scorer]:
    """Builds a tiny model, with adapters where a rank is given; adapters get weights that matter."""

    def build(rank: int = 0, tied: bool = True) -> Scorer:
        config = TrainingConfig(objective="sft", steps=1, lora_rank=rank)
        dimensions = ModelConfig(**TINY_MODEL, tie_embeddings=tied)
        model = build_model(dimensions, None, Vocabulary(packed_data / "tokenizer"), config, 48)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return Scorer(model)

    return build


@pytest.mark.parametrize("tied", [True, False])
def test_a_bundle_is_what_transformers_reads(
    build: Callable[..., Scorer], packed_data: Path, tmp_path: Path, tied: bool
) -> None:
    scorer, vocabulary = build(tied=tied), Vocabulary(packed_data / "tokenizer")
    digest = save_bundle(scorer.model, vocabulary, "card", tmp_path / "bundle")
    assert save_bundle(scorer.model, vocabulary, "card", tmp_path / "again") == digest
    assert ("lm_head.weight" in load_file(tmp_path / "bundle" / "model.safetensors")) == (not tied)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "bundle")
    assert loaded.dtype == torch.float32
    sample = torch.arange(3, 20)[None]
    assert torch.equal(loaded(sample).logits, scorer.model(sample).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "bundle").eos_token == "</s>"


def test_merged_adapters_say_the_same(build: Callable[..., Scorer], packed_data: Path, tmp_path: Path) -> None:
    scorer, sample = build(rank=3), torch.arange(3, 20)[None]
    before = scorer.model(sample).logits
    weights = {name: p.detach().clone() for name, p in scorer.named_parameters() if p.requires_grad}
    export_model(build(rank=3), weights, Vocabulary(packed_data / "tokenizer"), "card", tmp_path, sample)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "bundle")(sample).logits
    assert torch.allclose(merged, before, atol=1e-5)
    plain = build(rank=0).model(sample).logits
    assert (plain - before).abs().max() > 1e-3  # the adapters did matter


def test_weights_of_another_model_are_refused(build: Callable[..., Scorer], packed_data: Path, tmp_path: Path) -> None:
    with pytest.raises(GoldpathError, match="do not fit the model"):
        export_model(build(), {}, Vocabulary(packed_data / "tokenizer"), "card", tmp_path, torch.arange(3, 20)[None])
    assert not (tmp_path / "bundle").exists()
