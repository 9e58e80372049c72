"""Runs the benchmarks of this folder and writes docs/benchmarks.md: date, hardware, figures, missed targets as missed.

>>> make bench
>>> python -m benchmarks training resume --runs 2           # these alone; the other sections of the page stay
>>> python -m benchmarks gpu --figures gpu.jsonl            # what `python -m benchmarks.gpu` printed on another machine
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
NO_BENCHMARKS = {"__init__", "__main__", "figure", "peers", "gpu_bench", "gpu_checks", "gpu_peers"}
NAMES = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NO_BENCHMARKS)
MARKS = {True: "met", False: "**missed**", None: ""}
HEADING = "# Benchmarks\n\nWritten by `make bench`. Medians; a missed target says so.\n"


def main() -> int:
    """Runs the benchmarks one after the other, so that none disturbs another; 1 where one broke (a miss is a result)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"measure these alone ({', '.join(NAMES)})")
    parser.add_argument("--runs", type=int, default=3, help="measurements that each median is over (default: 3)")
    told = "take the figures of the one NAME from what it printed elsewhere, instead of measuring"
    parser.add_argument("--figures", type=Path, metavar="FILE", help=told)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if arguments.figures:
        if len(arguments.names) != 1:
            parser.error("--figures needs the NAME of the one benchmark that printed them")
        told = f"Printed by `python -m benchmarks.{arguments.names[0]}`, on what the table says."
        write_section(arguments.names[0], section(figures_in(arguments.figures.read_text(encoding="utf-8")), told))
        return 0
    broken = 0
    for name in arguments.names or NAMES:
        print(f"bench: {name}", file=sys.stderr)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--runs", str(arguments.runs)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        broken += done.returncode != 0
        if figures := figures_in(done.stdout):  # without a GPU there are none: what one found elsewhere still holds
            write_section(name, section(figures, provenance(name, arguments.runs), done.returncode))
    print(f"bench: {PAGE.relative_to(HERE.parent)}", file=sys.stderr)
    return int(broken > 0)


def figures_in(output: str) -> list[dict[str, Any]]:
    """Returns the figures that a benchmark printed."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def write_section(name: str, text: str) -> None:
    """Puts a section into the page, in place of the one that it had: as soon as it is measured, so that none gets lost."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(with_section(read(str(PAGE)), name, text), encoding="utf-8")


def with_section(page: str, name: str, text: str) -> str:
    """Returns the page with a section added or replaced; sections stand in the order of their names."""
    _, *others = re.split(r"^## ", page, flags=re.MULTILINE)
    sections = {title: body.strip("\n") for title, _, body in (part.partition("\n") for part in others)}
    sections[name] = text.strip("\n")
    return "\n".join([HEADING, *(f"## {title}\n\n{sections[title]}\n" for title in sorted(sections))])


def provenance(name: str, runs: int) -> str:
    """Says when, on which code and on what figures were measured."""
    git = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"Measured by `python -m benchmarks.{name} --runs {runs}`, ended {now}, commit {git.stdout.strip() or 'unknown'}, "
        f"on {hardware()}, Python {platform.python_version()}."
    )


def hardware() -> str:
    """Describes processor, cores, memory and GPUs."""
    model = re.search(r"^model name\s*: (.+)$", read("/proc/cpuinfo"), flags=re.MULTILINE)
    cores = len(os.sched_getaffinity(0))
    parts = [
        model.group(1) if model else platform.machine(),
        f"{cores} cores",
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    ]
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        parts += subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().splitlines()
    else:
        parts.append("no GPU")
    return ", ".join(parts)


def section(figures: list[dict[str, Any]], told: str, code: int = 0) -> str:
    """Renders one benchmark's figures as a table, below a line that tells where they are from."""
    lines = [f"{told}\n", "| figure | value | target | | against | runs |", "|---|---|---|---|---|---|"]
    for figure in figures:
        cells = [
            figure["figure"],
            f"{figure['value']:g} {figure['unit']}",
            figure["target"],
            MARKS[figure["met"]],
            figure["peer"],
            figure["runs"],
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if code:
        lines.append(f"\n**This benchmark broke** (exit code {code}); the figures above are those that it gave before.")
    return "\n".join(lines)


def read(path: str) -> str:
    """Returns a file's text, "" where there is none (other systems have no /proc)."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
