"""Started by torchrun in the tests: several engines one after the other, in the same processes, and what each one did.

Reads a JSON list of scenarios (`resources`, `training`, how many steps are `passed_over_before` and after it may `load` a
checkpoint, then `steps`, and where to `save` one) and writes, on every rank, `<out>/<rank>.json` with a report for each.
"""

import json
import sys
from pathlib import Path
from typing import Any

from engine_steps import Steps
from torch.distributed.tensor import DTensor

from lineage.errors import GoldpathError
from training.processes import Processes, end_at_once, join_processes, leave_processes
from training.resources import Resources
from training.scoring import Scorer


def probe(data: Path, scenario: dict[str, Any], processes: Processes) -> dict[str, Any]:
    """Runs one scenario and reports on it."""
    resources = {"processes": processes.world, "device": "cpu", **scenario["resources"]}
    to, moves = Scorer.to, []
    Scorer.to = lambda scorer, *where: moves.append(where) or to(scorer, *where)  # type: ignore[method-assign,assignment]
    try:
        steps = Steps(data, resources, scenario.get("training"), processes)
    except GoldpathError as error:
        return {"error": str(error)}
    finally:
        Scorer.to = to  # type: ignore[method-assign]
    engine = steps.engine
    for _ in range(scenario.get("passed_over_before", 0)):
        steps.pass_over()
    if "load" in scenario:
        steps.load(Path(scenario["load"]))
    if "scale" in scenario:
        assert engine.loss_scale is not None
        engine.loss_scale.scale = scenario["scale"]
    for _ in range(scenario.get("passed_over", 0)):
        steps.pass_over()
    taken = steps.take(scenario["steps"])
    held: dict[str, int] = {}
    shares = []
    for piece in engine.pieces():
        held[piece.part] = held.get(piece.part, 0) + len(piece.values)
        if steps.num_weights.get(piece.name, 0) > 1000:
            shares.append(len(piece.values) / steps.num_weights[piece.name])
    report = {
        "moved_whole": len(moves),
        "losses": [loss for loss, _ in taken],
        "norms": [norm for _, norm in taken],
        "whole": sum(steps.num_weights.values()),
        "held": held,
        "held_bytes": steps.held_bytes(),
        "largest_share": max(shares, default=0),
        "resident": sum(p.numel() for p in engine.trained.values()),
        "all_dtensors": all(isinstance(p, DTensor) for p in engine.scorer.parameters()),
        "scale": engine.scale_figures(),
    }
    if "save" in scenario:
        steps.save(Path(scenario["save"]))
        report["next"] = [loss for loss, _ in steps.take(2)]
    return report


def main() -> None:
    """Runs all scenarios."""
    data, out, scenarios = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    processes = join_processes(Resources(processes=2, engine="ddp", device="cpu"), Path("probe"))
    reports = {scenario["name"]: probe(data, scenario, processes) for scenario in scenarios}
    (out / f"{processes.rank}.json").write_text(json.dumps(reports))
    leave_processes()
    end_at_once(0)


if __name__ == "__main__":
    main()
