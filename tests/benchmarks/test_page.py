"""The page of figures: a section is replaced, the others stay as they are."""

import json

from benchmarks.__main__ import HEADING, figures_in, section, with_section

FIGURE = {"figure": "speed", "value": 3.0, "unit": "tokens/s", "target": ">= 2", "met": True, "peer": "GPU", "runs": 2}


def test_a_section_takes_the_place_of_its_older_self() -> None:
    page = f"{HEADING}\n## gpu\n\nold\n\n## plan\n\n| a |\n"
    text = section(figures_in(f"{json.dumps(FIGURE)}\nnoise\n"), "Printed elsewhere.")
    changed = with_section(page, "gpu", text)
    assert "old" not in changed
    assert "## gpu\n\nPrinted elsewhere.\n\n| figure |" in changed
    assert "| speed | 3 tokens/s | >= 2 | met | GPU | 2 |" in changed
    assert changed.endswith("\n## plan\n\n| a |\n")
    assert with_section(changed, "gpu", text) == changed


def test_a_new_section_stands_in_the_order_of_names() -> None:
    page = with_section(with_section("", "plan", "p"), "gpu", "g")
    assert page == f"{HEADING}\n## gpu\n\ng\n\n## plan\n\np\n"


def test_a_miss_and_a_break_are_said() -> None:
    text = section([FIGURE | {"met": False}], "Measured.", code=1)
    assert "| **missed** |" in text
    assert "broke** (exit code 1)" in text
