"""`make soak`: kills training again and again, also in the middle of a checkpoint, damages what is left, compares the end.

Every run ends, after as many kills as it met, with the bytes of a run that nothing disturbed: weights and adapters.

>>> python tests/training/soak.py --kills 200 --seed 0
"""

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tiny_training import VOCABULARY, Command, pack_row, write_packed, write_tokenizer

from lineage.files import list_files, sha256_file
from training.manifest import FOLDER, MANIFEST, find_checkpoints
from training.telemetry import METRICS, history_digest, read_rows

SECONDS_PER_RUN = 300
LONG = {"steps": 300, "checkpoint_every": 10, "log_every": 10, "keep_checkpoints": 4, "validate_every": 100}
RUNS = {
    "pretrain": ("pretrain", {}),
    "sft": ("sft", {"accumulation": 2}),
    "dpo": ("dpo", {"learning_rate": 1e-4}),
    "lora": ("sft", {"lora_rank": 2}),
    "rewind": ("pretrain", {"on_bad_step": "rewind", "spike_deviations": 3.0, "learning_rate": 0.02, "rows_per_step": 1}),
}
COMPARED = ("bundle/", "adapter/", "initial/")


@dataclass
class Report:
    """What a soak came to.

    Attributes:
        kills: SIGKILLs sent to a live process, of which so many while a checkpoint was being written.
        damaged: checkpoints that were damaged on purpose.
        accepted: of these, how many a run continued from. Must be 0.
        different: files that differ from those of the undisturbed run. Must be empty.
    """

    kills: int = 0
    kills_while_writing: int = 0
    damaged: int = 0
    accepted: int = 0
    runs: int = 0
    different: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether everything held."""
        return not self.accepted and not self.different


class Soak:
    """The undisturbed runs, and those that are killed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.chance, self.report = folder, random.Random(seed), Report()
        self.command = Command(write_data(folder / "data"), folder)
        self._jobs: dict[str, Path] = {}

    def run(self, kills: int, kinds: tuple[str, ...]) -> Report:
        """Kills runs of each kind in turn until `kills` were reached and the last run ended."""
        while self.report.kills < kills:
            for kind in kinds:
                if self.report.kills < kills:
                    self.kill_one_run(kind, kills)
        return self.report

    def reference(self, kind: str) -> Path:
        """Returns the folder of the undisturbed run of a kind; trains it when it is first asked for."""
        out = self.folder / "reference" / kind
        if kind not in self._jobs:
            objective, options = RUNS[kind]
            base = None if objective == "pretrain" else self.reference("pretrain") / "bundle"
            self._jobs[kind] = self.command.job(objective, base=base, **{**LONG, **options})
            code, _, errors = self.command.run(self._jobs[kind], out)
            assert code == 0, errors
        return out

    def kill_one_run(self, kind: str, kills: int) -> None:
        """Runs one kind to its end, through kills and damage, and compares it with the undisturbed one."""
        reference, out, damaged = self.reference(kind), self.folder / "killed" / kind, ""
        for _ in range(100):
            patient = self.report.kills >= kills
            process = self.command.start(self._jobs[kind], out)
            killed = not patient and self.kill_soon(process, out)
            errors = process.communicate(timeout=SECONDS_PER_RUN)[1]
            # The first: a run that rewinds says it again, by then of a checkpoint that it has written anew.
            begun = re.search(r"continuing from (\S+)", errors)
            self.report.accepted += bool(damaged) and bool(begun) and begun[1] == damaged
            if not killed:
                assert process.returncode == 0, errors
                break
            damaged = self.damage(out) if self.chance.random() < 0.7 else ""
        self.report.runs += 1
        self.report.different += [f"{kind}: {name}" for name in different_files(reference, out)]
        print(f"{kind}: run {self.report.runs} ended after {self.report.kills} kills in all", file=sys.stderr)
        shutil.rmtree(out)

    def kill_soon(self, process: "subprocess.Popen[str]", out: Path) -> bool:
        """Kills a run in its start, between steps, in a checkpoint, or in its export; tells whether it did."""
        moment = self.chance.choice(["start", "between", "writing", "writing", "export"])
        target = newest(out) + self.chance.randint(0, 80)
        deadline = time.monotonic() + (self.chance.uniform(0, 4) if moment == "start" else SECONDS_PER_RUN)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
            if moment == "writing" and newest(out) >= target and (out / FOLDER / ".writing").exists():
                break
            if moment == "between" and newest(out) >= target:
                break
            if moment == "export" and any(out.glob(".bundle.writing*")):
                break
        time.sleep(self.chance.uniform(0, 0.002 if moment == "writing" else 0.02))
        is_writing = (out / FOLDER / ".writing").exists()
        if process.poll() is not None:
            return False
        process.send_signal(signal.SIGKILL)
        self.report.kills += 1
        self.report.kills_while_writing += is_writing
        return True

    def damage(self, out: Path) -> str:
        """Damages the newest checkpoint where there is an older whole one, and the end of the history; returns its name."""
        found = list(find_checkpoints(out / FOLDER, verify=True))
        if len(found) < 2 or found[0].problem or found[1].problem:
            return ""
        files = [path for path in sorted(found[0].folder.iterdir()) if path.stat().st_size]
        victim = self.chance.choice([*files, found[0].folder / MANIFEST])
        kind = self.chance.choice(["missing", "torn", "flipped"])
        content = victim.read_bytes()
        if kind == "missing":
            victim.unlink()
        elif kind == "torn":
            victim.write_bytes(content[: self.chance.randrange(len(content))])
        else:
            place = self.chance.randrange(len(content))
            victim.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        self.report.damaged += 1
        return found[0].folder.name


def different_files(left: Path, right: Path) -> Iterator[str]:
    """Yields the names of the compared files that differ or that only one side has."""
    sides = [{path.relative_to(side).as_posix(): path for path in list_files(side)} for side in (left, right)]
    histories = [read_rows(side / METRICS) for side in (left, right)]
    if len({history_digest(rows) for rows in histories}) > 1:
        yield METRICS
    for name in sorted(sides[0].keys() | sides[1].keys()):
        if name.startswith(COMPARED):
            paths = [side.get(name) for side in sides]
            if None in paths or len({sha256_file(path) for path in paths if path}) > 1:
                yield name


def newest(out: Path) -> int:
    """Returns the step of the newest checkpoint's name, 0 where there is none."""
    steps = [int(path.name.removeprefix("step-")) for path in (out / FOLDER).glob("step-*")]
    return max(steps, default=0)


def write_data(folder: Path) -> Path:
    """Writes rows of every kind, two of them noise, and a tokenizer."""
    write_tokenizer(folder / "tokenizer", VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    for kind in ("pretrain", "sft", "preference"):
        for split, count in (("train", 40), ("validation", 5)):
            rows = [pack_row(kind, generator) for _ in range(count)]
            if kind == "pretrain" and split == "train":
                for number in (11, 23):
                    rows[number]["input_ids"] = torch.randint(40, VOCABULARY, (48,), generator=generator).tolist()
            write_packed(folder, kind, split, rows)
    return folder


def main() -> int:
    """Runs the soak and prints its report as one JSON line."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs in all (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the damage (default: 0)")
    arguments = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="goldpath-soak-") as folder:
        report = Soak(Path(folder), arguments.seed).run(arguments.kills, tuple(RUNS))
    print(json.dumps({**vars(report), "clean": report.clean, "seconds": round(time.monotonic() - begin)}))
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
