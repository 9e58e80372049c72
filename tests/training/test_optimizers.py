"""AdamW, 8-bit AdamW and Muon: what they do to a weight, and that their state survives an interruption to the bit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_steps import Steps
from torch import nn

from lineage.errors import BadInput
from lineage.section import parse
from training.config import TrainingConfig
from training.optimizers import MUON_MOMENTUM, Muon, orthogonal_part

BIG_ENOUGH = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2,
              "max_positions": 64}  # fmt: skip  # bitsandbytes leaves tensors below 4096 numbers in 32 bits


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_orthogonal_part_has_singular_values_near_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    got = orthogonal_part(matrix, dtype)
    assert got.dtype == torch.float32
    assert got.shape == matrix.shape
    found = torch.diag(left.T @ got @ right.T)  # the same singular vectors
    large = values > values.max() / 10
    assert ((found[large] > 0.6) & (found[large] < 1.3)).all()


def test_muon_is_torchs_muon_with_moonlights_scale() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 40, generator=generator)
    ours, torchs = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    reference = torch.optim.Muon(
        [torchs], lr=0.02, weight_decay=0.1, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw"
    )
    optimizer = Muon([ours], lr=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    for _ in range(5):
        ours.grad = torch.randn(24, 40, generator=generator)
        torchs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
    assert torch.allclose(ours, torchs, atol=1e-6)


def test_muon_takes_the_matrices_of_blocks_and_leaves_the_rest(packed_data: Path) -> None:
    engine = Steps(packed_data, training={"optimizer": "muon"}).engine
    adamw, muon = engine.make_optimizers()
    names = {id(p): name for name, p in engine.trained.items()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert by_muon | by_adamw == set(engine.trained)
    assert not by_muon & by_adamw
    assert all(name.endswith("_proj.weight") for name in by_muon)
    assert "model.model.embed_tokens.weight" in by_adamw


def test_muon_learns(packed_data: Path) -> None:
    losses = [loss for loss, _ in Steps(packed_data, training={"optimizer": "muon"}).take(20)]
    assert losses[-1] < losses[0] - 1


def test_muon_does_not_train_adapters() -> None:
    with pytest.raises(BadInput, match="optimizer `muon` trains whole matrices"):
        parse(TrainingConfig, {"objective": "sft", "steps": 1, "optimizer": "muon", "lora_rank": 2}, "job.yaml")


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_zero_divides_matrices_that_muon_needs_whole(engine: str, packed_data: Path) -> None:
    with pytest.raises(BadInput, match="`muon` needs whole matrices"):
        Steps(packed_data, {"engine": engine}, {"optimizer": "muon"})


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adamw_8bit"])
def test_an_interruption_changes_no_bit(optimizer: str, packed_data: Path, tmp_path: Path) -> None:
    if optimizer == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    training: dict[str, Any] = {"optimizer": optimizer}
    whole, first, second = (Steps(packed_data, training=training, model=BIG_ENOUGH) for _ in range(3))
    losses = whole.take(6)
    first.take(3)
    first.save(tmp_path)
    second.load(tmp_path)
    assert second.take(3) == losses[3:]
    expected = whole.engine.full_weights()
    assert all(torch.equal(weight, expected[name]) for name, weight in second.engine.full_weights().items())


def test_eight_bits_hold_what_thirty_two_held(packed_data: Path) -> None:
    pytest.importorskip("bitsandbytes")
    small, large = (Steps(packed_data, training={"optimizer": one}, model=BIG_ENOUGH) for one in ("adamw_8bit", "adamw"))
    started = copy.deepcopy(small.engine.full_weights())
    got, expected = small.take(10), large.take(10)
    assert [loss for loss, _ in got] == pytest.approx([loss for loss, _ in expected], abs=0.05)
    parts = {piece.part for piece in small.engine.pieces()}
    assert {"state1", "absmax1", "state2", "absmax2"} <= parts
    assert small.held_bytes() < 0.7 * large.held_bytes()
    assert any(not torch.equal(weight, started[name]) for name, weight in small.engine.full_weights().items())
