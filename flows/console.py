"""What a person sees while a flow runs: one line per event on stderr. Data goes to stdout, never here."""

import sys
from collections.abc import Mapping

from lineage.record import Metric

SHOWN_FIGURES = 6


def say(stage: str, event: str, figures: Mapping[str, Metric] | None = None) -> None:
    """Prints one line: the stage, what happened, and its first figures."""
    shown = list((figures or {}).items())[:SHOWN_FIGURES]
    tail = "  " + " · ".join(f"{name} {short(value)}" for name, value in shown) if shown else ""
    print(f"▸ {stage:<12} {event}{tail}", file=sys.stderr, flush=True)


def short(value: Metric) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
