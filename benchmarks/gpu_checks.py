"""What only a GPU can show, on a miniature: every way to compute learns the same. One line each; none stops the others."""

import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from benchmarks.gpu_bench import Resources, Run, Training, bench, wait
from lineage.errors import BadInput
from training.energy import EnergyMeter

CPU = torch.device("cpu")
STEPS, ROWS = 4, 4
# A miniature whose heads and layers have sizes that all kernels take.
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
MINIATURE: dict[str, Any] = {"shape": SHAPE, "seq_len": 256, "documents": 8, "num_rows": 32}
HALF, EIGHTH = 0.02, 0.1  # how far losses of about 6 nats may lie from those in fp32, in half precision and in fp8
Check = Callable[[torch.device], str]


class Skipped(Exception):
    """This machine lacks what the check needs."""


def check_all(device: torch.device, only: list[str] | None) -> int:
    """Runs the checks, or those that are named; returns 1 where one failed."""
    failed = 0
    for name in only or CHECKS:
        begin = time.perf_counter()
        try:
            result, detail = "ok", CHECKS[name](device)
        except (Skipped, BadInput) as reason:  # what cannot be here is refused by training itself
            result, detail = "skipped", str(reason)
        except Exception as error:  # whatever it is, the next check is still worth running
            failed += 1
            result, detail = "FAILED", f"{type(error).__name__}: {error}".partition("\n")[0]
            traceback.print_exc()
        print(f"{result:8}{name:42}{time.perf_counter() - begin:6.1f} s  {detail}", flush=True)
    print(f"{failed} failed", file=sys.stderr)
    return int(failed > 0)


def learns_the_same(device: torch.device, *, within: float, precision: Any = "bf16", **resources: Any) -> str:
    """Compares the losses of some steps with those of plain attention, in fp32, on the CPU."""
    expected = _losses(CPU, Training(ROWS, precision="fp32"), Resources(attention="eager"))
    found = _losses(device, Training(ROWS, precision=precision), Resources(**resources))
    furthest = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    detail = f"furthest from fp32 on the CPU: {furthest:.2g} nats (allowed: {within:g})"
    if not furthest <= within:
        raise AssertionError(f"{detail}: {found} instead of {expected}")
    return detail


def with_processes(device: torch.device, **how: Any) -> str:
    """The same with a group of one process, as sharded engines need it."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        return learns_the_same(device, **how)
    finally:
        dist.destroy_process_group()


def recomputing_changes_nothing(device: torch.device) -> str:
    """Recomputed activations give the same losses and weights, to the bit."""
    plain, *others = (_bits(device, Resources(activation_checkpointing=how)) for how in ("none", "selective", "full"))
    if any(other != plain for other in others):
        raise AssertionError("losses or weights differ")
    return "selective and full: equal to the bit"


def repeats_itself(device: torch.device) -> str:
    """Two equal runs give equal weights, to the bit."""
    if _bits(device, Resources()) != _bits(device, Resources()):
        raise AssertionError("two equal runs differ")
    return "two runs: equal to the bit"


def resumes(device: torch.device) -> str:
    """A run that goes on from what another one saved gives what that one gives, to the bit."""
    with _run(device, Training(ROWS), Resources()) as run:
        run.losses(STEPS)
        saved = {(piece.name, piece.part): piece.values.cpu().clone() for piece in run.engine.pieces()}
        expected = run.losses(STEPS)
        weights = _weights(run)
    with _run(device, Training(ROWS), Resources()) as run:
        run.engine.restore(lambda name, part, start, stop: saved[name, part][start:stop].to(device), STEPS)
        run.done = STEPS
        if run.losses(STEPS) != expected or not _equal(_weights(run), weights):
            raise AssertionError("the resumed run differs")
    return f"{STEPS} steps after a restore: equal to the bit"


def seldom_waits(device: torch.device) -> str:
    """The CPU waits for the GPU at most once in a step: where the boundaries of documents decide a shape."""
    if device.type != "cuda":
        raise Skipped("a CPU does not wait for itself")
    with _run(device, Training(ROWS), Resources()) as run:
        run.losses(2)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                run.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [f"{one.filename.rpartition('/')[2]}:{one.lineno}" for one in seen if "synchroniz" in str(one.message)]
    if len(waits) > 1:
        raise AssertionError(f"{len(waits)} times, at {sorted(set(waits))}")
    return f"{len(waits)} times, {waits}"


def counts_energy(device: torch.device) -> str:
    """The device's own counter moves while it computes."""
    meter = EnergyMeter(device)
    if not meter.counts:
        raise Skipped("the device does not count its energy")
    matrix = torch.randn(4096, 4096, device=device)
    for _ in range(100):
        matrix = torch.tanh(matrix @ matrix)
    wait(device)
    time.sleep(0.2)  # the counter moves ten times a second or so
    joules = meter.joules()
    if joules <= 0:
        raise AssertionError("it counted nothing")
    return f"{joules:.1f} J for 100 products"


