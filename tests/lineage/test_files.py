"""Writes are whole or absent, also when the writer is killed in the middle."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lineage.files import canonical_json, list_files, sha256_file, write_atomic, write_json

WRITER = """
import sys
from pathlib import Path
from lineage.files import write_atomic
path = Path(sys.argv[1])
print("writing", flush=True)
number = 0
while True:
    write_atomic(path, str(number % 10) * 2_000_000)
    number += 1
"""


def test_a_reader_sees_the_old_or_the_new_bytes_whatever_kills_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            deadline = time.monotonic() + 20
            written = 0
            while written < 10 and time.monotonic() < deadline:
                if path.exists():
                    content = path.read_text()
                    assert len(content) == 2_000_000
                    assert len(set(content)) == 1
                    written += 1
            os.kill(writer.pid, signal.SIGKILL)
        content = path.read_text()
        assert written == 10
        assert len(content) == 2_000_000
        assert len(set(content)) == 1


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    for impossible in (float("nan"), {1, 2}):
        with pytest.raises((TypeError, ValueError)):
            write_json(path, impossible)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomic(folder, "a file cannot take a folder's place")
    assert json.loads(path.read_text()) == {"old": 1}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "value.json"]


def test_written_files_can_be_read_by_other_users(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b.txt", b"x")
    assert stat.S_IMODE((tmp_path / "a" / "b.txt").stat().st_mode) == 0o644


def test_hidden_files_and_links_are_not_listed(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", ".hidden", ".cache/d.txt"):
        write_atomic(tmp_path / name, "x")
    (tmp_path / "link").symlink_to(tmp_path / "b.txt")
    assert [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path)] == ["a/c.txt", "b.txt"]


def test_known_digests(tmp_path: Path) -> None:
    write_atomic(tmp_path / "abc", "abc")  # the example of FIPS 180-2
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert canonical_json({"b": 1, "a": [True, None, "é"]}) == '{"a":[true,null,"é"],"b":1}'
