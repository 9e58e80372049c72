"""Great Expectations' Data Docs as plain files: a page per row kind that opens offline, equal for equal data.

The pages are rendered by the library. Then its scripts, style sheets and images from eight foreign servers are taken out (a
page about data must not report to others who looks at it), with the buttons that need them, random element ids and times.
"""

import html
import re
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from lineage.files import write_atomic, write_json

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult

_FOREIGN = re.compile(r"<script\b.*?</script>|<link\b[^>]*>|<img\b[^>]*>", re.DOTALL | re.IGNORECASE)
_RANDOM_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"20\d\d-?\d\d-?\d\dT\d\d:?\d\d:?\d\d(?:\.\d+)?(?:Z|\+00:00)?|[A-Z][a-z]{2} \d\d, 20\d\d \d\d:\d\d[^<]*")
_STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c2b33; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; }
td, th { border-bottom: 1px solid #d5dde2; padding: .35rem .6rem; text-align: left; vertical-align: top; }
.fa-check-circle::before { content: "✓"; color: #11845b; } .fa-times::before { content: "✗"; color: #c0362c; }
footer, .sticky > .card:first-of-type { display: none; }
.badge { background: #eef2f4; border-radius: .3rem; padding: .1rem .4rem; }
</style></head>"""


def write_data_docs(folder: Path, results: Mapping[str, "ExpectationSuiteValidationResult"]) -> None:
    """Writes `index.html` and a page per row kind."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    lines = []
    for kind, result in results.items():
        page = DefaultJinjaPageView().render(ValidationResultsPageRenderer(run_info_at_end=True).render(result))
        write_atomic(folder / f"{kind}.html", make_plain(page))
        broken = [outcome.expectation_config.meta["rule"] for outcome in result.results if not outcome.success]
        verdict = f"broken: {', '.join(broken)}; see quarantine.jsonl" if broken else "every row keeps every rule"
        rules = len(result.results)
        lines.append(f'<tr><td><a href="{kind}.html">{kind}</a></td><td>{rules}</td><td>{html.escape(verdict)}</td></tr>')
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Data Docs</title>{_STYLE}'
    table = "<table><tr><th>rows</th><th>rules</th><th>outcome</th></tr>" + "\n".join(lines) + "</table>"
    write_atomic(folder / "index.html", f"{head}\n<body><h1>Data contracts</h1>\n{table}</body></html>\n")


def write_outcomes(path: Path, results: Mapping[str, "ExpectationSuiteValidationResult"]) -> None:
    """Writes by row kind and rule how many rows were checked and how many broke it, so that versions can be compared."""
    outcomes: dict[str, dict[str, dict[str, int]]] = {}
    for kind, result in results.items():
        for outcome in result.results:
            broken = len(outcome.result.get("unexpected_index_list") or [])
            counts = {"checked": int(outcome.result.get("element_count", 0)), "broken": broken}
            outcomes.setdefault(kind, {})[outcome.expectation_config.meta["rule"]] = counts
    write_json(path, outcomes)


def make_plain(page: str) -> str:
    """Returns a rendered page without foreign assets, random ids and times."""
    names: dict[str, str] = {}
    numbers: Iterator[int] = count(1)

    def name(match: re.Match[str]) -> str:
        return names.setdefault(match[0], f"part-{next(numbers)}")

    page = _FOREIGN.sub("", page).replace("</head>", _STYLE, 1).replace("../../../../index.html", "index.html")
    return _TIME.sub("", _RANDOM_ID.sub(name, page))
