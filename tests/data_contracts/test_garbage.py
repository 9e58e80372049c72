"""Whatever the bytes of a file are: records, faults, or one error that names the file, never anything else."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_files import ROWS, as_csv, as_json_lines, config, pack, records, write_parquet

from data_contracts.clean import normalise_row
from data_contracts.config import KINDS
from data_contracts.sources import read_sources
from lineage.errors import BadInput

FORMATS = ("jsonl", "json", "csv", "text", "parquet")
anything = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
pieces = st.lists(
    st.sampled_from(
        [b'{"a":', b"[", b"]", b"{", b"}", b'"', b",", b"\n", b"\r", b"\x00", b"\xff", b"\xef\xbb\xbf", b"1e9", b"x\\"]
    )
    | st.binary(max_size=6),
    max_size=30,
).map(b"".join)


def read(path: Path, **said: str) -> None:
    """Reads a file to its end; an error must name it and the way out."""
    error = None
    try:
        records(path, **said)
    except BadInput as caught:
        error = caught
    assert error is None or (str(path) in error.where and error.fix and "\n" not in str(error))


@pytest.mark.parametrize("layout", FORMATS)
def test_garbage_is_read_or_refused(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "garbage"

    @anything
    @given(pieces)
    def check(data: bytes) -> None:
        path.write_bytes(data)
        read(path, format=layout)

    check()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows.jsonl.gz", "rows.jsonl.zst"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "rows.parquet":
        write_parquet(path, ROWS * 50)
    else:
        plain = as_csv(ROWS * 50) if ".csv" in name else as_json_lines(ROWS * 50)
        path.write_bytes(pack(plain, path.suffix if path.suffix in (".gz", ".zst") else ""))
    whole = path.read_bytes()

    @anything
    @given(st.integers(0, len(whole) - 1), st.integers(1, 255), st.booleans())
    def check(place: int, change: int, cut: bool) -> None:
        damaged = whole[:place] + bytes([whole[place] ^ change]) + (b"" if cut else whole[place + 1 :])
        path.write_bytes(damaged)
        read(path)

    check()


def test_every_line_of_garbage_is_a_row_or_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    @anything
    @given(st.lists(pieces.map(lambda data: data.replace(b"\n", b"")), min_size=1, max_size=8))
    def check(lines: list[bytes]) -> None:
        path.write_bytes(b"\n".join([b'{"text": "the first"}', *lines]))
        corpus = read_sources(config(path, on_bad_line="quarantine"))
        blank = sum(not line.removeprefix(b"\xef\xbb\xbf" if not i else b"").strip() for i, line in enumerate(lines, 1))
        assert len(corpus.rows["pretrain"]) + len(corpus.bad_lines) == 1 + len(lines) - blank

    check()


texts = st.sampled_from(
    ["", "x", "\n\nHuman: a\n\nAssistant: b", "[]", "{", '{"a": ' * 500 + "1" + "}" * 500, "\ud800", " a "]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
turns = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "tool", "bot", 5]),
        "content": scalars,
        "from": scalars | st.just([]),
        "value": scalars,
        "tool_calls": st.lists(
            st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": texts, "arguments": texts})})
        ),
    },
)
cells = scalars | st.lists(turns | scalars, max_size=3) | st.dictionaries(texts, scalars, max_size=2)
NAMES = ("id", "text", "messages", "conversations", "prompt", "completion", "chosen", "rejected", "label", "tools", "kind",
         "weight", "question", "answer")  # fmt: skip


def test_every_object_is_a_row_or_a_bad_line_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    deep = (
        '{"messages": [{"role": "user", "content": "a"}], "tools": ' + '[{"name": "a", "b": ' * 400 + "1" + "}]" * 400 + "}"
    )

    @anything
    @given(st.lists(st.dictionaries(st.sampled_from(NAMES), cells), max_size=4), st.sampled_from((*KINDS, None)))
    def check(rows: list[dict[str, object]], kind: str | None) -> None:
        first = {"text": "the first"} if kind in (None, "pretrain") else {}
        lines = [json.dumps(row) for row in [first, *rows]]
        path.write_text("\n".join([*lines, deep]))
        corpus = read_sources(config(path, on_bad_line="quarantine", rows=kind))
        made = [row for rows in corpus.rows.values() for row in rows]
        assert len(made) + len(corpus.bad_lines) == len(rows) + 2
        for row in made:
            assert normalise_row(row).texts() is not None

    check()


def test_a_gzip_member_that_is_cut_anywhere_is_never_taken_for_a_whole_file(tmp_path: Path) -> None:
    for packing, whole in (
        (".gz", gzip.compress(as_json_lines(ROWS * 20))),
        (".zst", pack(as_json_lines(ROWS * 20), ".zst")),
    ):
        path = tmp_path / f"rows.jsonl{packing}"
        for length in range(5, len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(BadInput):
                records(path)