def _losses(device: torch.device, training: Training, resources: Resources) -> list[float]:
    with _run(device, training, resources) as run:
        return run.losses(STEPS)


def _bits(device: torch.device, resources: Resources) -> tuple[list[float], list[bytes]]:
    with _run(device, Training(ROWS), resources) as run:
        losses = run.losses(STEPS)
        return losses, [tensor.numpy().tobytes() for tensor in _weights(run).values()]


@contextmanager
def _run(device: torch.device, training: Training, resources: Resources) -> Iterator[Run]:
    with bench(device, tiny=False, **MINIATURE) as here:
        yield here.run(training, resources, starts_like=CPU)


def _weights(run: Run) -> dict[str, torch.Tensor]:
    return run.engine.full_weights()


def _equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def _needing(library: str, check: Check) -> Check:
    def checked(device: torch.device) -> str:
        if find_spec(library) is None:
            raise Skipped(f"{library} is not installed")
        return check(device)

    return checked


CHECKS: dict[str, Check] = {
    "fp32, sdpa": partial(learns_the_same, within=1e-3, precision="fp32", attention="sdpa"),
    "bf16, eager": partial(learns_the_same, within=HALF, attention="eager"),
    "bf16, sdpa with its mask": partial(learns_the_same, within=HALF, attention="sdpa"),
    "bf16, attention chosen by itself": partial(learns_the_same, within=HALF),
    "bf16, varlen": partial(learns_the_same, within=HALF, attention="varlen"),
    "bf16, flash-attn": partial(learns_the_same, within=HALF, attention="flash"),
    "bf16, FlexAttention": partial(learns_the_same, within=HALF, attention="flex"),
    "bf16, compiled": partial(learns_the_same, within=HALF, compile=True),
    "bf16, compiled, selective": partial(learns_the_same, within=HALF, compile=True, activation_checkpointing="selective"),
    "bf16, Liger's kernels": partial(learns_the_same, within=HALF, kernels="liger"),
    "fp16 with loss scaling": partial(learns_the_same, within=HALF, precision="fp16"),
    "fp8": partial(learns_the_same, within=EIGHTH, precision="fp8"),
    "FSDP2, one process": partial(with_processes, within=HALF, engine="fsdp2"),
    "FSDP2, all on the CPU between uses": partial(with_processes, within=HALF, engine="fsdp2", offload="all"),
    "FSDP2, compiled": partial(with_processes, within=HALF, engine="fsdp2", compile=True),
    "DDP, one process": partial(with_processes, within=HALF, engine="ddp"),
    "ZeRO-3": _needing("deepspeed", partial(with_processes, within=HALF, engine="zero3")),
    "ZeRO-3, all on the CPU between uses": _needing(
        "deepspeed", partial(with_processes, within=HALF, engine="zero3", offload="all")
    ),
    "recomputed activations": recomputing_changes_nothing,
    "a run repeats itself": repeats_itself,
    "a run resumes": resumes,
    "waits for the GPU": seldom_waits,
    "energy": counts_energy,
}
