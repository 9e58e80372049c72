"""One measured figure beside its target, as one JSON line on stdout."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """A measurement.

    Attributes:
        figure: what was measured.
        value, unit: the median over the runs.
        target: what was promised, as people write it (`<= 1.10`); "" for a figure that is only observed.
        met: whether the promise is kept; None without a promise.
        peer: what it was measured against, with its own figure.
        runs: how many measurements the median is over.
    """

    figure: str
    value: float
    unit: str
    target: str
    met: bool | None
    peer: str
    runs: int


def at_most(figure: str, value: float, unit: str, limit: float, peer: str, runs: int) -> Figure:
    """Returns a figure that must not exceed a limit."""
    return Figure(figure, round(value, 3), unit, f"<= {limit:g}", value <= limit, peer, runs)


def at_least(figure: str, value: float, unit: str, limit: float, peer: str, runs: int) -> Figure:
    """Returns a figure that must not fall short of a limit."""
    return Figure(figure, round(value, 3), unit, f">= {limit:g}", value >= limit, peer, runs)


def observed(figure: str, value: float, unit: str, peer: str, runs: int) -> Figure:
    """Returns a figure that nobody promised anything about."""
    return Figure(figure, round(value, 3), unit, "", None, peer, runs)


def emit(figure: Figure) -> None:
    """Prints a figure at once, so that a later failure does not lose it."""
    print(json.dumps(asdict(figure)), flush=True)
