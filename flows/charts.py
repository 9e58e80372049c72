"""Charts as inline SVG, drawn by matplotlib: readable on a dark and on a light page, with no file beside the page."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Histories = Mapping[str, Sequence[Mapping[str, Any]]]  # rows of `metrics.jsonl` by stage
INK = "#808691"  # a grey that reads on white and on near-black
VALIDATION = "#c9a227"
COLOURS = ("#4c8bf5", "#e8873a", "#3aa676", "#b565d8", "#d6544f", "#8a8f98")
# A model keeps its colour from chart to chart; the candidate is the blue one.
ROLE_COLOURS = {"candidate": 0, "sft": 1, "dpo": 2, "kto": 2, "pretrain": 3, "champion": 4, "untrained": 5, "base": 5}


def loss_curves(histories: Histories) -> str:
    """Draws one panel per training stage: loss by step, validation loss as dots, restarts as dashed lines."""
    figure, axes = panels(len(histories), height=2.6)
    for axis, (title, rows) in zip(axes, histories.items(), strict=True):
        _line(axis, rows, "loss", COLOURS[0], "training")
        _line(axis, rows, "validation_loss", COLOURS[1], "validation", marker="o", markersize=4)
        _mark_restarts(axis, rows)
        axis.set(title=title, xlabel="step", ylabel="loss")
        legend(axis)
    return svg(figure, "Loss by training step, one panel per stage")


def rate_curves(histories: Histories) -> str:
    """Draws one panel per training stage: the learning rate by step, restarts as dashed lines."""
    figure, axes = panels(len(histories), height=1.8)
    for axis, (title, rows) in zip(axes, histories.items(), strict=True):
        _line(axis, rows, "learning_rate", COLOURS[3], "learning rate")
        _mark_restarts(axis, rows)
        axis.set(title=title, xlabel="step", ylabel="learning rate")
        axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
        axis.yaxis.get_offset_text().set_color(INK)
    return svg(figure, "Learning rate by training step, one panel per stage")


def speed_curves(histories: Histories) -> str:
    """Draws one panel per training stage: useful tokens per second and, on the right, MFU in %."""
    figure, axes = panels(len(histories), height=2.2)
    for axis, (title, rows) in zip(axes, histories.items(), strict=True):
        _line(axis, rows, "tokens_per_second", COLOURS[0], "tokens/s")
        axis.set(title=title, xlabel="step", ylabel="tokens/s")
        axis.set_ylim(bottom=0)
        right = axis.twinx()
        _line(right, [{**row, "mfu": 100 * row["mfu"]} for row in rows if "mfu" in row], "mfu", COLOURS[1], "MFU")
        right.set_ylim(0, 100)
        right.set_ylabel("MFU, %", color=COLOURS[1])
        right.tick_params(colors=INK)
        right.spines[:].set_visible(False)
        axis.yaxis.label.set_color(COLOURS[0])
    return svg(figure, "Tokens per second and MFU by training step, one panel per stage")


def time_bars(histories: Histories) -> str:
    """Draws one bar per training stage: where the seconds of a mean step went."""
    figure, (axis,) = panels(1, height=0.9 + 0.4 * len(histories))
    parts = ("data", "forward", "backward", "optimizer", "checkpoint", "validation", "other")
    for place, rows in enumerate(histories.values()):
        left = 0.0
        for part, colour in zip(parts, (*COLOURS[:5], VALIDATION, INK), strict=True):
            values = [row[f"{part}_seconds"] for row in rows if f"{part}_seconds" in row]
            mean = sum(values) / max(1, len(values))
            axis.barh(place, mean, left=left, color=colour, height=0.66, label=part if place == 0 else None)
            left += mean
    axis.set_yticks(range(len(histories)), list(histories))
    axis.invert_yaxis()
    axis.set(xlabel="seconds per step")
    axis.legend(frameon=False, labelcolor=INK, fontsize=8, ncol=len(parts), loc="lower left", bbox_to_anchor=(0, 1))
    return svg(figure, "Where the time of a step goes, one bar per stage")


def score_bars(metric: str, direction: str, scores: Mapping[str, Mapping[str, float]]) -> str:
    """Draws one metric as horizontal bars with confidence intervals.

    Args:
        direction: which way is better, `higher` or `lower`.
        scores: `value`, `low` and `high` by model label, drawn from top to bottom.
    """
    figure, (axis,) = panels(1, height=0.6 + 0.34 * len(scores))
    labels = list(scores)
    values = [scores[label]["value"] for label in labels]
    below = [max(0.0, score["value"] - score["low"]) for score in scores.values()]
    above = [max(0.0, score["high"] - score["value"]) for score in scores.values()]
    colours = [COLOURS[ROLE_COLOURS.get(label, 5)] for label in labels]
    axis.barh(labels, values, xerr=[below, above], color=colours, ecolor=INK, capsize=3, height=0.66)
    longest = max([*values, 1e-9])
    for row, value in enumerate(values):
        inside = "white" if value > longest / 10 else INK  # a bar that is too short for its label shows the page behind it
        axis.text(0.005, row, f" {value:.3g}", va="bottom", color=inside, fontsize=8, transform=axis.get_yaxis_transform())
    axis.invert_yaxis()
    axis.set_title(f"{metric} ({direction} is better)")
    return svg(figure, f"{metric} by model with confidence intervals")


def funnel_bars(kinds: Mapping[str, Mapping[str, int]]) -> str:
    """Draws where the rows of each kind went: kept, quarantined, duplicates, contaminated, erased, as shares of rows in."""
    parts = ("kept", "quarantined", "duplicates", "contaminated", "erased")
    figure, (axis,) = panels(1, height=0.9 + 0.4 * len(kinds))
    for row, counts in enumerate(kinds.values()):
        left = 0.0
        for part, colour in zip(parts, (COLOURS[2], COLOURS[4], COLOURS[5], COLOURS[3], INK), strict=True):
            share = 100 * counts.get(part, 0) / max(1, counts["rows_in"])
            axis.barh(row, share, left=left, color=colour, height=0.66, label=part if row == 0 else None)
            left += share
    axis.set_yticks(range(len(kinds)), [f"{kind} ({counts['rows_in']:,} in)" for kind, counts in kinds.items()])
    axis.invert_yaxis()
    axis.set(xlabel="% of rows in", xlim=(0, 100))
    axis.legend(frameon=False, labelcolor=INK, fontsize=8, ncol=len(parts), loc="lower left", bbox_to_anchor=(0, 1))
    return svg(figure, "Data funnel: where the rows of each kind went")


def canary_timeline(title: str, events: Sequence[Mapping[str, Any]]) -> str:
    """Draws a canary: its weight over time, and the share of bad answers of both arms at each look.

    Args:
        events: of the canary's timeline, in order: `event` and `seconds`; a `step` has its `weight` (%), a `look` has
            `canary_bad` and `stable_bad` (%, None where unknown).
    """
    figure, (axis,) = panels(1, height=2.4)
    ended = {"promoted": 100.0, "rolled_back": 0.0}
    weights = [(0.0, 0.0)]
    for event in events:
        weight = event.get("weight") if event["event"] == "step" else ended.get(event["event"])
        if weight is not None:
            weights.append((event["seconds"], weight))
    weights.append((weights[-1][0] + 1.0, weights[-1][1]))  # so that the last step has a length
    axis.step(*zip(*weights, strict=True), where="post", color=COLOURS[0], label="weight of the canary")
    looks = [event for event in events if event["event"] == "look"]
    for arm, colour in (("canary_bad", COLOURS[4]), ("stable_bad", COLOURS[2])):
        if points := [(look["seconds"], look[arm]) for look in looks if look.get(arm) is not None]:
            axis.plot(
                *zip(*points, strict=True), "o--", color=colour, markersize=4, label=arm.replace("_bad", ": bad answers")
            )
    axis.set(title=title, xlabel="seconds", ylabel="%", ylim=(-4, 104))
    legend(axis)
    return svg(figure, f"Canary timeline of {title}")


def panels(count: int, height: float) -> "tuple[Figure, list[Axes]]":
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10, "svg.hashsalt": "goldpath"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, max(1, count), figsize=(8.6, height), squeeze=False, layout="constrained")
    for axis in axes[0]:
        axis.patch.set_alpha(0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(INK)
        axis.tick_params(colors=INK)
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
            text.set_color(INK)
    return figure, list(axes[0])


def _line(axis: "Axes", rows: Sequence[Mapping[str, Any]], key: str, colour: str, label: str, **style: Any) -> None:
    """Draws a figure by step over the rows that have it."""
    if points := [(row["step"], row[key]) for row in rows if row.get(key) is not None]:
        axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, label=label, **style)


def _mark_restarts(axis: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws a dashed line where a run that was ended went on: at the last step that it had kept."""
    before, step, label = 0, 0, "restart"
    for row in rows:
        if row.get("restarts", before) > before:
            axis.axvline(step, color=COLOURS[4], linestyle="--", linewidth=1, label=label)
            before, label = row["restarts"], "_"
        step = row["step"]


def legend(axis: "Axes") -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, labelcolor=INK, fontsize=8)


def svg(figure: "Figure", description: str) -> str:
    from matplotlib import pyplot

    text = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the text stays text, and the browser has fonts for it
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
