"""How blocks compute: recomputed activations and compiled graphs change no result, and attention never leaks."""

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_steps import ALONE, Steps
from tiny_training import TINY_MODEL
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from lineage.errors import BadInput
from training.attention import choose_attention
from training.config import TrainingConfig
from training.document_attention import NAME
from training.engine import SingleEngine
from training.float8 import convert_to_float8
from training.liger import use_liger
from training.processes import Processes
from training.resources import Resources

CPU = torch.device("cpu")
LLAMA = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)


@pytest.mark.parametrize("how", ["full", "selective"])
@pytest.mark.parametrize("training", [{}, {"precision": "bf16"}, {"lora_rank": 2}], ids=["fp32", "bf16", "lora"])
def test_recomputing_activations_changes_no_bit(how: str, training: dict[str, Any], packed_data: Path) -> None:
    again, plain = (Steps(packed_data, {"activation_checkpointing": one}, training) for one in (how, "none"))
    assert again.take(3) == plain.take(3)
    expected = plain.engine.full_weights()
    assert all(torch.equal(weight, expected[name]) for name, weight in again.engine.full_weights().items())


def test_recomputing_keeps_fewer_activations(packed_data: Path) -> None:
    def kept_bytes(how: str) -> int:
        scorer = Steps(packed_data, {"activation_checkpointing": how}).engine.scorer
        rows = Steps(packed_data).rows
        batch, kept = rows.batch(range(4)), {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
            scorer(batch.input_ids, batch.position_ids, batch.predictors, batch.targets)
        return sum(kept.values())

    assert kept_bytes("full") < kept_bytes("none") / 2


@pytest.mark.parametrize("attention", ["eager", "sdpa", "documents"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_packed_document_scores_as_if_alone(attention: str, precision: str, packed_data: Path) -> None:
    steps = Steps(packed_data, {"attention": attention}, {"precision": precision})
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    packed = steps.rows.batch([0, 1])
    together = steps.engine.score(packed)
    alone = []
    for row in (0, 1):
        ids, positions = packed.input_ids[row], packed.position_ids[row]
        starts = [*positions.eq(0).nonzero()[:, 0].tolist(), len(ids)]
        for first, end in pairwise(starts):
            place = packed.predictors - row * len(ids)
            mine = (place >= first) & (place < end - 1)
            if mine.any():
                part = (ids[None, first:end], positions[None, first:end], place[mine] - first, packed.targets[mine])
                with torch.no_grad(), steps.engine.mixed_precision():
                    alone.append(steps.engine.scorer(*part))
    assert torch.allclose(torch.cat(alone), together, atol=tolerance)


def test_attention_chosen_by_itself() -> None:
    llama, gpt, windowed = LlamaConfig(), GPT2Config(), Qwen2Config(use_sliding_window=True, max_window_layers=0)
    assert choose_attention("auto", CPU, "bf16", 512, llama) == NAME
    assert (
        choose_attention("auto", CPU, "bf16", 512, gpt) == choose_attention("auto", CPU, "bf16", 512, windowed) == "eager"
    )
    assert choose_attention("auto", CPU, "bf16", 1024, llama) == choose_attention("auto", CPU, "fp32", 256, llama) == "sdpa"
    assert choose_attention("auto", torch.device("cuda"), "bf16", 256, gpt) == "sdpa"
    assert choose_attention("flex", torch.device("cuda"), "bf16", 256, llama) == "flex_attention"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_documents_learn_what_plain_attention_learns(precision: str, packed_data: Path) -> None:
    for groups in (1, 2):
        model = TINY_MODEL | {"num_kv_heads": 2 // groups}
        sides = [
            Steps(packed_data, {"attention": one}, {"precision": precision}, model=model) for one in ("documents", "eager")
        ]
        losses = [torch.tensor(side.take(4)) for side in sides]
        assert torch.allclose(*losses, atol=2e-5 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("attention", ["flash", "flex"])
def test_attention_of_gpus_is_refused_on_cpus(attention: str, packed_data: Path) -> None:
    with pytest.raises(BadInput, match=f"`{attention}` trains on GPUs only, and the device is `cpu`"):
        Steps(packed_data, {"attention": attention})


def test_ligers_kernels_are_refused_where_they_do_not_run(packed_data: Path) -> None:
    with pytest.raises(BadInput, match="`liger` is for GPUs, and the device is `cpu`"):
        Steps(packed_data, {"kernels": "liger"})
    with pytest.raises(ValueError, match="kernels `liger` and compile fuse the same operations"):
        Steps(packed_data, {"kernels": "liger", "compile": True})
    if find_spec("liger_kernel") is None:
        with pytest.raises(BadInput, match=r"pip install 'goldpath\[liger\]'"):
            use_liger(AutoModelForCausalLM.from_config(LLAMA), torch.device("cuda"))


def test_ligers_kernels_change_one_model_and_no_other() -> None:
    pytest.importorskip("liger_kernel")
    use_liger(AutoModelForCausalLM.from_config(LLAMA), torch.device("cuda"))
    other = AutoModelForCausalLM.from_config(LLAMA)  # the one to export, on the CPU
    assert other(input_ids=torch.arange(8)[None]).logits.isfinite().all()
    with pytest.raises(BadInput, match="`liger` has no kernels for gpt2"):
        use_liger(AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=32, n_head=2)), torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("training", [{}, {"lora_rank": 4}], ids=["all weights", "lora"])
def test_ligers_kernels_learn_what_others_learn(training: dict[str, Any], packed_data: Path) -> None:
    pytest.importorskip("liger_kernel")
    gpu = Processes(0, 1, torch.device("cuda"))
    sides = [Steps(packed_data, {"kernels": one}, training, processes=gpu) for one in ("liger", "torch")]
    ours, plain = (torch.tensor(side.take(4)) for side in sides)
    assert torch.allclose(ours, plain, rtol=1e-3, atol=1e-4)


def test_flash_needs_half_precision() -> None:
    with pytest.raises(BadInput, match="computes in half precision"):
        choose_attention("flash", torch.device("cuda"), "fp32", 256, LlamaConfig())


def test_without_a_compiler_compilation_is_refused(packed_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadInput, match=r"there is no C\+\+ compiler here"):
        Steps(packed_data, {"compile": True})


def test_fp8_is_refused_where_there_is_none(packed_data: Path) -> None:
    with pytest.raises(BadInput, match=r"`fp8` needs a GPU of compute capability 8\.9 or higher, and this is none"):
        Steps(packed_data, training={"precision": "fp8"})


def test_emulated_fp8_learns_nearly_the_same(packed_data: Path) -> None:
    pytest.importorskip("torchao")
    rounded, precise = Steps(packed_data), Steps(packed_data)
    model = rounded.engine.scorer.model
    convert_to_float8(model, model.get_output_embeddings(), emulate=True)
    assert "Float8Linear" in {type(part).__name__ for part in model.modules()}
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    got, expected = ([loss for loss, _ in steps.take(5)] for steps in (rounded, precise))
    assert got != expected
    assert got == pytest.approx(expected, abs=0.05)
    assert rounded.engine.full_weights().keys() == precise.engine.full_weights().keys()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="no GPU with fp8")
def test_a_gpu_learns_in_fp8(packed_data: Path) -> None:
    pytest.importorskip("torchao")
    gpu = Processes(0, 1, torch.device("cuda"))
    model = {"hidden_size": 64, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1,
             "max_positions": 64}  # fmt: skip
    steps = Steps(packed_data, training={"precision": "fp8"}, processes=gpu, model=model)
    expected = [loss for loss, _ in Steps(packed_data, model=model).take(5)]
    assert [loss for loss, _ in steps.take(5)] == pytest.approx(expected, abs=0.1)


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(packed_data: Path) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of tests before this one
    compiled, plain = Steps(packed_data, {"compile": True}), Steps(packed_data)
    got, expected = compiled.take(3), plain.take(3)
    assert [loss for loss, _ in got] == pytest.approx([loss for loss, _ in expected], abs=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # all blocks share one
    scores = compiled.engine.score(compiled.rows.batch(range(3)))  # another number of rows, in another mode
    assert torch.allclose(scores, plain.engine.score(plain.rows.batch(range(3))), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("attention", ["sdpa", "varlen", "flash", "flex"])
def test_a_gpu_keeps_packed_documents_apart(attention: str, packed_data: Path) -> None:
    pytest.importorskip("flash_attn") if attention == "flash" else None
    gpu = Processes(0, 1, torch.device("cuda"))
    model = {"hidden_size": 64, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1,
             "max_positions": 64}  # fmt: skip
    precise = Steps(packed_data, {"attention": "eager"}, processes=ALONE, model=model)
    steps = Steps(packed_data, {"attention": attention}, {"precision": "bf16"}, processes=gpu, model=model)
    batch = steps.rows.batch(range(3))
    scores = steps.engine.score(batch.to(gpu.device)).cpu()
    assert torch.allclose(scores, precise.engine.score(batch), atol=5e-2)
    losses = [loss for loss, _ in steps.take(4)]
    assert losses == pytest.approx([loss for loss, _ in precise.take(4)], abs=5e-2)


def test_nothing_that_was_compiled_is_an_error(packed_data: Path) -> None:
    torch._dynamo.utils.counters.clear()
    steps = Steps(packed_data)
    engine = SingleEngine(steps.engine.scorer, TrainingConfig(objective="sft", steps=1, precision="fp32"), ALONE,
                          Resources(compile=True))  # fmt: skip  # whose blocks nobody compiled
    batch = steps.rows.batch([0])
    with pytest.raises(Exception, match="no block was compiled"):
        engine.learn(batch, lambda scores: -scores.sum(), last=True)
