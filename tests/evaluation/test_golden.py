"""Golden sets are verified and validated before use; every refusal names file, line and field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.golden import read_golden
from lineage.errors import BadInput, Tampered

CLOSED = {"id": "a", "kind": "closed_book", "question": "Where is dedent?", "answer": "textwrap", "group": "g", "tags": []}
CHOICE = {"id": "a", "kind": "choice", "question": "Where?", "choices": ["os", "re"], "answer": 1, "group": "g"}
FORMAT = {"id": "a", "kind": "format", "question": "Yes or no?", "pattern": "yes|no", "tags": ["format"]}
HELDOUT = {"id": "a", "kind": "heldout", "text": "A document."}
Sets = dict[str, tuple[str, list[dict[str, Any]]]]


@pytest.fixture
def write_set(tmp_path: Path, golden_writer: Callable[[Path, Sets], Path]) -> Callable[[str, list[Any]], Path]:
    return lambda kind, rows: golden_writer(tmp_path / "data", {"set": (kind, rows)})


def test_reads_every_kind(golden_data: Path) -> None:
    sets = read_golden(golden_data, ["closed_book", "choice", "heldout", "format"])
    assert [len(found.items) for found in sets.values()] == [80, 40, 32, 40]
    assert sets["choice"].items[0].expected == "os"
    assert sets["closed_book"].items[0].group == sets["closed_book"].items[1].group == "name0"


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        ("closed_book", [], "holds no items"),
        ("closed_book", [CLOSED, CLOSED], "line 2: id: 'a' is also on line 1"),
        ("closed_book", [{key: value for key, value in CLOSED.items() if key != "id"}], "line 1.id: is missing"),
        ("closed_book", [{**CLOSED, "id": ""}], "line 1.id"),
        ("closed_book", [{**CLOSED, "answer": " "}], "line 1.answer"),
        ("closed_book", [{**CLOSED, "answer": 3}], "line 1.answer"),
        ("choice", [{**CHOICE, "choices": ["os", ""]}], "line 1.choices.1"),
        ("choice", [{**CHOICE, "choices": ["os"]}], "line 1.choices"),
        ("choice", [{**CHOICE, "choices": ["os", "os"]}], "two choices are equal"),
        ("choice", [{**CHOICE, "answer": 2}], "answer 2 is no index of 2 choices"),
        ("format", [{**FORMAT, "pattern": "("}], "is no regular expression"),
        ("heldout", [{**HELDOUT, "text": ""}], "line 1.text"),
        ("riddle", [CLOSED], "sets.set.kind"),
    ],
)
def test_invalid_item(kind: str, rows: list[Any], said: str, write_set: Callable[[str, list[Any]], Path]) -> None:
    with pytest.raises(BadInput) as refused:
        read_golden(write_set(kind, rows), ["set"])
    assert said in str(refused.value)
    assert "Fix:" in str(refused.value)


def test_line_that_is_not_json(write_set: Callable[[str, list[Any]], Path], tmp_path: Path) -> None:
    import hashlib

    data = write_set("closed_book", [CLOSED])
    content = json.dumps(CLOSED).encode() + b'\n{"id": \xff\n'
    (data / "golden/set.jsonl").write_bytes(content)
    manifest = json.loads((data / "golden/manifest.json").read_text())
    manifest["sets"]["set"]["sha256"] = hashlib.sha256(content).hexdigest()
    (data / "golden/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=r"set\.jsonl: line 2: is not JSON"):
        read_golden(data, ["set"])


def test_changed_set_is_tampered(write_set: Callable[[str, list[Any]], Path]) -> None:
    data = write_set("closed_book", [CLOSED])
    path = data / "golden/set.jsonl"
    path.write_text(path.read_text().replace("textwrap", "textwarp"))
    with pytest.raises(Tampered, match="the manifest vouches for"):
        read_golden(data, ["set"])


def test_missing_set_manifest_and_file(write_set: Callable[[str, list[Any]], Path], tmp_path: Path) -> None:
    data = write_set("closed_book", [CLOSED])
    with pytest.raises(BadInput, match=r"sets\.other: is not there \(there are: set\)"):
        read_golden(data, ["other"])
    (data / "golden/set.jsonl").unlink()
    with pytest.raises(BadInput, match=r"set\.jsonl: cannot be read"):
        read_golden(data, ["set"])
    with pytest.raises(BadInput, match=r"manifest\.json: cannot be read"):
        read_golden(tmp_path / "nowhere", ["set"])
