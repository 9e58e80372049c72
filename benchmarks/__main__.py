"""Runs every benchmark of this folder and writes docs/benchmarks.md: date, hardware, figures, missed targets as missed.

>>> make bench
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
GPU = "gpu"
MARKS = {True: "met", False: "**missed**", None: ""}


def main() -> int:
    """Runs the benchmarks one after the other, so that none disturbs another; 1 where one broke (a miss is a result)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="measurements that each median is over (default: 3)")
    told = "what `python -m benchmarks.gpu` printed on a machine with a GPU; changes that section alone"
    parser.add_argument("--gpu", type=Path, metavar="FILE", help=told)
    arguments = parser.parse_args()
    if arguments.gpu:
        PAGE.write_text(with_gpu(read(str(PAGE)), arguments.gpu.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    runs, before = ["--runs", str(arguments.runs)], sections_of(read(str(PAGE)))
    sections, broken = [], 0
    for name in sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NO_BENCHMARKS):
        print(f"bench: {name}", file=sys.stderr)
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *runs], stdout=subprocess.PIPE, text=True, check=False
        )
        figures = figures_in(done.stdout)
        broken += done.returncode != 0
        if name == GPU and not figures and not done.returncode:  # there is none here: what one found elsewhere still holds
            sections += [before[GPU]] if GPU in before else []
            continue
        sections.append(section(name, figures, done.returncode))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join([heading(arguments.runs), *sections]), encoding="utf-8")
    print(f"bench: {PAGE.relative_to(HERE.parent)}", file=sys.stderr)
    return int(broken > 0)


def figures_in(output: str) -> list[dict[str, Any]]:
    """Returns the figures that a benchmark printed."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def sections_of(page: str) -> dict[str, str]:
    """Returns the page's sections by name; under "" what stands before the first."""
    first, *others = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    return {"": first} | {part.partition("\n")[0].removeprefix("## "): part for part in others}


def with_gpu(page: str, output: str) -> str:
    """Returns the page with the figures that the GPU's script printed, in place of those that it had."""
    sections = {name: part.rstrip("\n") + "\n" for name, part in sections_of(page).items()}
    sections[GPU] = section(GPU, figures_in(output), 0)
    before = sections.pop("")
    return "\n".join([before, *(sections[name] for name in sorted(sections))])


def heading(runs: int) -> str:
    """Says when, on which code and on what the figures were measured."""
    git = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        "# Benchmarks\n\n"
        f"Written by `python -m benchmarks --runs {runs}` on {now}, commit {git.stdout.strip() or 'unknown'}. "
        "Medians; a missed target says so.\n\n"
        f"Hardware: {hardware()}. Python {platform.python_version()}.\n"
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


def section(name: str, figures: list[dict[str, Any]], code: int) -> str:
    """Renders one benchmark as a table."""
    lines = [f"## {name}\n", "| figure | value | target | | against | runs |", "|---|---|---|---|---|---|"]
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
    return "\n".join(lines) + "\n"


def read(path: str) -> str:
    """Returns a file's text, "" where there is none (other systems have no /proc)."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
