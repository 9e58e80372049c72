"""The data card: true, portable, part of the record, and enough to make the version again."""

import json
import re
from pathlib import Path

import pytest
import yaml
from tiny_corpus import run_data, write_corpus

from data_contracts.card import CARD, portable_section
from data_contracts.config import DataConfig
from lineage.files import sha256_file
from lineage.record import read_record
from lineage.section import parse


@pytest.fixture
def card(data_run: Path) -> str:
    return (data_run / "out" / CARD).read_text()


def test_it_is_an_output_and_says_what_is_on_disk(data_run: Path, card: str) -> None:
    out = data_run / "out"
    assert read_record(out).outputs[CARD].sha256 == sha256_file(out / CARD)
    for kind, counts in json.loads((out / "funnel.json").read_text())["kinds"].items():
        assert f"| {kind} | {counts['rows_in']} | {counts['kept']} | {counts['train']} |" in card
        assert sha256_file(data_run / f"{kind}.jsonl") in card
    for entry in json.loads((out / "golden" / "manifest.json").read_text())["sets"].values():
        assert entry["sha256"] in card
    assert sha256_file(out / "tokenizer" / "tokenizer.json") in card
    assert "found: 0 by phrase, 0 by ngram" in card
    assert "| expectations | roles | 1 |" in card


def test_it_names_no_machine_model_or_time(data_run: Path, card: str) -> None:
    assert str(data_run) not in card
    assert "tiny" not in card
    assert not re.search(r"20\d\d-\d\d", card)


def test_its_section_makes_the_version_again(data_run: Path, card: str, tmp_path: Path) -> None:
    section = re.search(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert section
    write_corpus(tmp_path)
    recipe = {"name": "other", "version": "7", **yaml.safe_load(section[1])}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = run_data("--config", tmp_path / "recipe.yaml", "--out", tmp_path / "out", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "out").stamp.data_version == read_record(data_run / "out").stamp.data_version


def test_contract_outcomes_are_counted_by_rule(data_run: Path) -> None:
    outcomes = json.loads((data_run / "out" / "contracts.json").read_text())
    assert outcomes["sft"]["roles"]["broken"] == 1
    assert outcomes["preference"]["no_preference"] == {"checked": 11, "broken": 1}


def test_paths_are_relative_to_what_they_share(tmp_path: Path) -> None:
    sources = [{"kind": "jsonl", "path": f"/data/{name}", "rows": "sft"} for name in ("a/x.jsonl", "b/x.jsonl")]
    config = parse(DataConfig, {"sources": sources, "tokenizer": "/data/tokenizer"}, "test")
    section = portable_section(config)
    assert [source["path"] for source in section["sources"]] == ["a/x.jsonl", "b/x.jsonl"]
    assert section["tokenizer"] == "tokenizer"


def test_licences_stand_in_the_header_and_beside_their_source(tmp_path: Path) -> None:
    recipe = write_corpus(tmp_path)
    told = json.loads(recipe.read_text())
    told["data"]["sources"][0]["license"] = "cc-by-4.0"
    recipe.write_text(json.dumps(told))
    done = run_data("--config", recipe, "--out", tmp_path / "out", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out" / CARD).read_text()
    assert yaml.safe_load(card.split("---")[1]) == {"license": ["cc-by-4.0"]}
    assert "| pretrain.jsonl | pretrain | cc-by-4.0 |" in card
