"""What orchestration costs: `goldpath run` on small recipes against the same stage commands typed by hand.

It adds the same seconds whatever the recipe's size, so there are two recipes: a toy that is through in a minute
(`small.yaml`), and the smallest that makes a working model, the demo's. Each round trains a new version (other seeds, so
nothing is reused) with `goldpath run`, then replays the commands that its records name, with other output folders. A
first round, which is not counted, runs the data stage alone: the first start of a Prefect server creates its database,
which happens once in a home's life.

`goldpath run` also registers the candidate, which no stage command does; that is part of the overhead.

>>> python -m benchmarks.overhead --runs 3
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import flows
from benchmarks.figure import at_most, emit, observed
from flows.launch import SPINS, STAGE_ENVIRONMENT
from lineage.errors import ExitCode
from lineage.privacy import TELEMETRY_OFF
from lineage.stamp import code_state

RECIPES = {
    "a one-minute toy recipe": Path(__file__).with_name("small.yaml"),
    "the demo's recipe": Path(flows.__file__).parent / "recipes" / "pystdlib.yaml",
}
GOLDPATH = str(Path(sys.executable).with_name("goldpath"))
STAGES = ("data", "pretrain", "sft", "dpo", "evaluate", "gate")
RATIO_LIMIT = 1.10
HELP_LIMIT = 0.3  # seconds
HELP_RUNS = 20
NUM_WORDS, NUM_SHELVES, NUM_DOCUMENTS, WORDS_PER_DOCUMENT, NUM_GOLDEN = 600, 40, 400, 120, 40
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def main() -> None:
    """Measures, and prints one JSON line per figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="rounds of both sides, interleaved (default: 3)")
    arguments = parser.parse_args()
    emit(measure_help())
    for what, recipe in RECIPES.items():
        with tempfile.TemporaryDirectory(prefix="goldpath-overhead-") as folder:
            measure_run(what, Recipe(recipe, Path(folder)), arguments.runs)


def measure_help() -> Any:
    """Times `goldpath --help`, files in the page cache."""
    command = [GOLDPATH, "--help"]
    seconds = [time_command(command, dict(os.environ)) for _ in range(HELP_RUNS + 1)][1:]
    return at_most("`goldpath --help`", statistics.median(seconds), "s", HELP_LIMIT, "", HELP_RUNS)


@dataclass(frozen=True)
class Recipe:
    """A recipe whose rounds are versions that differ by their seeds.

    Attributes:
        source: the recipe file.
        folder: where each round's copy, its home and the replays by hand lie.
    """

    source: Path
    folder: Path

    def write(self, number: int) -> str:
        """Writes the recipe of one round and returns its path."""
        recipe = yaml.safe_load(self.source.read_text(encoding="utf-8"))
        recipe["version"] = version(number)
        for section in ("data", "pretrain", "sft", "dpo"):
            recipe[section]["seed"] = number
        path = self.folder / f"{number}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        return str(path)


def measure_run(what: str, recipe: Recipe, runs: int) -> None:
    """Times both sides in turn and prints their medians' ratio and difference."""
    write_corpus(recipe.folder)
    environment = stage_environment(recipe.folder / "home")
    time_command([GOLDPATH, "run", recipe.write(0), "--only", "data"], environment)
    whole, stages = [], []
    for number in range(1, runs + 1):
        whole.append(time_command([GOLDPATH, "run", recipe.write(number)], environment))
        stages.append(replay_stages(recipe.folder, version(number)))
        print(f"{what}, round {number}: goldpath run {whole[-1]:.1f} s, by hand {stages[-1]:.1f} s", file=sys.stderr)
    run, hand = statistics.median(whole), statistics.median(stages)
    peer = f"the same {len(STAGES)} stage commands by hand, {hand:.1f} s"
    emit(at_most(f"`goldpath run` on {what}", run / hand, "times its stages", RATIO_LIMIT, peer, runs))
    emit(observed(f"what it adds to {what}", run - hand, "s", peer, runs))


