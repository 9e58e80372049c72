"""Which files a source names, in which order; that they are the files that were hashed; and what lies behind URLs."""

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from source_files import ROWS, as_json_lines, config, pack, records, source, values, write_parquet

from data_contracts.job import resolve_paths
from data_contracts.sources import read_sources, source_digests
from data_contracts.sources.feeds import find_files, open_feeds, read_feed
from data_contracts.sources.formats import read_records
from data_contracts.sources.listing import absolute_path, format_of, short_name, source_name, suffix_of
from lineage.errors import BadInput
from lineage.files import sha256_file

TEXTS = [{"text": f"The document with the number {i}."} for i in range(6)]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder with shards in subfolders, and with what is none."""
    folder = tmp_path / "shards"
    for name, rows in (("b.jsonl", TEXTS[2:4]), ("a/z.jsonl.gz", TEXTS[:2]), ("c.jsonl.zst", TEXTS[4:])):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pack(as_json_lines(rows), Path(name).suffix))
    for name in (".hidden.jsonl", "_SUCCESS", "LICENSE", ".git/x.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no row")
    return folder


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, with an ETag where the server has one."""

    etag = ""

    def log_message(self, *_: object) -> None:
        pass

    def end_headers(self) -> None:
        if self.etag:
            self.send_header("ETag", self.etag)
        super().end_headers()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """A real HTTP server on the folder of the test."""
    Handler.etag = ""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_a_folder_is_read_in_the_order_of_its_paths(shards: Path) -> None:
    assert values(shards) == TEXTS
    assert [file.name for file in find_files(source(shards), "")] == [
        "shards/a/z.jsonl.gz",
        "shards/b.jsonl",
        "shards/c.jsonl.zst",
    ]
    rows = read_sources(config(shards)).rows["pretrain"]
    assert [row.id for row in rows][:3] == ["shards/a/z.jsonl.gz:1", "shards/a/z.jsonl.gz:2", "shards/b.jsonl:1"]
    assert {row.source for row in rows} == {"shards"}


def test_a_pattern_means_all_that_it_matches(shards: Path) -> None:
    assert values(shards / "*.jsonl*") == TEXTS[2:]
    assert values(shards / "**" / "*.jsonl.gz") == TEXTS[:2]
    with pytest.raises(BadInput, match="LICENSE: its name does not say what format it has"):
        records(shards / "*")
    assert [v["text"] for v in values(shards / "LICENS?", format="text")] == ["no row"]
    (shards / "odd[1].jsonl").write_bytes(as_json_lines(TEXTS[:1]))
    assert values(shards / "odd[1].jsonl") == TEXTS[:1]


def test_formats_are_not_mixed_unknowingly(shards: Path) -> None:
    (shards / "README.md").write_text("About these rows.")
    with pytest.raises(BadInput, match=r"several formats \(jsonl, text\)"):
        records(shards)
    assert values(shards, format="jsonl") == TEXTS
    assert values(shards, format="text") == [{"text": "About these rows."}]


