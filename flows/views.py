"""What the commands show: each view returns plain data (for --json), and its table renders that data for people."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.console import say, short
from flows.report import main_figure, stages
from lineage.errors import BadInput, Tampered
from lineage.files import sha256_file
from lineage.record import RECORD, verify_outputs

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flows.settings import Settings

WHAT_WILL_HAPPEN = {
    "done": "finished: reused",
    "reuse": "finished elsewhere: reused",
    "continue": "was stopped: continues",
    "run": "runs",
    "later": "runs, or is reused if what it reads turns out equal",
}


def plan_view(settings: "Settings", where: str, version: str | None, measure: bool = False) -> dict[str, Any]:
    """Returns what a recipe would run and reuse, and what its training will take (`flows.forecast`).

    Args:
        measure: train each stage that will run for a few steps first, so that its time follows from this machine.
    """
    from flows.calibrate import calibrate
    from flows.forecast import forecast, place_for, stage_of, told_of
    from flows.plan import decide, steps_of
    from flows.recipe import find_recipe, load_recipe

    recipe = load_recipe(where, version)
    rows: list[dict[str, Any]] = []
    data: Path | None = None
    for step in steps_of(recipe, settings):
        decision = decide(step, settings)
        if step.stage == "data" and decision.action in ("done", "reuse"):
            data = decision.source or step.out
        row: dict[str, Any] = {"stage": step.stage, "action": decision.action, "out": str(step.out)}
        row["source"] = str(decision.source) if decision.source else None
        if step.stage in recipe.objectives and decision.action not in ("done", "reuse"):
            with told_of(find_recipe(where), step.stage):
                if measure:
                    say(step.stage, "trains a few steps to measure this machine")
                    calibrate(settings, stage_of(recipe, step.stage, settings, data), place_for(recipe.resources))
                row |= forecast(recipe, step.stage, settings, data)
        rows.append(row)
    rows.append(
        {"stage": "gate", "action": "later", "out": str(settings.runs / recipe.name / recipe.version), "source": None}
    )
    return {"name": recipe.name, "version": recipe.version, "stages": rows}


def plan_table(view: dict[str, Any]) -> "RenderableType":
    """Renders a plan: what happens and what it takes, where each process's memory goes, and what to know before."""
    from rich.console import Group

    rows, notes = [], []
    for row in view["stages"]:
        happens = WHAT_WILL_HAPPEN[row["action"]] + (f" from {Path(row['source']).parent.name}" if row["source"] else "")
        rows.append([row["stage"], happens, *_takes(row)])
        notes += [f"{row['stage']}: {row[key]}" for key in ("warning", "hint", "assumption", "note") if key in row]
    tables = [table(f"{view['name']}@{view['version']}", ["stage", "what will happen", "memory", "time", "cost"], rows)]
    if training := [row for row in view["stages"] if "memory" in row]:
        lines = [["parameters", *(f"{row['parameters']:,}" for row in training)]]
        lines += [["of them trained", *(f"{row['trained_parameters']:,}" for row in training)]]
        lines += [["tokens to read, with padding", *(f"{row['tokens']:,}" for row in training)]]
        lines += [["rows of the data", *(_counted(row, "rows") for row in training)]]
        lines += [["tokens of the data", *(_counted(row, "tokens") for row in training)]]
        lines += [["of them learnt", *(_counted(row, "targets") for row in training)]]
        lines += [["steps per epoch", *(_counted(row, "steps_per_epoch") for row in training)]]
        lines += [["FLOP", *(f"{row['flops']:.3g}" for row in training)]]
        lines += [
            [f"{part}, GiB", *(f"{row['memory'][part] / 2**30:.2f}" for row in training)] for part in training[0]["memory"]
        ]
        tables.append(
            table("Training; memory at the peak of each process", ["", *(row["stage"] for row in training)], lines)
        )
    return Group(*tables, *notes)


def build_table(summary: dict[str, Any]) -> "RenderableType":
    """Renders what a build did."""
    rows = [[stage, f"{done['seconds']:.1f} s", _figures(done["metrics"])] for stage, done in summary["stages"].items()]
    from rich.console import Group

    lines = [f"gate: {summary['verdict']}"] + [f"  {reason}" for reason in summary.get("reasons", [])]
    address = f"{summary['name']}@{summary['version']}"
    if summary.get("state") == "gated" and summary["verdict"] == "pass":
        lines.append(f"next: goldpath approve {address} --as USER --reason TEXT")
    return Group(table(address, ["stage", "time", "figures"], rows), *(lines if summary["verdict"] else []))


def models_view(settings: "Settings") -> list[dict[str, Any]]:
    """Returns every registered version: state, digest, gate verdict, and when it last changed."""
    from serving.release.ledger import Ledger
    from serving.release.states import Event

    ledger = Ledger(settings.ledger)
    ledger.verify()
    rows = []
    for name in ledger.names():
        for release in ledger.history(name).releases.values():
            gated = release.last(Event.GATED)
            rows.append(
                {
                    "name": name,
                    "version": release.version,
                    "state": str(release.state),
                    "gate": gated.payload["verdict"] if gated else None,
                    "digest": release.digest,
                    "changed_at": release.entries[-1].at,
                    "requester": release.requester,
                }
            )
    ledger.close()
    return rows


