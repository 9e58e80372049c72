"""Any causal language model of transformers: scored document by document, adapted, exported, read back."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_architectures import ARCHITECTURES, tiny_config
from transformers import AutoModelForCausalLM

from training.batches import PackedRows
from training.config import ModelConfig, TrainingConfig
from training.export import export_model
from training.model import blocks_of, build_model
from training.scoring import Scorer
from training.vocabulary import Vocabulary

# What a mistake in the rules would show first: who is asked the slower way.
OWN_HEAD = {"gemma2", "cohere", "granite", "opt", "recurrent_gemma"}
ONE_ROW_EACH = {"opt", "falcon", "gpt_oss", "bloom", "mpt", "mamba", "mamba2", "recurrent_gemma"}


@pytest.fixture
def build(packed_data: Path) -> Callable[..., Scorer]:
    """Builds a tiny model of an architecture; adapters get weights that matter."""

    def build(name: str, **training: object) -> Scorer:
        config = TrainingConfig.model_validate({"objective": "sft", "steps": 1, **training})
        model = ModelConfig(config=tiny_config(name))
        scorer = Scorer(build_model(model, None, Vocabulary(packed_data / "tokenizer"), config, 48))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for key, parameter in scorer.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.1, generator=generator)
        return scorer

    return build


def inputs(rows: PackedRows) -> tuple[torch.Tensor, ...]:
    """Two packed rows as the scorer takes them."""
    batch = rows.batch([0, 3])
    return batch.input_ids, batch.position_ids, batch.predictors, batch.targets


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_documents_score_as_alone(
    name: str, build: Callable[..., Scorer], packed_rows: Callable[..., PackedRows]
) -> None:
    scorer = build(name)
    assert scorer.behaviour.plain_head == (name not in OWN_HEAD)
    assert scorer.behaviour.keeps_apart == (name not in ONE_ROW_EACH)
    rows = inputs(packed_rows("pretrain"))
    scores = scorer(*rows)
    assert torch.equal(scores, scorer(*rows)), "a step is not repeatable"  # in training mode: no dropout, no noise
    alone = []
    scorer.eval()
    for row, positions in zip(rows[0], rows[1], strict=True):
        starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(row)]
        for document in (row[start:stop] for start, stop in itertools.pairwise(starts)):
            if len(document) > 1 and document[0] == 1:  # padding is no document
                logits = scorer.model(input_ids=document[None], use_cache=False).logits[0]
                alone.append(logits.log_softmax(-1)[:-1].gather(1, document[1:, None])[:, 0])
    assert torch.allclose(scores, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_learns_and_blocks_are_found(
    name: str, build: Callable[..., Scorer], packed_rows: Callable[..., PackedRows]
) -> None:
    scorer = build(name)
    scorer(*inputs(packed_rows("pretrain"))).sum().backward()
    assert [key for key, p in scorer.named_parameters() if p.grad is None] == []
    assert len(blocks_of(scorer.model)) == 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapters_are_merged_exported_and_read_back(
    name: str, build: Callable[..., Scorer], packed_data: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    scorer, sample = build(name, lora_rank=3), torch.arange(3, 20)[None]
    weights = {key: p.detach().clone() for key, p in scorer.named_parameters() if p.requires_grad}
    assert all("lora_" in key for key in weights)
    before = scorer.eval().model(input_ids=sample).logits
    export_model(build(name, lora_rank=3), weights, Vocabulary(packed_data / "tokenizer"), "card", tmp_path, sample)
    merged, report = AutoModelForCausalLM.from_pretrained(tmp_path / "bundle", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.allclose(merged(input_ids=sample).logits, before, atol=1e-5)
    adapted = PeftModel.from_pretrained(build(name).model, tmp_path / "adapter").eval()
    assert torch.allclose(adapted(input_ids=sample).logits, before, atol=1e-5)
    again = build_model(
        None, tmp_path / "bundle", Vocabulary(packed_data / "tokenizer"), TrainingConfig(objective="sft", steps=1), 48
    )
    assert torch.allclose(again.eval()(input_ids=sample).logits, before, atol=1e-5)