def test_links_that_lead_out_of_a_folder_are_refused(shards: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_bytes(as_json_lines(TEXTS))
    for name, target in (("link.jsonl", secret), ("d", tmp_path), ("e.jsonl", Path("..") / "secret.jsonl")):
        (shards / name).symlink_to(target)
        with pytest.raises(BadInput, match="leads out of"):
            records(shards)
        (shards / name).unlink()
    (shards / "link.jsonl").symlink_to(secret)
    with pytest.raises(BadInput, match="leads out of"):
        records(shards / "l*.jsonl")
    with pytest.raises(BadInput, match="leads out of"):
        records(f"{shards}/*/../../secret.jsonl")
    assert values(shards / "link.jsonl") == TEXTS  # the person named this very file
    (shards / "link.jsonl").unlink()
    (shards / "same.jsonl").symlink_to("b.jsonl")
    assert len(values(shards)) == len(TEXTS) + 2


def test_what_is_no_file_to_read_is_one_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").write_text("x")
    expected = {
        "pipe.jsonl": "is no regular file",
        "none.jsonl": "cannot be read",
        "empty": "holds no file of a known format",
        "*.csv": "matches no file",
        "odd": "does not say what format",
        "odd/rows.jsonl": "cannot be read",
        "n" * 300 + ".jsonl": "cannot be read",
    }
    for name, said in expected.items():
        with pytest.raises(BadInput, match=said):
            records(tmp_path / name)
    with pytest.raises(BadInput, match=r"cannot be read \(Input/output error\)"):
        records("/proc/self/mem", format="jsonl")
    for content in (b"", b"\n \n", b"\xef\xbb\xbf"):
        (tmp_path / "blank.jsonl").write_bytes(content)
        with pytest.raises(BadInput, match="holds no rows"):
            read_sources(config(tmp_path / "blank.jsonl"))
        with pytest.raises(BadInput, match="holds no rows"):
            read_sources(config(tmp_path / "blank.jsonl", rows="sft"))


def test_digests_cover_every_file_and_are_the_file_s_own_where_it_is_one(shards: Path) -> None:
    digest = source_digests(config(shards))
    assert digest == source_digests(config(shards))
    (shards / "LICENSE").write_text("another")
    assert digest == source_digests(config(shards))
    (shards / "b.jsonl").rename(shards / "bb.jsonl")
    assert digest != source_digests(config(shards))
    one = shards / "bb.jsonl"
    assert source_digests(config(one))["sources[0]"] == sha256_file(one)


def test_a_change_between_hashing_and_reading_is_seen(shards: Path) -> None:
    told = config(shards)
    digests = source_digests(told)
    assert read_sources(told, digests).rows["pretrain"]
    path = shards / "b.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"2", b"9"))
    with pytest.raises(BadInput, match="was changed after it was hashed"):
        read_sources(told, digests)
    path.write_bytes(content)
    (feed,) = open_feeds(told, digests)
    os.utime(path, ns=(1, 1))
    with pytest.raises(BadInput, match=r"b\.jsonl: was changed after it was hashed"):
        list(read_feed(feed))


def test_a_change_while_a_file_is_read_is_seen(tmp_path: Path) -> None:
    for path in (tmp_path / "rows.jsonl", write_parquet(tmp_path / "rows.parquet", ROWS)):
        if path.suffix == ".jsonl":
            path.write_bytes(as_json_lines(ROWS))
        opened = source(path)
        reading = read_records(opened, find_files(opened, "")[0])
        next(reading)
        with path.open("ab") as file:
            file.write(b" ")
        with pytest.raises(BadInput, match="was changed after it was hashed"):
            list(reading)


def test_two_sources_of_one_name_have_rows_of_their_own_names(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_bytes(as_json_lines(TEXTS[:2]))
    both = config(tmp_path / "a" / "train.jsonl")
    both = both.model_copy(update={"sources": [*both.sources, source(tmp_path / "b" / "train.jsonl")]})
    assert [row.id for row in read_sources(both).rows["pretrain"]] == ["train:1", "train:2", "train-2:1", "train-2:2"]


def test_names_lose_what_says_how_a_file_is_read() -> None:
    assert short_name("/x/train.v2.jsonl.zst") == "train.v2"
    assert short_name("https://host/a/train.csv?version=3") == "train"
    assert format_of("https://host/a/Train.CSV.gz?version=3.json") == "csv"
    assert (suffix_of("a.tsv.csv"), suffix_of("a.tsv.zst"), suffix_of("a")) == (".csv", ".tsv", "")
    assert source_name(source("/x/shards/*/a.jsonl")) == "shards"
    assert source_name(source("s3://bucket/wiki/")) == "wiki"
    assert source_name(source("s3://bucket/wiki/part-*.jsonl")) == "wiki"


def test_paths_are_those_of_the_recipe_s_folder_and_urls_stay(tmp_path: Path) -> None:
    both = config("../rows/*.jsonl").model_copy(
        update={"sources": [source("../rows/*.jsonl"), source("s3://b/x.jsonl"), source("org/name", kind="hub")]}
    )
    assert absolute_path("file:///a/b.csv", "files", tmp_path) == "/a/b.csv"
    paths = [one.path for one in resolve_paths(both, tmp_path / "recipes").sources]
    assert paths == [f"{tmp_path}/rows/*.jsonl", "s3://b/x.jsonl", "org/name"]


def test_files_behind_urls_are_read_by_their_content() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/wiki/b.jsonl": as_json_lines(TEXTS[2:]), "/wiki/a.jsonl.gz": pack(as_json_lines(TEXTS[:2]), ".gz")})
    assert values("memory://wiki") == TEXTS
    assert values("memory://wiki/*.jsonl") == TEXTS[2:]
    rows = read_sources(config("memory://wiki/")).rows["pretrain"]
    assert rows[0].id == "wiki/a.jsonl.gz:1"
    told = config("memory://wiki/b.jsonl")
    before = source_digests(told)
    memory.pipe("/wiki/b.jsonl", as_json_lines(TEXTS[1:5]))
    assert source_digests(told) != before
    with pytest.raises(BadInput, match="was changed after it was hashed"):
        read_sources(told, before)
    with pytest.raises(BadInput, match="cannot be read"):
        records("memory://nowhere/x.jsonl")


def test_a_web_server_is_read_with_and_without_an_etag(server: ThreadingHTTPServer, shards: Path) -> None:
    write_parquet(shards / "rows.parquet", TEXTS)
    base = f"http://127.0.0.1:{server.server_port}"
    for etag in ("", '"one"', 'W/"weak"'):
        Handler.etag = etag
        assert values(f"{base}/shards/b.jsonl") == TEXTS[2:4]
        assert values(f"{base}/shards/rows.parquet") == TEXTS
        assert values(f"{base}/shards/*.jsonl") == TEXTS[2:4]
        (digest,) = source_digests(config(f"{base}/shards/b.jsonl")).values()
        assert digest == (f'ETag "one" size {(shards / "b.jsonl").stat().st_size}' if etag == '"one"' else digest)
        if etag != '"one"':
            assert digest == sha256_file(shards / "b.jsonl")
    with pytest.raises(BadInput, match="cannot be read"):
        records(f"{base}/none.jsonl")


def test_a_change_behind_a_url_is_seen(server: ThreadingHTTPServer, shards: Path) -> None:
    opened = source(f"http://127.0.0.1:{server.server_port}/shards/b.jsonl")
    Handler.etag = '"one"'
    (file,) = find_files(opened, "")
    Handler.etag = '"two"'
    with pytest.raises(BadInput, match="was changed after it was hashed"):
        list(read_records(opened, file))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://ada:secret@127.0.0.1:9/x.jsonl", "holds a user or a password"),
        ("zip://x.jsonl::/tmp/a.zip", "is a chain of URLs"),
        ("http://127.0.0.1:9/x.jsonl", "cannot be read"),
        ("gopher://host/x.jsonl", "cannot be read"),
        ("s3://bucket/x.jsonl", r"needs a package that is not installed .* pip install 'goldpath\[s3\]'|cannot be read"),
    ],
)
def test_urls_that_cannot_be_read_are_one_error(url: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        records(url)
    assert "secret" not in str(caught.value)


def test_the_hub_needs_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="is a data set of the hub, but HF_HUB_OFFLINE is set"):
        source_digests(config("openai/gsm8k", kind="hub", subset="main"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match="the hub gave nothing"):
        source_digests(config("openai/gsm8k", kind="hub", subset="main"))
