"""Reading: every kind of bad line is named or quarantined, and the configuration refuses what makes no sense."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import chat, write_lines

from data_contracts.config import KINDS, DataConfig
from data_contracts.job import load_data_job, tokenizer_folder
from data_contracts.quarantine import Funnel, Reason
from data_contracts.rows import Document
from data_contracts.sources import read_sources, source_digests
from data_contracts.split import PARTS
from lineage.errors import BadInput, GoldpathError
from lineage.job import Job
from lineage.section import parse

NO_ROWS = {(kind, part): 0 for kind in KINDS for part in PARTS}
GOOD = json.dumps({"text": "A good row."}).encode()
BAD = {
    b"{": "is not JSON",
    b'{"text": "caf\xe9"}': "byte 13 is not UTF-8",
    b"[1, 2]": "is list, not an object",
    b'{"txt": "x"}': "unknown key",
    b'{"id": "x"}': "is missing",
    b'{"text": 5}': "should be a valid string",
    b"[" * 100_000: "nested too deeply",
    b'{"n": ' + b"1" * 5000 + b"}": "holds a number that is too long to read",
}


def config(path: Path, rows: str = "pretrain", **settings: Any) -> DataConfig:
    """A configuration with one JSONL source."""
    source = {"kind": "jsonl", "path": str(path), "rows": rows}
    return parse(DataConfig, {"sources": [source], **settings}, "test")


@pytest.mark.parametrize(("line", "said"), BAD.items(), ids=range(len(BAD)))
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([GOOD, b"", line, GOOD]))
    with pytest.raises(BadInput) as caught:
        read_sources(config(path))
    assert caught.value.where == str(path)
    assert caught.value.field.startswith("line 3")
    assert said in str(caught.value)
    assert "on_bad_line: quarantine" in caught.value.fix


def test_bad_lines_are_quarantined_on_demand_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([GOOD, *BAD, GOOD]))
    corpus = read_sources(config(path, on_bad_line="quarantine"))
    assert [row.id for row in corpus.rows["pretrain"]] == ["rows:1", f"rows:{len(BAD) + 2}"]
    assert [line.id for line in corpus.bad_lines] == [f"rows:{i}" for i in range(2, len(BAD) + 2)]
    funnel = Funnel()
    funnel.enter("pretrain", 2)
    for line in corpus.bad_lines:
        funnel.remove_bad_line(line)
    counts = funnel.counts(NO_ROWS | {("pretrain", "train"): 2})
    assert counts["pretrain"]["rows_in"] == len(BAD) + 2
    assert counts["pretrain"]["quarantined"] == len(BAD)


def test_a_lost_row_breaks_the_law() -> None:
    funnel = Funnel()
    funnel.enter("sft", 3)
    rows = [Document(id="a", text="x", source="s")]
    assert funnel.remove("duplicates", "test", rows, {0: Reason("r", "t")}) == []
    with pytest.raises(GoldpathError, match="rows went in"):
        funnel.counts(NO_ROWS)


def test_golden_sets_take_the_name_of_their_kind_or_their_own(tmp_path: Path) -> None:
    item = {"id": "q", "kind": "closed_book", "question": "Where?", "answer": "here"}
    path = write_lines(tmp_path / "golden.jsonl", [item])
    source = {"kind": "jsonl", "path": str(path), "rows": "golden"}
    both = parse(DataConfig, {"sources": [source, source | {"golden_set": "probe"}]}, "test")
    assert sorted(read_sources(both).golden) == ["closed_book", "probe"]
    with pytest.raises(BadInput, match="two items have this id"):
        read_sources(parse(DataConfig, {"sources": [source, source]}, "test"))


@pytest.mark.parametrize(
    "item",
    [
        {"kind": "choice", "question": "?", "choices": ["a", "a", "b", "c"], "answer": 0},
        {"kind": "choice", "question": "?", "choices": ["a", "", "b", "c"], "answer": 0},
        {"kind": "choice", "question": "?", "choices": ["a", "b", "c", "d"], "answer": 4},
        {"kind": "format", "question": "?", "pattern": "("},
        {"kind": "riddle", "question": "?"},
    ],
)
def test_golden_items_that_would_break_an_evaluation_are_refused(tmp_path: Path, item: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="line 1"):
        read_sources(config(write_lines(tmp_path / "g.jsonl", [item]), "golden", on_bad_line="quarantine"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"kind": "jsonl", "path": "x"}, "needs `path` and `rows`"),
        ({"kind": "stdlib", "rows": "sft"}, "takes no `path`"),
        ({"kind": "jsonl", "path": "x", "rows": "sft", "golden_set": "probe"}, "only golden rows"),
        ({"kind": "csv"}, "stdlib"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(source: dict[str, str], said: str) -> None:
    with pytest.raises(BadInput, match="sources") as caught:
        parse(DataConfig, {"sources": [source]}, "recipe.yaml")
    assert said in str(caught.value)


def test_digests_follow_the_bytes_of_every_input(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"messages": chat("a", "b")}])
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    settings = config(path, "sft", tokenizer=str(tmp_path / "tokenizer"))
    before = source_digests(settings)
    assert sorted(before) == ["data.tokenizer/tokenizer.json", "sources[0]"]
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{ }")
    assert {name for name, sha in source_digests(settings).items() if sha != before[name]} == {
        "data.tokenizer/tokenizer.json"
    }
    path.unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        source_digests(settings)


def test_paths_are_relative_to_the_file_that_they_are_written_in(tmp_path: Path) -> None:
    recipe = tmp_path / "recipes" / "mine.yaml"
    recipe.parent.mkdir()
    recipe.write_text(
        "name: n\nversion: 1.0\ndata: {sources: [{kind: jsonl, path: ../rows.jsonl, rows: sft}]}\nmodel: {}\n"
    )
    job, settings = load_data_job(recipe)
    assert settings.sources[0].path == str(tmp_path / "rows.jsonl")
    assert (job.name, job.version, job.stage) == ("n", "1.0", "data")
    assert job.config == settings.model_dump(mode="json")


def test_a_base_model_brings_its_tokenizer(tmp_path: Path) -> None:
    stage, plain = tmp_path / "sft", tmp_path / "plain"
    (stage / "bundle").mkdir(parents=True)
    (stage / "bundle" / "manifest.json").write_text("{}")
    job = Job(name="n", version="1", stage="data", config={})
    assert tokenizer_folder(job) is None
    for parent, expected in ((stage, stage / "bundle"), (stage / "bundle", stage / "bundle"), (plain, plain)):
        assert tokenizer_folder(job.model_copy(update={"parents": {"tokenizer": parent}})) == expected
