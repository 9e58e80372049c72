"""What a stage will take: counted on a model without numbers, the same as on the real one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import SEQ_LEN

from training.config import ModelConfig, TrainingConfig
from training.estimate import Place, Stage, estimate, memory_of
from training.fit import cheapest_fit
from training.flops import arithmetic_of
from training.model import build_model, count_parameters
from training.rehearsal import rehearse
from training.resources import Resources
from training.scoring import Scorer
from training.skeleton import skeleton
from training.vocabulary import Vocabulary

SMALL = ModelConfig(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=2)
HERE = Place(gpu=False, threads=2, memory_bytes=None)


def stage(resources: Resources | None = None, **changes: Any) -> Stage:
    """Returns a stage of 8 rows of 128 tokens."""
    values = {"objective": "pretrain", "steps": 1000, "rows_per_step": 8, "precision": "fp32", **changes}
    training = TrainingConfig.model_validate(values)
    return Stage(SMALL, training, resources or Resources(), base=None, vocabulary=512, seq_len=128)


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4}, {"lora_rank": 2, "lora_targets": ["q_proj", "down_proj"]}])
def test_a_skeleton_has_the_weights_of_the_model(packed_data: Path, changes: dict[str, Any]) -> None:
    vocabulary = Vocabulary(packed_data / "tokenizer")
    config = TrainingConfig.model_validate({"objective": "sft", "steps": 1, **changes})
    model = build_model(SMALL, None, vocabulary, config, SEQ_LEN)
    bare = skeleton(SMALL, None, vocabulary.size, config, "none", SEQ_LEN)
    assert count_parameters(bare) == count_parameters(model)
    assert arithmetic_of(bare) == arithmetic_of(model)


def test_a_skeleton_of_any_architecture_is_read_from_a_folder(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=200, n_positions=64))
    model.save_pretrained(tmp_path)
    bare = skeleton(ModelConfig(), tmp_path, 200, stage().training, "none", 64)
    assert count_parameters(bare) == count_parameters(model)
    assert arithmetic_of(bare).body == 2 * 12 * 32 * 32  # Chowdhery et al.'s N, without vectors
    assert rehearse(bare, rows=2, seq_len=32, targets=64, half=False).peak > 0


def test_a_rehearsal_counts_what_the_real_pass_keeps(packed_data: Path) -> None:
    """The tensors that autograd saves, seen by its own hooks, are what the rehearsal says is kept."""
    asked = stage()
    model = build_model(SMALL, None, Vocabulary(packed_data / "tokenizer"), asked.training, SEQ_LEN)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.zeros(4, SEQ_LEN, dtype=torch.long)
    targets = torch.zeros(100, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scores = Scorer(model).train()(tokens, torch.arange(SEQ_LEN).expand(4, -1), targets, targets)
    asked = replace(asked, vocabulary=model.get_input_embeddings().num_embeddings)
    seen = rehearse(asked.skeleton(), rows=4, seq_len=SEQ_LEN, targets=100, half=False)
    assert seen.kept == pytest.approx(sum(kept.values()) + scores.nbytes, rel=0.1)


def test_estimates_follow_from_what_is_asked() -> None:
    plain = estimate(stage(), HERE)
    checkpointed = estimate(stage(Resources(activation_checkpointing="full")), HERE)
    assert checkpointed.memory.activations < plain.memory.activations / 2
    assert estimate(stage(accumulation=8), HERE).memory.activations < plain.memory.activations / 4
    assert estimate(stage(accumulation=8), HERE).flops == plain.flops
    assert estimate(stage(lora_rank=2), HERE).memory.optimizer < plain.memory.optimizer / 10
    slow = estimate(stage(), HERE, flops_per_second=1e9)
    assert slow.seconds > slow.flops / 1e9 > 10 * plain.seconds
    divided = memory_of(stage(Resources(processes=4, engine="fsdp2")), HERE)
    copied = memory_of(stage(Resources(processes=4, engine="ddp")), HERE)
    assert divided.weights == pytest.approx(copied.weights / 4, rel=0.01)
    assert divided.optimizer == pytest.approx(plain.memory.optimizer / 4, rel=0.01)
    assert sum(vars(divided).values()) == divided.total


def test_the_cheapest_setting_that_fits_is_named() -> None:
    asked = stage()
    needed = memory_of(asked, HERE).total

    def advice(memory_bytes: int, of: Stage = asked) -> str:
        return cheapest_fit(of, replace(HERE, memory_bytes=memory_bytes))

    half = memory_of(stage(accumulation=2), HERE).total
    assert half < needed
    assert advice(half) == "accumulation: 2"
    least = memory_of(stage(accumulation=8), HERE).total
    assert advice(least - 1).startswith("activation_checkpointing: full, accumulation: ")
    assert advice(1000) == ""
