"""The examples of docs/data.md are true: the recipe for GSM8K is short and runs, and every mapping can be read."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from tiny_corpus import run_data, sentence, write_lines

from data_contracts.config import Source
from lineage.section import parse

DOCUMENT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
RECIPE, MAPPINGS = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)


def question(seed: str) -> dict[str, str]:
    """A row in the form of GSM8K's."""
    return {"question": sentence(f"q {seed}", 12), "answer": sentence(f"a {seed}", 30) + "\n#### 7"}


def test_the_recipe_for_gsm8k_is_short_and_its_data_stage_runs(tmp_path: Path) -> None:
    assert len(RECIPE.splitlines()) < 10
    write_lines(tmp_path / "train.jsonl", [question(f"train {i}") for i in range(60)] + [question("test 0")])
    write_lines(tmp_path / "test.jsonl", [question(f"test {i}") for i in range(8)])
    recipe: dict[str, Any] = yaml.safe_load(RECIPE)
    recipe["data"]["vocab_size"] = 400  # a small corpus does not fill more
    (tmp_path / "gsm8k.yaml").write_text(yaml.safe_dump(recipe))
    done = run_data("--config", tmp_path / "gsm8k.yaml", "--out", tmp_path / "out", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    counts = json.loads((tmp_path / "out" / "funnel.json").read_text())["kinds"]["sft"]
    assert (counts["rows_in"], counts["kept"], counts["contaminated"]) == (61, 60, 1)
    assert len((tmp_path / "out" / "golden" / "heldout.jsonl").read_text().splitlines()) == 8


def test_every_mapping_can_be_read() -> None:
    mappings = [yaml.safe_load(line) for line in MAPPINGS.splitlines()]
    assert len(mappings) == 4
    for mapping in mappings:
        parse(Source, {"path": "rows.jsonl"} | mapping, "docs/data.md")
