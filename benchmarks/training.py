"""How quick training is, beside its peers: the same model, rows, precision and threads, one after the other in turn.

Rows are GSM8K's where its `train.jsonl` is given or lies in ../shared/data/gsm8k, else word problems of like lengths that
this script writes. Tokens are useful ones: padding is not counted.

>>> python -m benchmarks.training --runs 3
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.figure import at_least, emit, observed
from flows.launch import SPINS, STAGE_ENVIRONMENT
from lineage.privacy import TELEMETRY_OFF
from training.batches import PackedRows
from training.telemetry import METRICS, read_rows

GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k" / "train.jsonl"
NUM_ROWS = 1200
VOCABULARY, SEQ_LEN = 8192, 512
STEPS = {"11 M": 12, "110 M": 6}
MODELS = {
    "11 M": {"hidden_size": 384, "intermediate_size": 1024, "num_layers": 6, "num_heads": 6, "num_kv_heads": 6},
    "110 M": {"hidden_size": 768, "intermediate_size": 2048, "num_layers": 14, "num_heads": 12, "num_kv_heads": 12},
}
# What TRL can be told that makes it quicker on a CPU; the quicker one of the first round is its best.
TRL_BEST = {
    "sft": [
        {"packing": True, "max_length": 1024, "per_device_train_batch_size": 1, "gradient_checkpointing": False},
        {"packing": True, "max_length": 512, "per_device_train_batch_size": 2, "gradient_checkpointing": False},
        {"per_device_train_batch_size": 4, "gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"},
    ],
    "dpo": [
        {"precompute_ref_log_probs": True, "per_device_train_batch_size": 4, "gradient_checkpointing": False},
        {"precompute_ref_log_probs": True, "per_device_train_batch_size": 2, "gradient_checkpointing": False},
    ],
}
TRAINER = {"per_device_train_batch_size": 4, "bf16": True, "gradient_checkpointing": False}
SFT_LIMITS = {"11 M": (1.8, 1.25), "110 M": (1.4, 1.1)}
DPO_LIMIT, PRETRAIN_LIMIT = 1.5, 1.15
MFU_LIMITS, ROOFLINE = {"110 M": 60.0}, "% of the measured bf16 matrix-multiply peak"


def main() -> None:
    """Measures, and prints one JSON line per figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="rounds of all sides, interleaved (default: 3)")
    parser.add_argument("--rows", type=Path, default=GSM8K, help="GSM8K's train.jsonl")
    parser.add_argument("--size", choices=tuple(MODELS), action="append", help="measure this size alone")
    parser.add_argument("--objective", choices=("sft", "dpo", "pretrain"), action="append", help="measure this alone")
    arguments = parser.parse_args()
    objectives = arguments.objective or ["sft", "dpo", "pretrain"]
    with tempfile.TemporaryDirectory(prefix="goldpath-training-") as folder:
        for size in arguments.size or MODELS:
            bench = Bench.prepare(Path(folder) / size.replace(" ", ""), size, arguments.rows)
            if "sft" in objectives:
                measure_sft(bench, arguments.runs)
            if "dpo" in objectives:
                measure_dpo(bench, arguments.runs)
            if "pretrain" in objectives:
                measure_pretrain(bench, arguments.runs)


def measure_sft(bench: "Bench", runs: int) -> None:
    """Compares SFT with TRL as it comes, and with TRL as quick as a CPU lets it be."""
    default = {"assistant_only_loss": True}
    quick = [default | options for options in TRL_BEST["sft"]]
    best = max(quick, key=lambda options: bench.theirs("sft", "chats.jsonl", options)["tokens_per_second"])
    sides = {
        "ours": lambda: bench.ours("sft", rows_per_step=4),
        "default": lambda: bench.theirs("sft", "chats.jsonl", default),
        "best": lambda: bench.theirs("sft", "chats.jsonl", best),
    }
    speed, mfu = interleave(sides, runs, "tokens_per_second")
    name = f"SFT at {bench.size} parameters"
    limits = SFT_LIMITS[bench.size]
    for side, what, limit in (("default", "TRL as it comes", limits[0]), ("best", f"TRL with {words(best)}", limits[1])):
        peer = f"{what}: {speed[side]:,.0f} useful tokens/s; ours: {speed['ours']:,.0f}"
        emit(at_least(f"{name}, against TRL's {side}", speed["ours"] / speed[side], "times", limit, peer, runs))
    emit(observed(f"{name}, share of the roofline", 100 * mfu, ROOFLINE, "", runs))


