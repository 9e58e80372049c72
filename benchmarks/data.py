"""What the data firewall finds, what it leaves alone and how fast it reads, on corpora with planted rows.

>>> python -m benchmarks.data pii
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import get_args

from benchmarks.corpora.clean_rows import gsm8k_rows, library_rows, number_rows
from benchmarks.corpora.planted_pii import Planted, planted_rows
from benchmarks.figure import at_least, at_most, emit, observed
from data_contracts.config import PiiClass
from data_contracts.pii import find_in

MIN_RECALL, MAX_FALSE = 0.95, 0.01
CLASSES: tuple[PiiClass, ...] = get_args(PiiClass)


def main() -> None:
    """Measures, and prints one JSON line per figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["pii"], help="the part to measure (default: all)")
    parser.add_argument("--runs", type=int, default=3, help="measurements of a speed that its median is over (default: 3)")
    parser.add_argument("--rows", type=int, default=3_000, help="planted rows per class (default: 3,000)")
    parser.add_argument("--seed", type=int, default=0, help="the seed of planted rows (default: 0)")
    arguments = parser.parse_args()
    measure_pii(arguments.rows, arguments.seed, arguments.runs)


def measure_pii(rows: int, seed: int, runs: int) -> None:
    """Prints recall and false positives of each class of personal data, and the speed on one core."""
    for kind in CLASSES:
        found, missed = recall(planted_rows(kind, rows, seed))
        worst = ", ".join(f"{name} {1 - count / found[name]:.3f}" for name, count in missed.most_common(3))
        share = 1 - missed.total() / found.total()
        emit(at_least(f"recall of {kind}", share, "", MIN_RECALL, f"{len(found)} kinds; {worst or 'none missed'}", rows))
    clean = {
        "the standard library": list(library_rows(10_000, seed)),
        "GSM8K": list(gsm8k_rows(10_000)),
        "numbers of other kinds": list(number_rows(5 * rows, seed)),
    }
    for name, texts in clean.items():
        if texts:
            flagged = false_positives(texts)
            share = flagged["any"] / len(texts)
            detail = ", ".join(f"{kind} {flagged[kind]}" for kind in CLASSES if flagged[kind])
            emit(at_most(f"false positives in {name}", share, "", MAX_FALSE, detail or "no class", len(texts)))
    for name, texts in clean.items():
        if texts:
            emit(observed(f"speed in {name}", speed(texts, runs), "MB/s", "one core", runs))


def recall(rows: Iterable[Planted]) -> tuple[Counter[str], Counter[str]]:
    """Returns how many things were planted and how many were missed, by name; found is what is covered whole."""
    planted: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for row in rows:
        covered = (one.start <= row.start and row.end <= one.end for one in find_in(row.text) if one.kind == row.kind)
        planted[row.name] += 1
        missed[row.name] += not any(covered)
    return planted, +missed


def false_positives(texts: Iterable[str]) -> Counter[str]:
    """Returns how many texts have a finding: of each class, and of `any`."""
    flagged: Counter[str] = Counter()
    for text in texts:
        if kinds := {finding.kind for finding in find_in(text)}:
            flagged.update([*kinds, "any"])
    return flagged


def speed(texts: Sequence[str], runs: int) -> float:
    """Returns how many megabytes a second of processor time reads: the median of several runs."""
    size = sum(len(text.encode()) for text in texts)
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        for text in texts:
            find_in(text)
        seconds.append(time.process_time() - start)
    return size / median(seconds) / 1e6


if __name__ == "__main__":
    sys.exit(main())
