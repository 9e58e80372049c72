"""Every form of file gives the same records; what is broken is one error or one fault, and is never held whole."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from source_files import PACKINGS, ROWS, as_csv, as_json_lines, faults, pack, records, values, write_parquet

from data_contracts.sources import json_records, streams
from data_contracts.sources import records as limits
from lineage.errors import BadInput

WRITTEN = {
    "rows.jsonl": as_json_lines(ROWS),
    "rows.ndjson": b"\xef\xbb\xbf" + as_json_lines(ROWS).replace(b"\n", b"\r\n\n"),
    "array.json": json.dumps(ROWS, indent=1).encode(),
    "frame.json": json.dumps({"version": "1", "numbers": [1, 2], "data": ROWS}).encode(),
    "lines.json": as_json_lines(ROWS),
    "pretty.json": b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS),
    "rows.csv": as_csv(ROWS),
    "rows.tsv": b"\xef\xbb\xbf" + as_csv(ROWS, "\t"),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", WRITTEN)
def test_every_form_gives_the_same_records(tmp_path: Path, name: str, packing: str) -> None:
    path = tmp_path / (name + packing)
    path.write_bytes(pack(WRITTEN[name], packing))
    assert values(path) == ROWS


def test_parquet_gives_them_too_in_any_row_groups(tmp_path: Path) -> None:
    rows = [{**row, "id": i, "absent": None} for i, row in enumerate(ROWS * 100)]
    path = write_parquet(tmp_path / "rows.parquet", rows, row_group_size=33)
    assert values(path) == [{**row, "id": i} for i, row in enumerate(ROWS * 100)]


def test_parquet_keeps_nested_turns_and_tool_calls(tmp_path: Path) -> None:
    call = {"id": None, "type": "function", "function": {"name": "lamp", "arguments": '{"on": true, "at": null}'}}
    turns = [
        {"role": "user", "content": "On.", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    (value,) = values(write_parquet(tmp_path / "calls.parquet", [{"messages": turns}]))
    assert value["messages"][0] == {"role": "user", "content": "On."}
    assert value["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"on": true, "at": null}'


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", [(1, "One\nmore.\n\n \nTwo.\r\n\nThree.")]),
        ("paragraph", [(1, "One\nmore.\n"), (5, "Two.\r\n"), (7, "Three.")]),
        ("line", [(1, "One"), (2, "more."), (5, "Two."), (7, "Three.")]),
    ],
)
def test_plain_text_is_divided_as_told(tmp_path: Path, documents: str, expected: list[tuple[int, str]]) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"One\nmore.\n\n \nTwo.\r\n\nThree.")
    assert [(one.number, one.value["text"]) for one in records(path, documents=documents)] == expected  # type: ignore[union-attr]


def test_one_object_is_one_row_or_a_frame_around_rows(tmp_path: Path) -> None:
    row = {"id": "a", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    path = tmp_path / "one.json"
    path.write_text(json.dumps(row, indent=2))
    assert values(path) == [row]
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(BadInput, match="holds two lists of objects, `train` and `test`"):
        records(path)


def test_a_frame_that_is_too_large_to_be_held_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_records, "MAX_RECORD", 2000)
    monkeypatch.setattr(json_records, "CHUNK", 64)
    path, rows = tmp_path / "frame.json", ROWS * 50
    path.write_text(json.dumps({"version": [1, 2], "rows": rows, "last": {"a": [1]}}, indent=1))
    assert values(path) == rows
    path.write_text(json.dumps([*ROWS, {"text": "x" * 5000}]))
    with pytest.raises(BadInput, match="record 8 is longer than"):
        records(path)
    path.write_text(json.dumps({"rows": ROWS * 20, "more": ROWS}))
    with pytest.raises(BadInput, match="two lists of objects, `rows` and `more`"):
        records(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.json", b'[{"a": 1}, {"a": ', "is not JSON"),
        ("rows.json", b'[{"a": 1} {"a": 2}]', "`,` is expected, not `{`"),
        ("rows.json", b'[{"a": 1}', "`,` is expected, not the end"),
        ("rows.json", b'[{"a": 1}] 5', "something follows the last of 1 records"),
        ("rows.json", b'[{"a": "\xff"}]', "is not UTF-8"),
        ("rows.json", b"[" * 100_000, "is nested too deeply"),
        ("rows.json", b"5", "something follows the last of 0 records"),
        ("rows.jsonl", b"\xff\xfe{\x00}\x00", "is UTF-16"),
        ("rows.csv", b"a,a\n1,2\n", "two columns are called `a`"),
        ("rows.csv", b"a,\n1,2\n", "a column has no name"),
        ("rows.csv", b'"a', "is no CSV"),
        ("rows.parquet", b"PAR1 but no more", "is no whole Parquet file"),
        ("rows.jsonl", gzip.compress(as_json_lines(ROWS * 99))[:300], "ends in the middle"),
        ("rows.jsonl.zst", pack(as_json_lines(ROWS * 99), ".zst")[:100], "ends in the middle"),
        ("rows.jsonl.gz", gzip.compress(b"{}")[:-8] + b"12345678", "CRC check failed"),
        ("rows.jsonl.gz", gzip.compress(b"{}") + b"and more", "is damaged"),
    ],
)  # fmt: skip
def test_a_broken_file_is_one_error(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        records(path)
    assert said in str(caught.value)
    assert caught.value.where == str(path)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("name", "content", "numbers", "said"),
    [
        ("rows.jsonl", b'{"a": 1}\n{"a": "\xff"}\n{"a": 3}\n', [2], "byte 7 is not UTF-8"),
        ("rows.json", b'[{"a": 1}, 5, {"a": 2}]', [2], "is int, not an object"),
        ("rows.csv", b"a,b\n1,2\n3\n4,5,6\n\n7,8\n", [3, 4], "has 1 cells, but the header 2"),
        ("rows.csv", b"a,b\n1,2\n3,\xff\n", [3], "byte 2 is not UTF-8"),
        ("rows.csv", b'a,b\n1,"2" x\n3,4\n', [2], "is no CSV"),
        ("rows.txt", b"caf\xe9", [1], "byte 3 is not UTF-8"),
    ],
)
def test_a_broken_record_is_a_fault_and_the_others_are_read(
    tmp_path: Path, name: str, content: bytes, numbers: list[int], said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    found = faults(path)
    assert [fault.number for fault in found] == numbers
    assert said in found[0].problem


def test_text_in_parquet_that_is_no_utf_8_is_a_fault(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": b"good"}, {"text": b"caf\xe9"}, {"text": b"well"}]
    path = write_parquet(tmp_path / "rows.parquet", rows)
    assert [one.number for one in faults(path)] == [2]
    assert [one.value for one in records(path) if isinstance(one, limits.Record)] == [{"text": "good"}, {"text": "well"}]


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json", "rows.csv", "rows.parquet", "rows.txt"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = [{"text": f"{i} " + "Some words of a document that are not all alike. " * 20} for i in range(40_000)]
    if name == "rows.parquet":
        write_parquet(path, rows, row_group_size=len(rows))
    else:
        plain = {
            ".json": json.dumps(rows).encode(),
            ".csv": as_csv(rows),
            ".txt": b"\n\n".join(str(r).encode() for r in rows),
        }
        path.write_bytes(plain.get(path.suffix) or gzip.compress(as_json_lines(rows), 1))
    program = (
        "import sys, resource; sys.path[:0] = sys.argv[2:]; from source_files import *\n"
        "import pyarrow.parquet\n"
        "opened = source(sys.argv[1], documents='paragraph'); (file,) = find_files(opened, '')\n"
        "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "number = sum(1 for _ in read_records(opened, file))\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base\n"
        "print(number, grown < 28_000, grown)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(path), str(Path(__file__).parent)], capture_output=True, text=True, check=False
    )
    assert told.stdout.startswith("40000 True"), told.stdout + told.stderr


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_hundred_megabytes_in_one_line_are_passed_over_without_being_held(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"rows.jsonl{packing}"
    noise = bytes(range(40, 90)) * 2  # so that it does not pack like a bomb
    line = b'{"text": "' + b"".join(noise[i % 50 :] + b"%d" % (i * 7919) for i in range(1_250_000)) + b'"}'
    assert len(line) > 90_000_000
    path.write_bytes(pack(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n', packing))
    del line
    program = (
        "import sys, resource; sys.path[:0] = sys.argv[2:]; from source_files import records, Fault\n"
        "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = records(sys.argv[1])\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base\n"
        "print([isinstance(one, Fault) for one in found], len(found[1].excerpt), grown < 120_000, grown)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(path), str(Path(__file__).parent)], capture_output=True, text=True, check=False
    )
    assert told.stdout.startswith("[False, True, False] 1002 True"), told.stdout + told.stderr


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_bomb_is_refused_before_it_has_unpacked(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"rows.jsonl{packing}"
    line = b'{"text": "' + b"0" * 2**20 + b'"}\n'
    path.write_bytes(pack(line * 200, packing))
    assert path.stat().st_size < 2**20
    with pytest.raises(BadInput, match=r"unpacks to [\d,]+ times its size .* it may be a bomb"):
        records(path)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_UNPACKED", 500)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(as_json_lines(ROWS * 10)))
    with pytest.raises(BadInput, match="it may be a bomb"):
        records(path)


def test_a_parquet_column_that_claims_an_absurd_size_is_refused(tmp_path: Path) -> None:
    rows = [{"text": "0" * 2**20 + str(i)} for i in range(64)]
    path = write_parquet(tmp_path / "rows.parquet", rows, compression="zstd", use_dictionary=False)
    with pytest.raises(BadInput, match="column `text` unpacks to"):
        records(path)


def test_packing_is_seen_from_the_bytes_not_from_the_name(tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl.gz").write_bytes(as_json_lines(ROWS))
    (tmp_path / "packed.jsonl").write_bytes(pack(pack(as_json_lines(ROWS[:3]), ""), ".zst"))
    assert values(tmp_path / "plain.jsonl.gz") == ROWS
    assert values(tmp_path / "packed.jsonl") == ROWS[:3]
    two = gzip.compress(as_json_lines(ROWS[:3])) + gzip.compress(as_json_lines(ROWS[3:]))
    (tmp_path / "two.jsonl.gz").write_bytes(two)
    assert values(tmp_path / "two.jsonl.gz") == ROWS


def test_a_saved_data_set_is_read_by_its_split(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [{"prompt": "Is it?", "completion": "Yes.", "n": None}, {"prompt": "Why?", "completion": "So.", "n": 1}]
    DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:1])}).save_to_disk(tmp_path / "both")
    Dataset.from_list(rows).shuffle(seed=1).save_to_disk(tmp_path / "one")
    plain = [{"prompt": "Is it?", "completion": "Yes."}, {"prompt": "Why?", "completion": "So.", "n": 1}]
    assert values(tmp_path / "both") == plain
    assert values(tmp_path / "both", split="test") == plain[:1]
    assert sorted(values(tmp_path / "one"), key=str) == plain
    for split, said in (("validation", "there is no `validation`"), ("../one", r"there is no `\.\./one`")):
        with pytest.raises(BadInput, match=said):
            records(tmp_path / "both", split=split)
    with pytest.raises(BadInput, match="holds one data set alone"):
        records(tmp_path / "one", split="test")
    state = json.loads((tmp_path / "one" / "state.json").read_text())
    (tmp_path / "one" / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": "../both/train/x"}]}))
    with pytest.raises(BadInput, match="leads out of the folder"):
        records(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        records(tmp_path / "one")
