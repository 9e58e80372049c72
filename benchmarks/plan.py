"""How well `plan` predicts: it says memory and time of twelve configurations, which are then trained for real.

The time is predicted after one calibration of the very stage, in a home of its own; memory before anything ran.

>>> python -m benchmarks.plan
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figure import at_most, emit, observed
from flows.calibrate import calibrate
from flows.forecast import place_for
from flows.settings import Settings
from training.config import ModelConfig, TrainingConfig
from training.estimate import Stage, memory_of
from training.resources import Resources

MEMORY_LIMIT, TIME_LIMIT = 0.15, 0.25
SMALL = ModelConfig(hidden_size=256, intermediate_size=704, num_layers=6, num_heads=4, num_kv_heads=4, max_positions=2048)
MIDDLE = ModelConfig(hidden_size=512, intermediate_size=1408, num_layers=8, num_heads=8, num_kv_heads=8, max_positions=2048)
LARGE = ModelConfig(hidden_size=768, intermediate_size=2048, num_layers=8, num_heads=12, num_kv_heads=4, max_positions=2048)
RECOMPUTING = Resources(activation_checkpointing="full")
TWO: dict[str, Any] = {"processes": 2, "threads": 1}


def main() -> None:
    """Measures, and prints one JSON line per figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=1, help="calibrations of each configuration, and real runs after them (default: 1)"
    )
    parser.add_argument("--only", default="", help="take the configurations whose name holds this")
    arguments = parser.parse_args()
    worst = {"memory": 0.0, "time": 0.0}
    chosen = {name: stage for name, stage in configurations().items() if arguments.only in name}
    for name, stage in chosen.items():
        with tempfile.TemporaryDirectory(prefix="goldpath-plan-") as home:
            errors = measure(name, stage, Settings(home=Path(home)), arguments.runs)
        worst = {what: max(worst[what], error) for what, error in errors.items()}
    peer = f"{len(chosen)} configurations, trained for real"
    emit(at_most("largest error of predicted peak memory", worst["memory"], "", MEMORY_LIMIT, peer, arguments.runs))
    emit(at_most("largest error of calibrated step time", worst["time"], "", TIME_LIMIT, peer, arguments.runs))


def configurations() -> dict[str, Stage]:
    """Returns the stages by name: sizes, lengths, rows, accumulation, precision, checkpointing, LoRA, DPO, engines."""
    return {
        "7M, 8 x 512": _stage(SMALL, 8000, 512, rows_per_step=8),
        "63M, 2 x 512": _stage(LARGE, 16000, 512, rows_per_step=2),
        "34M, 4 x 512, fp32": _stage(MIDDLE, 16000, 512, rows_per_step=4, precision="fp32"),
        "34M, 2 x 2048": _stage(MIDDLE, 16000, 2048, rows_per_step=2),
        "34M, 8 x 512, accumulation 4": _stage(MIDDLE, 16000, 512, rows_per_step=8, accumulation=4),
        "34M, 4 x 1024, checkpointing": _stage(MIDDLE, 16000, 1024, RECOMPUTING, rows_per_step=4),
        "58M, 64,000 tokens, SFT 4 x 512": _stage(MIDDLE, 64000, 512, objective="sft", rows_per_step=4),
        "63M, LoRA, SFT 4 x 512": _stage(LARGE, 16000, 512, objective="sft", rows_per_step=4, lora_rank=16),
        "34M, DPO 4 x 512": _stage(MIDDLE, 16000, 512, objective="dpo", rows_per_step=4),
        "63M, ddp, 2 processes": _stage(LARGE, 16000, 512, Resources(engine="ddp", **TWO), rows_per_step=2),
        "63M, fsdp2, 2 processes": _stage(LARGE, 16000, 512, Resources(engine="fsdp2", **TWO), rows_per_step=2),
        "34M, zero3, 2 processes": _stage(MIDDLE, 16000, 512, Resources(engine="zero3", **TWO), rows_per_step=4),
    }


def measure(name: str, stage: Stage, settings: Settings, runs: int) -> dict[str, float]:
    """Predicts one configuration, trains it, prints both, and returns the relative errors of memory and time."""
    place = place_for(stage.resources)
    predicted = memory_of(stage, place).total
    planned = [calibrate(settings, stage, place) for _ in range(runs)]
    real = [calibrate(settings, stage, place) for _ in range(runs)]
    memory = sorted(run.memory_bytes for run in [*planned, *real])[runs]
    # Whatever else the machine does only slows a run down: the quickest of each is what they are compared by.
    expected, pace = (max(run.flops_per_second for run in some) for some in (planned, real))
    errors = {"memory": abs(predicted / memory - 1), "time": abs(pace / expected - 1)}
    emit(observed(f"{name}: predicted / measured peak memory", predicted / memory, "", f"{memory / 1e6:,.0f} MB", runs))
    emit(observed(f"{name}: predicted / measured step time", pace / expected, "", "after calibration", runs))
    print(f"bench: {name} {errors}", file=sys.stderr, flush=True)
    return errors


def _stage(model: ModelConfig, vocabulary: int, seq_len: int, resources: Resources | None = None, **training: Any) -> Stage:
    values = {"objective": "pretrain", "steps": 100, **training}
    config = TrainingConfig.model_validate(values)
    return Stage(model, config, resources or Resources(threads=1), base=None, vocabulary=vocabulary, seq_len=seq_len)


if __name__ == "__main__":
    main()
