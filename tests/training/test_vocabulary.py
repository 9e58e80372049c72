"""A base keeps the meaning of its token ids, and new tokens start at the mean of the old ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_architectures import tiny_config
from tiny_training import TINY_MODEL, VOCABULARY, Command, write_tokenizer
from transformers import AutoModelForCausalLM

from lineage.errors import BadInput
from lineage.files import write_json
from lineage.record import read_record
from lineage.stage import STARTED
from training.config import ModelConfig, TrainingConfig
from training.export import save_bundle
from training.model import build_model
from training.vocabulary import Vocabulary

GROW = ModelConfig(grow_vocabulary=True)
NEW = 3


def config(**changes: object) -> TrainingConfig:
    """A valid configuration with changes."""
    return TrainingConfig.model_validate({"objective": "sft", "steps": 1, **changes})


def make_base(folder: Path, tokenizer: Path, model: ModelConfig) -> Path:
    """Writes a model with its tokenizer."""
    vocabulary = Vocabulary(tokenizer)
    save_bundle(build_model(model, None, vocabulary, config(), 48), vocabulary, "card", folder)
    return folder


@pytest.fixture
def larger(packed_data: Path, tmp_path: Path) -> Vocabulary:
    """The miniature tokenizer and three tokens more."""
    write_tokenizer(tmp_path / "larger", VOCABULARY + NEW)
    return Vocabulary(tmp_path / "larger")


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_of_the_old_ones(tied: bool, packed_data: Path, larger: Vocabulary, tmp_path: Path) -> None:
    dimensions = ModelConfig(**TINY_MODEL, tie_embeddings=tied)
    base = make_base(tmp_path / "base", packed_data / "tokenizer", dimensions)
    before = AutoModelForCausalLM.from_pretrained(base)
    model = build_model(GROW, base, larger, config(), 48)
    for old, new in (
        (before.get_input_embeddings(), model.get_input_embeddings()),
        (before.get_output_embeddings(), model.get_output_embeddings()),
    ):
        assert new.weight.shape[0] == VOCABULARY + NEW
        assert torch.equal(new.weight[:VOCABULARY], old.weight)
        assert torch.allclose(new.weight[VOCABULARY:], old.weight.mean(0).expand(NEW, -1), atol=1e-7)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert model.config.vocab_size == VOCABULARY + NEW
    again = build_model(GROW, base, larger, config(seed=7), 48)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    save_bundle(model, larger, "card", tmp_path / "grown")
    sample = torch.tensor([[3, VOCABULARY, VOCABULARY + 2]])
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "grown")(sample).logits, model(sample).logits)


def test_rows_that_were_spare_and_an_output_bias(packed_data: Path, larger: Vocabulary, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", packed_data / "tokenizer", ModelConfig(config=tiny_config("phi")))
    padded = AutoModelForCausalLM.from_pretrained(base)
    torch.nn.init.normal_(padded.lm_head.bias)
    padded.resize_token_embeddings(VOCABULARY + 32)  # as models do for round numbers
    shutil.rmtree(base)
    save_bundle(padded, Vocabulary(packed_data / "tokenizer"), "card", base)
    model = build_model(GROW, base, larger, config(), 48)
    assert model.config.vocab_size == VOCABULARY + 32
    bias = model.lm_head.bias
    assert torch.allclose(bias[VOCABULARY : VOCABULARY + NEW], padded.lm_head.bias[:VOCABULARY].mean().expand(NEW))


@pytest.fixture
def base(packed_data: Path, tmp_path: Path) -> Path:
    """A tiny tied model with its tokenizer."""
    return make_base(tmp_path / "base", packed_data / "tokenizer", ModelConfig(**TINY_MODEL))


def test_growing_is_asked_for(base: Path, larger: Vocabulary) -> None:
    for told in (None, ModelConfig()):
        with pytest.raises(BadInput, match=r"3 more tokens than the base model .*`model: grow_vocabulary: true`"):
            build_model(told, base, larger, config(), 48)


def test_old_tokens_keep_their_ids(base: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "other", VOCABULARY + NEW)
    path = tmp_path / "other" / "tokenizer.json"
    values = json.loads(path.read_text())
    words = values["model"]["vocab"]
    words["w5"], words["w6"] = words["w6"], words["w5"]
    path.write_text(json.dumps(values))
    with pytest.raises(BadInput, match="has another vocabulary: other tokens than the base"):
        build_model(GROW, base, Vocabulary(tmp_path / "other"), config(), 48)


def test_a_base_without_a_tokenizer(base: Path, larger: Vocabulary) -> None:
    (base / "manifest.json").unlink()
    (base / "tokenizer.json").unlink()
    for vocabulary in (larger, Vocabulary(larger.folder)):
        with pytest.raises(BadInput, match=r"base: tokenizer.json: is missing"):
            build_model(GROW, base, vocabulary, config(), 48)


def test_adapters_alone_would_not_learn_new_tokens(base: Path, larger: Vocabulary) -> None:
    with pytest.raises(
        BadInput, match=r"never learn the new tokens. Fix: write `lora_full_modules: \[embed_tokens, lm_head\]`"
    ):
        build_model(GROW, base, larger, config(lora_rank=2), 48)
    model = build_model(GROW, base, larger, config(lora_rank=2, lora_full_modules=["embed_tokens"]), 48)
    model(torch.tensor([[3, 4, VOCABULARY + 1]])).logits.sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and "lora" not in name}
    assert [p.shape[0] for p in trained.values()] == [VOCABULARY + NEW]
    assert all(p.grad is not None for p in trained.values())


@pytest.mark.parametrize("adapters", [{}, {"lora_rank": 2, "lora_full_modules": ["embed_tokens"]}])
def test_the_command_grows_and_resumes(
    adapters: dict[str, object], base: Path, larger: Vocabulary, packed_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(packed_data / "packed", data / "packed")
    shutil.copytree(larger.folder, data / "tokenizer")
    command = Command(data, tmp_path)
    job = command.job("sft", base=base, **adapters)
    told = json.loads(job.read_text())
    told["config"]["model"] = {"grow_vocabulary": True}
    job.write_text(json.dumps(told))
    out = tmp_path / "out"
    code, said, errors = command.run(job, out)
    assert code == 0, errors
    assert said["metrics"]["validation_loss"] < said["metrics"]["validation_loss_before"]
    weights = out / "bundle" / "model.safetensors"
    whole = weights.read_bytes()
    assert load_file(weights)["model.embed_tokens.weight"].shape[0] == VOCABULARY + NEW
    write_json(out / STARTED, {"fingerprint": read_record(out).fingerprint})  # as a kill after step 4 leaves it
    (out / "record.json").unlink()
    shutil.rmtree(out / "bundle")
    shutil.rmtree(out / ".checkpoints" / "step-000006")
    code, _, errors = command.run(job, out)
    assert code == 0, errors
    assert "continuing from step-000004" in errors
    assert weights.read_bytes() == whole
