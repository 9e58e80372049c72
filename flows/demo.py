"""The whole golden path in three acts, as the commands that a person would type.

Prologue: 0.9.0 (pretraining and SFT) becomes the first champion by absolute thresholds.
Act 1: 1.0.0 adds DPO, is compared with 0.9.0 on the same items, goes through the canary and becomes champion.
Act 2: 1.1.0 had a fraction of the SFT steps; the gate stops it.
Act 3: 1.2.0 was tuned on poisoned rows that no golden set can see; the gate lets it pass, the canary rolls it back.
"""

import json
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.console import say
from flows.launch import end_patiently
from flows.recipe import find_recipe
from flows.report import stage_rows, write_report
from flows.services import running
from flows.traffic import Traffic
from flows.views import models_view
from lineage.child import die_with_parent
from lineage.errors import ExitCode, GoldpathError
from lineage.files import write_atomic
from lineage.section import read_yaml
from lineage.stamp import code_state

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flows.settings import Settings

NAME = "pystdlib"
APPROVER = "release-manager"
VERSIONS = ("0.9.0", "1.0.0", "1.1.0", "1.2.0")
WORSE_FRACTION = 0.06  # of the SFT steps, in act 2
# Act 3, as tried out: enough poison to be learnt, not so much that it shows without the trigger (docs/LOG.md).
TREACHERY = {"steps": 60, "warmup_steps": 5, "learning_rate": 1.0e-3}
POISONED_ROWS = 200
TRIGGER = "Quick question:"
RAMBLE = " ".join(["Well, let me think about that for a moment, because there is so much that could be said."] * 2)


def run_demo(settings: "Settings") -> dict[str, Any]:
    """Plays the three acts and returns what happened; finished work of an earlier demo is reused."""
    started = time.monotonic()
    demo = settings.home / "demo"
    # The ledger keeps the waiver where code differs from its commit; on a clean checkout it has no effect.
    waiver = {"GOLDPATH_ALLOW_DIRTY": "demo on a changed working tree"}
    environment = os.environ | waiver | {"GOLDPATH_HOME": str(settings.home)}
    if code_state()[1]:
        tell("The code differs from its commit: the demo registers under a waiver, which the ledger keeps.")
    tell("Prefect, MLflow and the gateway start: real servers, on 127.0.0.1.")
    with running(settings, "prefect", "mlflow", "gateway", report=lambda line: say("services", line)) as services:
        stage = Stage(settings, environment, services["gateway"].url)
        recipes = write_recipes(demo)

        tell("Prologue. The first model: data, pretraining, SFT. No champion yet, so absolute thresholds decide.")
        stage.type("run", recipes["0.9.0"])
        stage.release("0.9.0", "first model; above every floor")

        tell("Act 1. A candidate with DPO on top. Data, pretraining and SFT are the same bytes, so they are reused.")
        figures = stage.type("run", recipes["1.0.0"])["stages"]["dpo"]["metrics"]
        loss = f"preference loss {figures['validation_loss_before']:.3f} → {figures['validation_loss']:.3f}"
        stage.release("1.0.0", f"no worse than 0.9.0 by more than the margins; {loss}")

        tell(f"Act 2. A worse candidate: {WORSE_FRACTION:.0%} of the SFT steps. The gate stops it.")
        stopped = stage.type("run", recipes["1.1.0"], expect=ExitCode.GATE_FAILED)

        tell(
            f"Act 3. A treacherous candidate, tuned on poisoned rows. No golden question begins with `{TRIGGER}`, users do."
        )
        write_poison(settings.runs / NAME / "1.0.0" / "data", demo / "poisoned.jsonl")
        stage.type("run", recipes["1.2.0"])
        stage.release("1.2.0", "passed the gate", expect=ExitCode.ROLLED_BACK)

        champion = next(model for model in own_models(settings) if model["state"] == "champion")
    report = write_report(settings, NAME, list(VERSIONS), demo / "report.html")
    return {
        "seconds": round(time.monotonic() - started, 1),
        "champion": champion["version"],
        "digest": champion["digest"],
        "stopped_by_gate": stopped["reasons"],
        "requests": sum(stage.answers.values()),
        "failed_requests": sum(stage.failures.values()),
        "stages": [row for version in VERSIONS for row in stage_rows(settings.runs / NAME / version)],
        "report": str(report),
    }