def measure_dpo(bench: "Bench", runs: int) -> None:
    """Compares DPO with TRL as quick as a CPU lets it be, in pairs per second."""

    def theirs(options: dict[str, Any]) -> dict[str, float]:
        seconds = bench.theirs("dpo", "pairs.jsonl", options)["step_seconds"]
        return {"pairs": options["per_device_train_batch_size"] / seconds}

    best = max(TRL_BEST["dpo"], key=lambda options: theirs(options)["pairs"])
    speed, mfu = interleave({"ours": bench.our_pairs, "theirs": lambda: theirs(best)}, runs, "pairs")
    peer = f"TRL with {words(best)}: {speed['theirs']:.2f} pairs/s; ours: {speed['ours']:.2f}"
    name = f"DPO at {bench.size} parameters"
    emit(at_least(name, speed["ours"] / speed["theirs"], "times", DPO_LIMIT, peer, runs))
    emit(observed(f"{name}, share of the roofline", 100 * mfu, ROOFLINE, "", runs))


def measure_pretrain(bench: "Bench", runs: int) -> None:
    """Compares pretraining with transformers' Trainer on the same packed blocks."""
    sides = {
        "ours": lambda: bench.ours("pretrain", rows_per_step=4),
        "theirs": lambda: bench.theirs("pretrain", "blocks.jsonl", TRAINER),
    }
    speed, mfu = interleave(sides, runs, "tokens_per_second")
    peer = f"transformers' Trainer: {speed['theirs']:,.0f} tokens/s; ours: {speed['ours']:,.0f}"
    name = f"pretraining at {bench.size} parameters"
    emit(at_least(name, speed["ours"] / speed["theirs"], "times", PRETRAIN_LIMIT, peer, runs))
    figure = f"{name}, share of the roofline"
    if limit := MFU_LIMITS.get(bench.size):
        emit(at_least(figure, 100 * mfu, ROOFLINE, limit, "", runs))
    else:
        emit(observed(figure, 100 * mfu, ROOFLINE, "", runs))


def interleave(sides: dict[str, Callable[[], dict[str, Any]]], runs: int, figure: str) -> tuple[dict[str, float], float]:
    """Runs all sides in turn, `runs` times; returns each one's median figure, and our median MFU (0 where none is told)."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    shares = []
    for number in range(1, runs + 1):
        for side, measure in sides.items():
            said = measure()
            found[side].append(said[figure])
            shares += [said["mfu"]] if "mfu" in said else []
        now = ", ".join(f"{side} {values[-1]:,.1f}" for side, values in found.items())
        print(f"round {number}: {now}", file=sys.stderr)
    return {side: statistics.median(values) for side, values in found.items()}, statistics.median(shares or [0.0])


def words(options: dict[str, Any]) -> str:
    """Renders a peer's settings."""
    return ", ".join(f"{name} {value}" for name, value in options.items() if name != "assistant_only_loss")


