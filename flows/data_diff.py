"""What `goldpath data diff` shows: two data versions side by side, as a table, as JSON, and as a page with pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_contracts.diff import diff_versions
from flows.data_charts import length_curves, row_bars, source_bars, word_bars
from flows.data_versions import open_version
from flows.views import table
from lineage.files import write_atomic

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flows.settings import Settings

TEMPLATE = Path(__file__).with_name("data_diff.html")
LENGTHS = {"characters": "characters", "median": "median length", "percentile_95": "95 % length", "longest": "longest"}
FUNNEL = ("rows_in", "kept", "train", "validation", "quarantined", "duplicates", "contaminated", "erased")


def diff_view(settings: "Settings", a: str, b: str, page: Path | None) -> dict[str, Any]:
    """Compares two data versions, each NAME@VERSION or a folder.

    Args:
        page: where to write the comparison as HTML.

    Raises:
        BadInput: one of them is no data version.
        Tampered: one of them is not what was versioned.
    """
    with open_version(settings, a) as folder_a, open_version(settings, b) as folder_b:
        view = {"a": a, "b": b, **diff_versions(folder_a, folder_b)}
    if page:
        write_atomic(page, render_page(view))
        view["page"] = str(page)
    return view


def diff_table(view: dict[str, Any]) -> "RenderableType":
    """Renders a comparison for people: one table per kind of rows, then rules and golden sets that differ."""
    from rich.console import Group

    if view["identical"]:
        return f"{view['a']} and {view['b']} hold the very same files."
    columns = ["", view["a"], view["b"], ""]
    tables = [table(kind, columns, [list(line) for line in kind_lines(found)]) for kind, found in view["kinds"].items()]
    if rules := list(rule_lines(view)):
        tables.append(table("Rows that broke a rule", columns, [list(line) for line in rules]))
    if golden := golden_lines(view):
        tables.append(table("Golden sets", columns, [list(line) for line in golden]))
    notes = [] if view["same_tokenizer"] else ["The tokenizers differ: tokens of the two do not compare."]
    if view.get("page"):
        notes.append(f"As a page: {view['page']}")
    return Group(*tables, *notes)


def render_page(view: dict[str, Any]) -> str:
    """Returns the comparison as a self-contained HTML page."""
    from jinja2 import Environment

    kinds = [
        {
            "name": kind,
            "lines": list(kind_lines(found)),
            "samples": {name: ids for name, ids in found["samples"].items() if ids},
            "lengths": length_curves(found["lengths"]["quantiles"], (view["a"], view["b"])),
            "sources": source_bars(found["sources"]["rows"], (view["a"], view["b"])),
            "words": word_bars(found["vocabulary"]["movers"]) if found["vocabulary"]["movers"] else "",
        }
        for kind, found in view["kinds"].items()
    ]
    page = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    rows = {kind: found["rows"] for kind, found in view["kinds"].items()}
    return page.render(view=view, kinds=kinds, rows=row_bars(rows), rules=list(rule_lines(view)), golden=golden_lines(view))


def kind_lines(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yields what is compared of one kind: the figure, its value in A and in B, and what that means."""
    for name in FUNNEL:
        if name in found["funnel"]:
            yield _line(name.replace("_", " "), found["funnel"][name])
    changes = found["rows"]
    said = ", ".join(f"{changes[name]:,} {name}" for name in ("unchanged", "changed", "added", "removed"))
    yield "rows", "", "", said + (f"; {changes['renamed']:,} have another id" if changes["renamed"] else "")
    if changes["validated_on_trained"]:
        yield "leakage", "", "", f"{changes['validated_on_trained']:,} validation rows of B are training rows of A"
    for name, pair in found["tokens"].items():
        yield _line(name.replace("_", " "), pair)
    lengths = found["lengths"]
    for name in LENGTHS:
        yield _line(LENGTHS[name], lengths[name])
    if lengths["ks"] is not None:
        yield "lengths", "", "", f"KS {lengths['ks']:.3f}, p {lengths['p']:.2g}"
    vocabulary = found["vocabulary"]
    if vocabulary["psi"] is not None:
        drift = f"PSI {vocabulary['psi']:.3f}: {vocabulary['drift']} (chance alone {vocabulary['noise']:.3f})"
        yield "words", "", "", f"{drift}; {100 * vocabulary['unseen']:.1f} % new"
    if (psi := found["sources"]["psi"]) is not None and len(found["sources"]["rows"]) > 1:
        yield "sources", "", "", f"PSI {psi:.3f} over {len(found['sources']['rows'])} sources"


def rule_lines(view: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yields every rule that a row broke in either version: those of the contracts by kind, then why rows were left out."""
    for kind, rules in view["contracts"].items():
        for rule, counts in rules.items():
            if any(counts["broken"]):
                shares = [broken / max(1, of) for broken, of in zip(counts["broken"], counts["checked"], strict=True)]
                label, a, b, _ = _line(f"{kind}: {rule}", counts["broken"])
                yield label, a, b, f"{100 * (shares[1] - shares[0]):+.2f} % of the checked rows"
    for rule, pair in view["rules"].items():
        yield _line(f"left out by {rule}", pair)


def golden_lines(view: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns the golden sets with their items, and whether they are the same."""
    return [
        (name, f"{found['items'][0]:,}", f"{found['items'][1]:,}", "the same" if found["same"] else "differs")
        for name, found in view["golden"].items()
    ]


def _line(label: str, pair: list[int]) -> tuple[str, str, str, str]:
    a, b = pair
    return label, f"{a:,}", f"{b:,}", f"{b - a:+,}" if b != a else ""
