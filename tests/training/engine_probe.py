"""Started by torchrun in `test_engines.py`: builds an engine, takes one step, and reports what this rank really holds."""

import json
import sys
from pathlib import Path

from torch.distributed.tensor import DTensor

from training.batches import PackedRows, rows_of_step, share_of
from training.config import ModelConfig, Resources, TrainingConfig
from training.engine import make_engine
from training.model import build_model
from training.processes import end_at_once, join_processes, leave_processes
from training.scoring import Scorer
from training.vocabulary import Vocabulary


def main() -> None:
    """Writes `<out>/<engine>-<rank>.json`."""
    data, out, engine_name, dimensions = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    resources = Resources.model_validate({"processes": 2, "engine": engine_name, "device": "cpu"})
    processes = join_processes(resources, Path("probe"))
    config = TrainingConfig(objective="pretrain", steps=1, rows_per_step=4, precision="fp32")
    rows = PackedRows(data, "pretrain", "train")
    model = build_model(ModelConfig(**dimensions), None, Vocabulary(data / "tokenizer"), config, rows.seq_len)
    whole = {f"model.{name}": p.numel() for name, p in model.named_parameters()}
    engine = make_engine(resources.engine, Scorer(model), config, processes)
    (mine,) = share_of(rows_of_step(rows.num_rows, 4, 0, 0), processes.rank, processes.world, 1)
    engine.learn(rows.batch(mine), lambda scores: -scores.sum() / 100, last=True)
    norm = float(engine.clip())
    engine.apply(1e-3)
    held: dict[str, int] = {}
    for piece in engine.pieces():
        held[piece.part] = held.get(piece.part, 0) + len(piece.values)
    report = {
        "norm": norm,
        "whole": sum(whole.values()),
        "held": held,
        "all_dtensors": all(isinstance(p, DTensor) for p in engine.scorer.parameters()),
        "largest_tensor_share": max(
            len(piece.values) / whole[piece.name] for piece in engine.pieces() if whole[piece.name] > 1000
        )
        if held
        else 0,
        "zero_stage": engine.engine.zero_optimization_stage() if hasattr(engine, "engine") else None,
        "resident_elements": sum(p.numel() for p in engine.trained.values()),
    }
    (out / f"{engine_name}-{processes.rank}.json").write_text(json.dumps(report))
    leave_processes()
    end_at_once(0)


main()
