"""Small SVG charts for the gate's report. Colours are CSS classes of report.html, so that they follow light and dark."""

from collections.abc import Mapping
from html import escape

from evaluation.gate import Check
from evaluation.scores import Score

WIDTH, ROW, LABEL, FIGURES = 760, 30, 220, 190
PLOT = WIDTH - LABEL - FIGURES  # the drawing between the labels on the left and the figures on the right


def forest(checks: list[Check]) -> str:
    """Draws each metric's improvement over the champion with its bounds; left of the dashed margin is not allowed.

    Metrics have different units, so each row has its own scale, symmetric around "no difference".
    """
    rows = []
    for number, check in enumerate(checks):
        middle = number * ROW + ROW / 2
        bounds = [bound for bound in (check.low, check.high, check.threshold) if bound is not None]
        reach = 1.15 * max(*map(abs, bounds), 1e-9)
        rows.append(_text(0, middle, check.metric))
        rows.append(_line(_at(check.threshold, -reach, reach), middle, None, "margin"))
        if check.value is None:
            rows.append(_text(WIDTH - FIGURES + 12, middle, "not a number", "bad"))
            continue
        low, high = (check.value if bound is None else bound for bound in (check.low, check.high))
        rows.append(_interval(check.value, low, high, -reach, reach, middle, check.outcome))
        rows.append(_text(WIDTH - FIGURES + 12, middle, f"{check.value:+.3f} [{low:+.3f}, {high:+.3f}]"))
    height = len(checks) * ROW
    rows.insert(0, _line(LABEL + PLOT / 2, height / 2, height, "zero"))
    caption = [_text(LABEL, height + 14, "← worse", "quiet"), _text(LABEL + PLOT, height + 14, "better →", "quiet end")]
    return _svg([*rows, *caption], height + 26)


def bars(scores: Mapping[str, Score], floor: float | None) -> str:
    """Draws one metric of several models as bars with intervals, and the policy's floor or ceiling."""
    known = [bound for score in scores.values() for bound in (score.value, score.high) if bound is not None]
    top = 1.05 * max([*known, floor or 0.0, 1e-9])
    height = len(scores) * ROW
    rows = []
    for number, (label, score) in enumerate(scores.items()):
        middle = number * ROW + ROW / 2
        rows.append(_text(0, middle, label))
        if score.value is None:
            rows.append(_text(LABEL, middle, "not a number", "bad"))
            continue
        width = _at(score.value, 0, top) - LABEL
        rows.append(f'<rect class="bar {label}" x="{LABEL}" y="{middle - 8:.1f}" width="{width:.1f}" height="16" rx="2"/>')
        figures = f"{score.value:.3f}"
        if score.low is not None and score.high is not None:
            rows.append(_interval(score.value, score.low, score.high, 0, top, middle, ""))
            figures += f" [{score.low:.3f}, {score.high:.3f}]"
        rows.append(_text(WIDTH - FIGURES + 12, middle, figures))
    if floor is not None:
        rows.append(_line(_at(floor, 0, top), height / 2, height, "margin"))
    return _svg(rows, height)


def _at(value: float, low: float, high: float) -> float:
    """Returns the x of a value on a scale from `low` to `high`."""
    return LABEL + PLOT * (value - low) / (high - low)


def _interval(value: float, low: float, high: float, left: float, right: float, middle: float, kind: str) -> str:
    start, end, x = (_at(number, left, right) for number in (low, high, value))
    return (
        f'<line class="interval {kind}" x1="{start:.1f}" x2="{end:.1f}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="point {kind}" cx="{x:.1f}" cy="{middle}" r="4"/>'
    )


def _line(x: float, middle: float, height: float | None, kind: str) -> str:
    half = (height or ROW - 6) / 2
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{middle - half:.1f}" y2="{middle + half:.1f}"/>'


def _text(x: float, middle: float, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x}" y="{middle}" dominant-baseline="central">{escape(text)}</text>'


def _svg(parts: list[str], height: float) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img">{"".join(parts)}</svg>'