def replay_stages(folder: Path, of: str) -> float:
    """Runs the commands of a version's records again, into other folders, and returns the seconds that they took."""
    home, hand = folder / "home", folder / "hand" / of
    # What a flow gives its stages, so that orchestration is all that differs.
    environment = (
        STAGE_ENVIRONMENT | stage_environment(hand) | {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow/mlflow.db"}
    )
    hand.mkdir(parents=True)
    total = 0.0
    for stage in STAGES:
        (ran,) = (home / "runs").glob(f"*/{of}/{stage}")
        argv = json.loads((ran / "record.json").read_text(encoding="utf-8"))["argv"]
        command = [str(hand / stage) if word == str(ran) else word for word in argv]
        assert str(hand / stage) in command, f"{stage}: no --out {ran} in {argv}"
        total += time_command(command, environment)
        assert (hand / stage / "record.json").is_file(), f"{stage} was not replayed"
    return total


def time_command(command: list[str], environment: dict[str, str]) -> float:
    """Runs a command to its end and returns the seconds; a gate that says no is an outcome like any other.

    Raises:
        RuntimeError: it ended with another code; its last words are in the message.
    """
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode not in (ExitCode.OK, ExitCode.GATE_FAILED):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return seconds


def stage_environment(home: Path) -> dict[str, str]:
    """Returns an environment with a home of its own, away from the user's servers and settings; all threads wait alike."""
    foreign = ("GOLDPATH_", "PREFECT_", "MLFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    if code_state()[1]:
        environment["GOLDPATH_ALLOW_DIRTY"] = "benchmark on a changed working tree"
    return environment | TELEMETRY_OFF | {"GOLDPATH_HOME": str(home), "GOMP_SPINCOUNT": SPINS}


def version(number: int) -> str:
    """Names a round's version."""
    return f"0.0.{number}"


def write_corpus(folder: Path) -> None:
    """Writes rows about an invented store room: what lies on which shelf."""
    chance = random.Random(0)
    words = sorted({"".join(chance.choices(SYLLABLES, k=3)) for _ in range(NUM_WORDS)})
    shelf = {word: f"Shelf {chance.randint(1, NUM_SHELVES)}." for word in words}
    texts = [" ".join(chance.choices(words, k=WORDS_PER_DOCUMENT)) for _ in range(NUM_DOCUMENTS + NUM_GOLDEN)]
    write_lines(folder / "documents.jsonl", [{"text": text} for text in texts[NUM_GOLDEN:]])
    write_lines(
        folder / "chats.jsonl",
        [{"messages": [says("user", f"Which shelf holds the {word}?"), says("assistant", shelf[word])]} for word in words],
    )
    write_lines(
        folder / "pairs.jsonl",
        [
            {
                "prompt": [says("user", f"On which shelf lies the {word}?")],
                "chosen": [says("assistant", shelf[word])],
                "rejected": [says("assistant", f"The {word} could be on any shelf.")],
            }
            for word in words
        ],
    )
    golden: list[dict[str, Any]] = []
    for number, word in enumerate(chance.sample(words, NUM_GOLDEN)):
        wrong = [f"Shelf {NUM_SHELVES + extra}." for extra in (1, 2, 3)]
        golden += [
            {"id": f"where-{number}", "kind": "closed_book", "question": f"Where is {word} kept?", "answer": shelf[word]},
            {"id": f"one-of-{number}", "kind": "choice", "question": f"Say where {word} is.", "answer": 0}
            | {"choices": [shelf[word], *wrong]},
            {"id": f"form-{number}", "kind": "format", "question": f"Name the place of {word}.", "pattern": r"Shelf \d+\."},
            {"id": f"text-{number}", "kind": "heldout", "text": texts[number]},
        ]
    write_lines(folder / "golden.jsonl", golden)


def says(role: str, content: str) -> dict[str, str]:
    """Returns one turn."""
    return {"role": role, "content": content}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
