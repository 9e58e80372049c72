"""Attention by lengths: where documents lie, and that they are computed apart. The kernels themselves need a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_steps import ALONE, Steps
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from lineage.errors import BadInput
from training import varlen_attention
from training.attention import choose_attention, set_attention
from training.processes import Processes

CUDA = torch.device("cuda")
ROWS = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=4)  # lengths of documents


def positions_of(rows: list[list[int]], seq_len: int) -> torch.Tensor:
    """Positions of packed documents; padding has 0 everywhere, as the data stage writes it."""
    table = torch.zeros(len(rows), seq_len, dtype=torch.long)
    for number, lengths in enumerate(rows):
        packed = torch.cat([torch.arange(length) for length in lengths])
        table[number, : len(packed)] = packed
    return table


@given(rows=ROWS)
def test_boundaries_are_those_of_the_documents(rows: list[list[int]]) -> None:
    seq_len = 32
    found = varlen_attention.find_boundaries(positions_of(rows, seq_len)).tolist()
    begins = []
    for number, lengths in enumerate(rows):
        lengths = lengths + [1] * (seq_len - sum(lengths))  # a token of padding stands alone
        place, alone_before = number * seq_len, False
        for length in lengths:
            if not (alone_before and length == 1):
                begins.append(place)
            place, alone_before = place + length, length == 1
        assert place == (number + 1) * seq_len
    assert found == [*begins, len(rows) * seq_len]


def test_one_document_a_row_has_the_rows_as_boundaries() -> None:
    boundaries = varlen_attention.find_boundaries(torch.arange(8).expand(3, 8))
    assert boundaries.tolist() == [0, 8, 16, 24]
    assert boundaries.dtype == torch.int32


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *bounds: Any, **options: Any) -> torch.Tensor:
    """What torch says of `varlen_attn`: (tokens, heads, head_dim), causal inside each document, grouped heads."""
    assert options["window_size"] == (-1, 0)
    assert options["enable_gqa"]
    starts, same, longest, same_length = bounds
    assert starts is same
    assert longest == same_length >= int(starts.diff().max())
    k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
    parts = []
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        here = (tensor[start:stop].transpose(0, 1)[None] for tensor in (q, k, v))
        part = torch.nn.functional.scaled_dot_product_attention(*here, is_causal=True, scale=options["scale"])
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("how", ["none", "selective"])
def test_shapes_and_lengths_reach_the_kernel(how: str, packed_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel, which CPUs do not have, replaced by what its documentation says."""
    monkeypatch.setattr(varlen_attention, "varlen_attn", reference)
    sides = [Steps(packed_data, {"attention": "eager", "activation_checkpointing": how}) for _ in range(2)]
    set_attention(sides[0].engine.scorer.model, varlen_attention.NAME)
    batch = sides[0].rows.batch(range(3))
    ours, plain = (side.engine.score(batch) for side in sides)
    assert torch.allclose(ours, plain, atol=1e-5)
    ours_taken, plain_taken = (torch.tensor(side.take(4)) for side in sides)
    assert torch.allclose(ours_taken, plain_taken, atol=2e-5)


def test_a_gpu_takes_it_by_itself_where_its_kernels_compute_what_is_asked() -> None:
    llama, wide, odd = LlamaConfig(), LlamaConfig(head_dim=512), LlamaConfig(head_dim=36)
    assert choose_attention("auto", CUDA, "bf16", 4096, llama) == varlen_attention.NAME
    for precision, config in (("fp32", llama), ("bf16", wide), ("fp16", odd)):
        assert choose_attention("auto", CUDA, precision, 4096, config) == "sdpa"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "precision", "size", "problem"),
    [
        ("cpu", "bf16", 64, "`varlen` trains on GPUs only, and the device is `cpu`"),
        ("cuda", "fp32", 64, "`varlen` is for half precision, and the precision is `fp32`"),
        ("cuda", "bf16", 512, "`varlen` is for plain attention with heads of at most 256, and this is llama"),
    ],
)
def test_what_its_kernels_do_not_compute_is_refused(device: str, precision: Any, size: int, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        choose_attention("varlen", torch.device(device), precision, 4096, LlamaConfig(head_dim=size))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_learns_by_lengths_what_plain_attention_learns(compiled: bool, packed_data: Path) -> None:
    torch._dynamo.reset()
    gpu = Processes(0, 1, CUDA)
    model = {"hidden_size": 64, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1,
             "max_positions": 64}  # fmt: skip
    resources = {"attention": "varlen", "activation_checkpointing": "selective", "compile": compiled}
    steps = Steps(packed_data, resources, {"precision": "bf16"}, processes=gpu, model=model)
    precise = Steps(packed_data, {"attention": "eager"}, processes=ALONE, model=model)
    assert steps.engine.scorer.model.config._attn_implementation == varlen_attention.NAME
    losses = [loss for loss, _ in steps.take(4)]
    assert losses == pytest.approx([loss for loss, _ in precise.take(4)], abs=5e-2)