@dataclass(frozen=True)
class Bench:
    """One model size, with everything that both sides read.

    Attributes:
        size: its name.
        folder: rows (`chats.jsonl`, `pairs.jsonl`, `blocks.jsonl` for the peers), `data/` for us, `model/` for both.
    """

    size: str
    folder: Path

    @classmethod
    def prepare(cls, folder: Path, size: str, rows: Path) -> "Bench":
        """Writes rows, packs them with the data stage, and writes a model with random weights."""
        folder.mkdir(parents=True)
        problems = list(read_problems(rows))[:NUM_ROWS]
        write_lines(folder / "chats.jsonl", ({"messages": chat(*problem)} for problem in problems))
        write_lines(folder / "pairs.jsonl", pairs(problems))
        write_lines(folder / "texts.jsonl", ({"text": f"{question}\n{answer}"} for question, answer in problems))
        sources = [
            {"kind": "jsonl", "path": str(folder / f"{name}.jsonl"), "rows": kind}
            for name, kind in (("chats", "sft"), ("pairs", "preference"), ("texts", "pretrain"))
        ]
        data = {"sources": sources, "vocab_size": VOCABULARY, "seq_len": SEQ_LEN, "near_duplicate_threshold": 0}
        run(stage_command("data_contracts", write_job(folder / "data", {"stage": "data", "config": data}), folder / "data"))
        first = {"objective": "pretrain", "steps": 1, "rows_per_step": 1, "validation_rows": 1, "checkpoint_every": 0}
        dimensions = MODELS[size] | {"max_positions": 1024}
        job = write_job(folder / "first", training_job(folder, "pretrain", first, model=dimensions))
        run(stage_command("training", job, folder / "first"))
        (folder / "model").symlink_to(folder / "first" / "initial")
        packed = PackedRows(folder / "data", "pretrain", "train")
        write_lines(folder / "blocks.jsonl", packed.batch(range(packed.num_rows)).input_ids.tolist())
        return cls(size, folder)

    def new_folder(self) -> Path:
        """Returns a stage's output folder that nothing has used."""
        return Path(tempfile.mkdtemp(dir=self.folder, prefix="ours-")) / "out"

    def job(self, out: Path, objective: str, **options: Any) -> Path:
        """Writes the job of a training stage that continues the model, and returns its file."""
        training = {
            "objective": objective,
            "learning_rate": 2e-5,
            "log_every": 1,
            "validation_rows": 1,
            "precision": "bf16",
            **options,
        }
        return write_job(out, training_job(self.folder, objective, training, base=self.folder / "model"))

    def ours(self, objective: str, **options: Any) -> dict[str, float]:
        """Trains with the stage command; returns useful tokens/s, seconds of a step, and MFU."""
        out = self.new_folder()
        job = self.job(out, objective, steps=STEPS[self.size], checkpoint_every=0, **options)
        run(stage_command("training", job, out))
        rows = [row for row in read_rows(out / METRICS) if "loss" in row]
        speed, mfu = (statistics.median(row[figure] for row in rows[2:]) for figure in ("tokens_per_second", "mfu"))
        per_step = (rows[-1]["tokens"] - rows[0]["tokens"]) / (len(rows) - 1)
        return {"tokens_per_second": speed, "step_seconds": per_step / speed, "mfu": mfu}

    def our_pairs(self) -> dict[str, float]:
        """Trains DPO with the stage command; returns pairs per second, by the pairs that each packed row holds, and MFU."""
        rows_per_step = 4
        found = self.ours("dpo", rows_per_step=rows_per_step)
        train = PackedRows(self.folder / "data", "dpo", "train")
        everything = train.batch(range(train.num_rows))
        pairs = rows_per_step * len(everything.examples) / train.num_rows
        return {"pairs": pairs / found["step_seconds"], "mfu": found["mfu"]}

    def theirs(self, objective: str, rows: str, options: dict[str, Any], steps: int | None = None) -> dict[str, Any]:
        """Trains with a peer; returns useful tokens/s, seconds of a step, and the clock at the `ends` of the steps."""
        work = tempfile.mkdtemp(dir=self.folder, prefix="theirs-")
        peers = str(Path(__file__).with_name("peers.py"))
        command = [sys.executable, peers, objective, "--model", str(self.folder / "model")]
        command += ["--rows", str(self.folder / rows), "--steps", str(steps or STEPS[self.size]), "--work", work]
        said = run([*command, "--options", json.dumps(options)])
        result: dict[str, Any] = json.loads(said.splitlines()[-1])
        return result


def training_job(folder: Path, stage: str, training: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Returns a training stage's job."""
    base = more.pop("base", None)
    parents = {"data": str(folder / "data")} | ({"base": str(base)} if base else {})
    return {"stage": stage, "config": {"model": more.get("model"), "training": training}, "parents": parents}


def write_job(out: Path, job: dict[str, Any]) -> Path:
    """Writes a stage's job beside its output folder, and returns the file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.parent / f"{out.name}.job.yaml"
    path.write_text(yaml.safe_dump({"name": "bench", "version": "1", **job}), encoding="utf-8")
    return path


def stage_command(room: str, job: Path, out: Path) -> list[str]:
    """Returns the command of a stage."""
    return [sys.executable, "-m", room, "--config", str(job), "--out", str(out)]


def stage_environment() -> dict[str, str]:
    """Returns the environment that a flow gives its stages."""
    return STAGE_ENVIRONMENT | {"GOMP_SPINCOUNT": SPINS} | os.environ | TELEMETRY_OFF | {"HF_HUB_OFFLINE": "1"}


def run(command: list[str]) -> str:
    """Runs a command as a flow runs its stages, and returns what it printed.

    Raises:
        RuntimeError: it failed; its last words are in the message.
    """
    done = subprocess.run(command, env=stage_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def read_problems(rows: Path) -> Iterator[tuple[str, str]]:
    """Yields questions and answers."""
    if rows.is_file():
        for line in rows.read_text(encoding="utf-8").splitlines():
            problem = json.loads(line)
            yield problem["question"], problem["answer"]
        return
    chance = random.Random(0)
    for number in range(NUM_ROWS):
        apples, days = chance.randint(2, 99), chance.randint(3, 9)
        steps = [f"On day {day} there are {apples * day} apples, {apples} times {day}." for day in range(1, days + 1)]
        yield f"Problem {number}: somebody picks {apples} apples a day for {days} days. How many?", " ".join(steps)


def chat(question: str, answer: str) -> list[dict[str, str]]:
    """Returns one conversation."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def pairs(problems: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Yields preference pairs: the right answer, and that of the next problem."""
    for (question, answer), (_, other) in zip(problems, [*problems[1:], problems[0]], strict=True):
        prompt, chosen = chat(question, answer)
        yield {"prompt": [prompt], "chosen": [chosen], "rejected": [{"role": "assistant", "content": other}]}


def write_lines(path: Path, rows: Any) -> None:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
