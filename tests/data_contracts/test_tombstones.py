"""The file of tombstones: appended to by many, torn by a kill, changed by somebody, or without its key."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from data_contracts.erasure import make_tombstone
from data_contracts.tombstones import KEY, TOMBSTONES, add_tombstone, erasure_key, load_erasures
from lineage.errors import BadInput, Tampered

ROW = {"id": "1", "text": "x", "source": "s"}


def erase(home: Path, value: str) -> bool:
    """Erases an id."""
    key = erasure_key(home)
    return add_tombstone(home, make_tombstone("id", value, key), key, "ada", "asked for it")


def test_what_was_erased_stays_erased(tmp_path: Path) -> None:
    assert not load_erasures(tmp_path)
    assert erase(tmp_path, "1")
    assert not erase(tmp_path, "1")  # the second time there is nothing to write
    assert erase(tmp_path, "2")
    assert load_erasures(tmp_path).find(ROW)
    assert not load_erasures(tmp_path).find(ROW | {"id": "3"})
    assert (tmp_path / TOMBSTONES).read_bytes().count(b"\n") == 2
    assert (tmp_path / KEY).stat().st_mode & 0o777 == 0o600


def test_looking_writes_nothing(tmp_path: Path) -> None:
    erasure_key(tmp_path)
    load_erasures(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_of_a_line_never_happened(tmp_path: Path) -> None:
    erase(tmp_path, "1")
    path = tmp_path / TOMBSTONES
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert load_erasures(tmp_path).find(ROW)
    assert erase(tmp_path, "2")
    assert path.read_bytes().startswith(whole)
    assert load_erasures(tmp_path).find(ROW | {"id": "2"})


def test_a_changed_or_missing_line_is_noticed(tmp_path: Path) -> None:
    for value in ("1", "2", "3"):
        erase(tmp_path, value)
    path = tmp_path / TOMBSTONES
    one, two, three = path.read_bytes().splitlines(keepends=True)
    for spoilt in (one + three, two + three, one.replace(b"asked", b"never") + two + three, one + b"{}\n", b"\xff\n"):
        path.write_bytes(spoilt)
        with pytest.raises(Tampered, match="line"):
            load_erasures(tmp_path)


def test_without_its_key_or_with_another_one_nothing_runs(tmp_path: Path) -> None:
    erase(tmp_path, "1")
    path = tmp_path / KEY
    key = path.read_text()
    path.unlink()
    for ask in (load_erasures, erasure_key):
        with pytest.raises(BadInput, match="is missing"):
            ask(tmp_path)
    for other in (secrets.token_bytes(32).hex(), "no key", ""):
        path.write_text(other)
        with pytest.raises(Tampered, match="is not the key"):
            load_erasures(tmp_path)
    path.write_text(key)
    assert load_erasures(tmp_path).find(ROW)


def test_two_that_erase_at_once_both_do(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from data_contracts.erasure import make_tombstone as make\n"
        "from data_contracts.tombstones import add_tombstone, erasure_key\n"
        "home = Path(sys.argv[1]); key = bytes.fromhex(sys.argv[3])\n"
        "for i in range(20): add_tombstone(home, make('id', f'{sys.argv[2]}{i}', key), key, 'ada', 'asked')"
    )
    key = secrets.token_bytes(32).hex()
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), who, key], env=os.environ) for who in ("a", "b")
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    erasures = load_erasures(tmp_path)
    assert all(erasures.find(ROW | {"id": f"{who}{i}"}) for who in ("a", "b") for i in range(20))


def test_a_home_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    key = secrets.token_bytes(32)
    with pytest.raises(BadInput, match="cannot be written"):
        add_tombstone(tmp_path / "home", make_tombstone("id", "1", key), key, "ada", "asked")
