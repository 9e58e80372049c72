"""How quick training is on one GPU: a Llama of 1.2 B parameters, rows of 4096 tokens, bf16, beside TRL and transformers.

Needs this repository, torch and transformers, no network. MFU is 6 N D and the attention's 12 L H Q T (`training.flops`)
over what the GPU's maker promises for dense bf16 products; beside it, over what products reach here and now.

>>> python -m benchmarks.gpu | tee gpu.jsonl                # then, anywhere: python -m benchmarks gpu --figures gpu.jsonl
>>> python -m benchmarks.gpu --check                        # what only a GPU can show, one line each
>>> python -m benchmarks.gpu --tiny --device cpu            # the same code on a miniature
"""

import argparse
import statistics
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version

from training.hardware import cpu_name, prepare_gpus

prepare_gpus()  # before torch is imported

import torch  # noqa: E402

from benchmarks.figure import at_least, emit, observed  # noqa: E402
from benchmarks.gpu_bench import Resources, Training, bench  # noqa: E402
from benchmarks.gpu_checks import check_all  # noqa: E402
from benchmarks.gpu_peers import PEERS, Absent, measure_peer  # noqa: E402
from lineage.errors import BadInput  # noqa: E402
from training.energy import EnergyMeter  # noqa: E402
from training.peak import measured_peak  # noqa: E402

MFU_TARGET = 0.45
ROWS = 4  # of a step: as many as fit beside their activations
WARM_UP = 4
# Dense bf16 operations per second, from NVIDIA's data sheets.
PROMISED = {"H200": 989.5e12, "H100": 989.5e12, "A100": 312e12}


@dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        documents: how many a row holds.
        any_order: whether additions may come in any order, so that no two runs are equal (`training.repeatable`).
    """

    resources: Resources
    documents: int = 1
    any_order: bool = False


MAIN = "compiled"  # the one that has a target
SETTINGS = {
    MAIN: Setting(Resources(compile=True)),
    "eager": Setting(Resources()),
    "compiled, additions in any order": Setting(Resources(compile=True), any_order=True),
    "Liger's kernels": Setting(Resources(kernels="liger")),
    "compiled, selective recomputation": Setting(Resources(compile=True, activation_checkpointing="selective")),
    "compiled, all recomputed": Setting(Resources(compile=True, activation_checkpointing="full")),
    "eager, 8 documents a row": Setting(Resources(), documents=8),
    "eager, 8 documents a row, sdpa with its mask": Setting(Resources(attention="sdpa"), documents=8),
    "eager, 8 documents a row, FlexAttention": Setting(Resources(attention="flex"), documents=8),
}


def main() -> int:
    """Measures, and prints one JSON line per figure; 1 where something broke."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="steps that each median is over (default: 10)")
    parser.add_argument("--only", action="append", help="take this setting, peer or check alone; may be repeated")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a miniature, to try the script itself")
    parser.add_argument("--check", action="store_true", help="check instead of measuring")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench: no GPU here, nothing measured", file=sys.stderr)
        return 0
    if arguments.check:
        return check_all(device, arguments.only)
    measured = Measured(device, arguments.tiny, arguments.runs)
    work: dict[str, Callable[[], None]] = {name: partial(measured.setting, name) for name in SETTINGS}
    work |= {name: partial(measured.peer, name) for name in PEERS}
    broken = 0
    for name in arguments.only or work:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        try:
            work[name]()
        except (Absent, BadInput) as reason:  # what cannot be here is refused by training itself
            print(f"bench: {name}: skipped, {reason}", file=sys.stderr)
        except Exception:  # whatever it is, what comes after it may still be measured
            broken += 1
            traceback.print_exc()
    return int(broken > 0)


class Measured:
    """What was measured so far on a device.

    Attributes:
        speeds: tokens per second of each setting.
        peak: the floating-point operations per second that bf16 products reach here.
    """

    def __init__(self, device: torch.device, tiny: bool, runs: int) -> None:
        self.device, self.tiny, self.runs = device, tiny, runs
        self.speeds: dict[str, float] = {}
        with bench(device, tiny) as here:
            inside, outside = here.shape["hidden_size"], here.shape["intermediate_size"]
            self.peak = measured_peak(device, "bf16", ROWS * here.seq_len, inside, outside)
        emit(observed("bf16 matrix products of the model's shape", self.peak / 1e12, "TFLOP/s", hardware(device), 1))

    def setting(self, name: str) -> None:
        """Measures one of `SETTINGS`."""
        setting, cuda = SETTINGS[name], self.device.type == "cuda"
        with bench(self.device, self.tiny, documents=setting.documents) as here:
            run = here.run(Training(rows_per_step=ROWS), setting.resources)
            if setting.any_order:
                torch.use_deterministic_algorithms(False)
            if cuda:
                torch.cuda.reset_peak_memory_stats(self.device)
            run.timed(WARM_UP, 0)
            energy = EnergyMeter(self.device)
            steps = run.timed(self.runs, 0)
            joules = energy.joules()
            memory = torch.cuda.max_memory_allocated(self.device) if cuda else 0
            speed = statistics.median(tokens / seconds for seconds, tokens, _ in steps)
            pace = statistics.median(run.flops(tokens, targets) / seconds for seconds, tokens, targets in steps)
            num_tokens = sum(tokens for _, tokens, _ in steps)
            counted = energy.counts
            del run
        self.speeds[name] = speed
        emit(observed(f"{name}: tokens per second", speed, "tokens/s", hardware(self.device), self.runs))
        if setting.documents == 1:  # attention over shorter documents is less work than is counted
            self._share(name, pace)
        if memory:
            emit(observed(f"{name}: peak of memory", memory / 2**30, "GiB", f"{ROWS} rows", self.runs))
        if counted:
            emit(observed(f"{name}: energy", joules / num_tokens * 1e3, "J per 1,000 tokens", "", self.runs))

    def _share(self, name: str, pace: float) -> None:
        peak, promise = self.peak, promised(self.device)
        emit(observed(f"{name}: of the measured peak", pace / peak, "", f"{peak / 1e12:.0f} TFLOP/s", self.runs))
        if promise:
            figure, share, peer = f"{name}: MFU", pace / promise, f"{promise / 1e12:g} TFLOP/s, promised"
            as_promised = at_least(figure, share, "", MFU_TARGET, peer, self.runs)
            emit(as_promised if name == MAIN else observed(figure, share, "", peer, self.runs))

    def peer(self, name: str) -> None:
        """Measures one of `PEERS`, in a process of its own, and compares."""
        theirs = measure_peer(name, self.device, self.tiny, self.runs, ROWS)
        emit(observed(f"{name}: tokens per second", theirs["tokens_per_second"], "tokens/s", "", self.runs))
        if theirs["memory"]:
            emit(observed(f"{name}: peak of memory", theirs["memory"] / 2**30, "GiB", f"{ROWS} rows", self.runs))
        for ours in ("eager", MAIN):
            if ours in self.speeds:
                ratio = self.speeds[ours] / theirs["tokens_per_second"]
                emit(observed(f"{ours}, against {name}", ratio, "times", "", self.runs))


def promised(device: torch.device) -> float | None:
    """Returns what the GPU's maker promises; None where it is not known here."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((flops for model, flops in PROMISED.items() if model in name), None)


def hardware(device: torch.device) -> str:
    """Returns the device, the libraries and the day."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return f"{name}, torch {torch.__version__}, transformers {version('transformers')}, {datetime.now(UTC):%Y-%m-%d}"


if __name__ == "__main__":
    sys.exit(main())