def models_table(view: list[dict[str, Any]]) -> "RenderableType":
    """Renders the registered versions."""
    rows = [[f"{m['name']}@{m['version']}", m["state"], m["gate"] or "", m["digest"][:19], m["changed_at"]] for m in view]
    if not rows:
        return "No model is registered. Try `goldpath run pystdlib`, or `goldpath demo`."
    return table("models", ["model", "state", "gate", "digest", "changed"], rows)


def lineage_view(settings: "Settings", address: str) -> dict[str, Any]:
    """Returns a version's story and lineage, after verifying every record, output and link between records.

    Raises:
        BadInput: there is no such version.
        Tampered: naming the first file that is not what a record says.
    """
    from flows.plan import parse_address
    from serving.release.ledger import Ledger

    name, version = parse_address(address)
    folder = settings.runs / name / version
    if not folder.is_dir():
        raise BadInput(address, "", f"has no runs below {settings.runs}", "see `goldpath models`")
    ledger = Ledger(settings.ledger)
    ledger.verify()
    story = [
        {"at": entry.at, "event": str(entry.event), "by": entry.actor, "why": entry.payload.get("reason", "")}
        for entry in ledger.story(name, version)
    ]
    release = ledger.history(name).releases.get(version)
    ledger.close()
    rows: list[dict[str, Any]] = []
    for path, record in stages(folder):
        verify_outputs(path, record)
        for role, parent in record.parents.items():
            proof = Path(parent.path) / (RECORD if (Path(parent.path) / RECORD).is_file() else "manifest.json")
            if parent.sha256 and (not proof.is_file() or sha256_file(proof) != parent.sha256):
                raise Tampered(proof, role, f"is not what {path.name} was built on", "restore it, or build a new version")
        rows.append(
            {
                "stage": path.name,
                "from": f"{record.name}@{record.version}",
                "seconds": record.seconds,
                "figure": main_figure(record),
                "fingerprint": record.fingerprint,
                "data_version": record.stamp.data_version,
                "commit": record.stamp.commit,
                "dirty": record.stamp.dirty,
                "argv": record.argv,
                "out": str(path),
            }
        )
    return {
        "name": name,
        "version": version,
        "digest": release.digest if release else None,
        "state": str(release.state) if release else "not registered",
        "story": story,
        "stages": rows,
    }


def lineage_table(view: dict[str, Any]) -> "RenderableType":
    """Renders a version's story and lineage."""
    from rich.console import Group

    stages_table = table(
        f"{view['name']}@{view['version']} is {view['state']}  {view['digest'] or ''}",
        ["stage", "made by", "time", "figure", "data version", "commit"],
        [
            [
                row["stage"],
                row["from"],
                f"{row['seconds']:.1f} s",
                row["figure"],
                row["data_version"][:12],
                row["commit"][:12] + ("+changes" if row["dirty"] else ""),
            ]
            for row in view["stages"]
        ],
    )
    story = table(
        "story", ["when", "what", "who", "why"], [[s["at"][:19], s["event"], s["by"], s["why"]] for s in view["story"]]
    )
    return Group(stages_table, story, "Every record, output and link was verified.")


def scores_table(view: dict[str, Any]) -> "RenderableType":
    """Renders the scores of one model."""
    rows = [[name, short(value)] for name, value in view["metrics"].items()]
    return table(f"{view['model']} on suite {view['suite']}", ["metric", "value"], rows)


def release_table(view: dict[str, Any]) -> "RenderableType":
    """Renders a decision about a release."""
    return table("release", ["", ""], [[key, short(value)] for key, value in view.items() if key != "exit_code"])


def table(title: str, columns: list[str], rows: list[list[str]]) -> "RenderableType":
    """Returns a plain table; cells fold instead of being cut."""
    from rich.table import Table

    grid = Table(title=title, title_justify="left")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _takes(row: dict[str, Any]) -> list[str]:
    """Returns memory, time and cost of a stage that trains, `-` for one that does not."""
    if "memory_bytes" not in row:
        return ["-"] * 3
    about = "" if row["speed"] == "calibrated" else "about "
    cost = f"{row['cost']:.2g}" if "cost" in row else "-"
    return [f"{row['memory_bytes'] / 2**30:.1f} GiB", f"{about}{timedelta(seconds=round(row['seconds']))}", cost]


def _counted(row: dict[str, Any], figure: str) -> str:
    """Returns a figure of the data version, `not built` before there is one."""
    if not row["rows"]["counted"]:
        return "not built"
    number = row["rows"][figure]
    return f"{number:,.1f}" if isinstance(number, float) else f"{number:,}"


def _figures(metrics: dict[str, Any]) -> str:
    return " · ".join(f"{name} {short(value)}" for name, value in list(metrics.items())[:4])
