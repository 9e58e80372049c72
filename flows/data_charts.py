"""Charts of two data versions side by side: A is grey, B is blue."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.charts import COLOURS, INK, legend, panels, svg

PAIR = (COLOURS[5], COLOURS[0])
MOST_SOURCES = 12
PARTS = (("unchanged", COLOURS[5]), ("changed", COLOURS[1]), ("added", COLOURS[2]), ("removed", COLOURS[4]))


def row_bars(kinds: Mapping[str, Mapping[str, int]]) -> str:
    """Draws what became of the rows of each kind: unchanged, changed, added, removed, as shares of both versions' rows."""
    figure, (axis,) = panels(1, height=0.9 + 0.4 * len(kinds))
    for row, counts in enumerate(kinds.values()):
        left, total = 0.0, max(1, sum(counts[part] for part, _ in PARTS))
        for part, colour in PARTS:
            share = 100 * counts[part] / total
            axis.barh(row, share, left=left, color=colour, height=0.66, label=part if row == 0 else None)
            left += share
    axis.set_yticks(range(len(kinds)), list(kinds))
    axis.invert_yaxis()
    axis.set(xlabel="% of the rows of both versions", xlim=(0, 100))
    axis.legend(frameon=False, labelcolor=INK, fontsize=8, ncol=len(PARTS), loc="lower left", bbox_to_anchor=(0, 1))
    return svg(figure, "Rows that are unchanged, changed, added and removed, by kind")


def length_curves(quantiles: Sequence[Sequence[int]], labels: tuple[str, str]) -> str:
    """Draws the cumulative share of rows by length; KS is the largest vertical distance of the two lines.

    Args:
        quantiles: of A and of B the lengths that 1 %, 2 %, … 100 % of the rows do not exceed; empty without rows.
    """
    figure, (axis,) = panels(1, height=2.2)
    for lengths, label, colour, width in zip(quantiles, labels, PAIR, (3, 1.2), strict=True):  # A shows behind an equal B
        shares = [100 * (i + 1) / len(lengths) for i in range(len(lengths))]
        axis.step([max(1, length) for length in lengths], shares, where="post", color=colour, linewidth=width, label=label)
    axis.set(xscale="log", xlabel="characters of a row", ylabel="% of rows", ylim=(0, 102))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.set_minor_formatter("{x:,.0f}")
    axis.tick_params(which="both", colors=INK, labelsize=8)
    legend(axis)
    return svg(figure, "Cumulative share of rows by length, both versions")


def source_bars(rows: Mapping[str, Sequence[int]], labels: tuple[str, str]) -> str:
    """Draws the rows of the largest sources in both versions."""
    largest = sorted(rows.items(), key=lambda item: (-sum(item[1]), item[0]))[:MOST_SOURCES]
    figure, (axis,) = panels(1, height=0.9 + 0.4 * len(largest))
    for side, (label, colour) in enumerate(zip(labels, PAIR, strict=True)):
        places = [place + 0.38 * (side - 0.5) for place in range(len(largest))]
        axis.barh(places, [pair[side] for _, pair in largest], color=colour, height=0.36, label=label)
    axis.set_yticks(range(len(largest)), [name.replace("$", r"\$") for name, _ in largest])  # a dollar begins a formula
    axis.invert_yaxis()
    axis.set(xlabel="rows")
    legend(axis)
    return svg(figure, "Rows by source, both versions")


def word_bars(movers: Sequence[Mapping[str, Any]]) -> str:
    """Draws the words that account for most of the drift: how much more often, or less, B uses them."""
    figure, (axis,) = panels(1, height=0.7 + 0.28 * len(movers))
    changes = [mover["per_million"][1] - mover["per_million"][0] for mover in movers]
    axis.barh(range(len(movers)), changes, color=[PAIR[1] if change > 0 else COLOURS[4] for change in changes], height=0.66)
    axis.set_yticks(range(len(movers)), [mover["word"] for mover in movers])
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.invert_yaxis()
    axis.set(xlabel="occurrences per million words, B minus A")
    return svg(figure, "Words that account for most of the drift")