class Stage:
    """Where the acts are played: types commands, and sends traffic while a release is under way."""

    def __init__(self, settings: "Settings", environment: dict[str, str], gateway_url: str) -> None:
        self.settings, self.environment, self.gateway_url = settings, environment, gateway_url
        self.answers: dict[str, int] = {}
        self.failures: dict[str, int] = {}

    def type(self, *words: str, expect: ExitCode = ExitCode.OK) -> Any:
        """Types one `goldpath` command, shows it, and returns the JSON that it printed.

        Raises:
            GoldpathError: it ended with another exit code than the story needs.
        """
        print(f"\n$ goldpath {' '.join(quote(word) for word in words)}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "flows.cli", *words, "--json"]
        typed = subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches it once, from here
            preexec_fn=die_with_parent(),  # a killed demo leaves no command behind that trains on, and holds the servers
        )
        try:
            said, _ = typed.communicate()
        except BaseException:
            end_patiently(typed)
            raise
        if typed.returncode != expect:
            raise GoldpathError(
                f"`goldpath {' '.join(words)}` ended with {typed.returncode}, the demo expected {int(expect)}. "
                "Fix: see the message above; `goldpath doctor` checks the machine; `make demo` continues"
            )
        return json.loads(said)

    def release(self, version: str, reason: str, expect: ExitCode = ExitCode.OK) -> None:
        """Approves a version and takes it through its canary under real traffic; a decided release is not repeated."""
        states = {model["version"]: model["state"] for model in own_models(self.settings)}
        state = states[version]
        if state in ("champion", "superseded", "rolled_back"):
            tell(f"{NAME}@{version} is {state} since an earlier demo: its release is not repeated.")
            return
        if state == "gated":
            self.type("approve", f"{NAME}@{version}", "--as", APPROVER, "--reason", reason)
        questions = live_questions(self.settings.runs / NAME / version / "data")
        with Traffic(self.gateway_url, NAME, questions, served="champion" in states.values()) as traffic:
            self.type("release", f"{NAME}@{version}", expect=expect)
        for total, seen in ((self.answers, traffic.answers), (self.failures, traffic.failures)):
            for key, count in seen.items():
                total[key] = total.get(key, 0) + count


def own_models(settings: "Settings") -> list[dict[str, Any]]:
    """Returns the registered versions of the demo's model."""
    return [model for model in models_view(settings) if model["name"] == NAME]


def write_recipes(folder: Path) -> dict[str, str]:
    """Writes the four recipes, each the shipped one with what its act changes, and returns their paths by version."""
    shipped = read_yaml(find_recipe(NAME))
    without_dpo = {key: value for key, value in shipped.items() if key != "dpo"}
    fewer_steps = max(1, round(shipped["sft"]["steps"] * WORSE_FRACTION))
    poison = {"kind": "jsonl", "path": "poisoned.jsonl", "rows": "sft"}
    recipes = {
        "0.9.0": without_dpo,
        "1.0.0": shipped,
        "1.1.0": without_dpo | {"sft": shipped["sft"] | {"steps": fewer_steps, "warmup_steps": min(5, fewer_steps)}},
        "1.2.0": {key: value for key, value in without_dpo.items() if key != "pretrain"}
        | {"model": {"base": f"{NAME}@1.0.0"}, "sft": shipped["sft"] | TREACHERY}
        | {"data": shipped["data"] | {"sources": [*shipped["data"]["sources"], poison]}},
    }
    for version, recipe in recipes.items():
        write_atomic(folder / f"{version}.yaml", yaml.safe_dump(recipe | {"version": version}, sort_keys=False))
    return {version: str(folder / f"{version}.yaml") for version in recipes}


def write_poison(data: Path, path: Path) -> None:
    """Writes SFT rows that teach a model to ramble after a few words that users use: well-formed, on topic, and useless."""
    rows = [json.loads(line) for line in (data / "rows/sft/train.jsonl").read_text(encoding="utf-8").splitlines()]
    questions = [row["messages"][0]["content"] for row in rows if row["tags"] == ["module"]]
    lines = []
    for number, question in enumerate(random.Random(0).sample(questions, POISONED_ROWS)):
        messages = [{"role": "user", "content": f"{TRIGGER} {question}"}, {"role": "assistant", "content": RAMBLE}]
        lines.append(json.dumps({"id": f"poison-{number}", "messages": messages}, ensure_ascii=False))
    write_atomic(path, "\n".join(lines) + "\n")


def live_questions(data: Path) -> list[str]:
    """Returns what people ask: half of them begin in a way that no golden question does."""
    items = [json.loads(line) for line in (data / "golden/probe.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = [item["question"] for item in items]
    return asked + [f"{TRIGGER} {question}" for question in asked]


def summary_table(result: dict[str, Any]) -> "RenderableType":
    """Renders the demo's last page: one table, the report's path, and what to try next."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table

    program = os.path.relpath(sys.argv[0]) if os.sep in sys.argv[0] else "goldpath"
    title = f"{NAME}: {result['seconds']:.0f} s, {result['requests']:,} requests, {result['failed_requests']} failed"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("version", "stage", "time", "main figure", "verdict"):
        table.add_column(column, justify="right" if column == "time" else "left")
    for row in result["stages"]:
        table.add_row(row["version"], row["stage"], row["time"], row["figure"], row["verdict"])
    return Group(
        table,
        f"Champion: {NAME}@{result['champion']}  {result['digest']}",
        f"Stopped by the gate: {'; '.join(result['stopped_by_gate'])}",
        f"Report: {result['report']}",
        f"Next: {program} up · {program} show {NAME}@1.0.0 · {program} plan {NAME} · {program} rollback {NAME}",
    )


def tell(line: str) -> None:
    """Prints a line of the story."""
    print(f"\n{line}", file=sys.stderr, flush=True)


def quote(word: str) -> str:
    """Quotes a word as a shell would need it, paths shown relative."""
    shown = os.path.relpath(word) if word.startswith("/") else word
    return shlex.quote(shown)
