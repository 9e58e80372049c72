"""A data set of the hub, through the hub's own libraries and a server that answers as it does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hub_server import COMMIT, NAME, serve_hub
from source_files import as_json_lines
from tiny_corpus import run_data, sentence

CARD = """---
configs:
- config_name: main
  data_files: [{split: train, path: main/train.jsonl}, {split: test, path: main/test.jsonl}]
---
"""
READ = """
import json, sys
from data_contracts.config import DataConfig
from data_contracts.sources import read_sources, source_digests
from lineage.errors import BadInput
for said in json.loads(sys.argv[1]):
    try:
        config = DataConfig.model_validate({"sources": [said]})
        digests = source_digests(config)
        rows = read_sources(config, digests).rows["sft"]
        print(json.dumps([digests["sources[0]"], rows[0].id, len(rows)]))
    except BadInput as error:
        print(json.dumps(str(error)))
"""


def question(seed: str) -> dict[str, str]:
    """A row whose columns are no row's."""
    return {"question": sentence(f"q {seed}", 9), "answer": sentence(f"a {seed}", 20)}


def read(address: str, home: Path, *sources: dict[str, Any]) -> list[Any]:
    """What another process, whose hub is at this address, reads of each source."""
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(sources)],
        env={
            "HF_ENDPOINT": address,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": ":".join(sys.path),
            "PATH": "",
        },
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_data_set_is_read_by_its_name_at_its_commit(tmp_path: Path) -> None:
    columns = {"messages": [{"user": "{question}"}, {"assistant": "{answer}"}]}
    said = {"kind": "hub", "path": NAME, "subset": "main", "columns": columns}
    files = {
        "README.md": CARD.encode(),
        "main/train.jsonl": as_json_lines(question(f"train {i}") for i in range(50)),
        "main/test.jsonl": as_json_lines(question(f"test {i}") for i in range(5)),
    }
    (tmp_path / "tiny-org").mkdir()
    with serve_hub(files) as address:
        train, test, none, unknown = read(
            address, tmp_path, said, said | {"split": "test"}, said | {"split": "nope"}, said | {"path": "tiny-org/other"}
        )
        assert (train, test) == ([COMMIT, "questions:1", 50], [COMMIT, "questions:1", 5])
        assert "Available splits: ['train', 'test']" in none
        assert "the hub gave nothing" in unknown

        recipe = {"name": "n", "version": "1", "data": {"sources": [said], "vocab_size": 400}}
        (tmp_path / "recipe.json").write_text(json.dumps(recipe))
        hub = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        done = run_data("--config", tmp_path / "recipe.json", "--out", tmp_path / "out", home=tmp_path / "home", **hub)
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "out" / "record.json").read_text())["inputs"]["sources[0]"] == COMMIT

        (tmp_path / NAME).mkdir()
        (shadowed,) = read(address, tmp_path, said)
        assert "is the name of a folder here, too" in shadowed
