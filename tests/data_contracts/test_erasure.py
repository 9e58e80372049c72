"""Erasure: what a tombstone finds in rows, what it does not, and that it does not say whom it is about."""

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_corpus import chat, golden

from data_contracts.erasure import By, Erasures, make_tombstone, split_subject
from data_contracts.prepare import erase_rows
from data_contracts.quarantine import Funnel
from data_contracts.rows import Conversation, Document, GoldenLine
from data_contracts.sources import BadLine, Corpus
from lineage.errors import BadInput

KEY = secrets.token_bytes(32)
MAIL, NAME = "jane.doe@goldpath.dev", "Jane Doe"


def finds(by: By, value: str, row: dict[str, Any] | str) -> bool:
    """Whether the tombstone of a value keeps a row out."""
    row = {"id": "r", "text": row, "source": "s"} if isinstance(row, str) else row
    return Erasures([make_tombstone(by, value, KEY)], KEY).find(row) is not None


@pytest.mark.parametrize(
    "text",
    [
        "Write to jane.doe@goldpath.dev today.",
        "JANE.DOE@GOLDPATH.DEV",
        "[mail](mailto:jane.doe@goldpath.dev)",
        "x\u200bjane.doe @ goldpath.dev".replace("x\u200b", ""),
        "ja\u00adne.doe@goldpath.dev",
        "\uff4aane.doe@goldpath.dev",
    ],
)
def test_an_address_is_found_however_it_is_written(text: str) -> None:
    assert finds("subject", MAIL, text)


@pytest.mark.parametrize("text", ["Jane  Doe", "JANE\nDOE's", "«Doe, Jane»", "jane_doe", "Já\u0301ne Döe", "by jane-doe."])
def test_a_name_is_found_however_it_is_written(text: str) -> None:
    assert finds("subject", NAME, text)


@pytest.mark.parametrize("text", ["J. Doe", "Janet Doe", "Jane M. Doe", "jane%40doe", "Jane. And then a doe", "Jane", ""])
def test_what_a_subject_does_not_find(text: str) -> None:
    assert not finds("subject", NAME, text)


@pytest.mark.parametrize(
    ("name", "text"), [("王小明", "昨天王小明来了"), ("김철수", "김철수는 갔다"), ("Åsa Öhman", "asa ohman")]
)
def test_names_in_other_scripts(name: str, text: str) -> None:
    assert finds("subject", name, text)


def test_ids_are_those_of_a_source_or_of_all() -> None:
    row = {"id": "7", "text": "x", "source": "mails"}
    assert finds("id", "7", row)
    assert finds("id", "mails:7", row)
    assert not finds("id", "letters:7", row)
    assert not finds("id", "77", row)


def test_a_text_is_one_of_the_row_s_texts_as_a_whole() -> None:
    row = {"id": "c", "messages": chat("Who is it?", "It  is\r\nJane.  "), "source": "s"}
    assert finds("text", " It  is\nJane.\n", row)
    assert not finds("text", "Jane.", row)


def test_an_id_that_is_an_address_is_found_too() -> None:
    assert finds("subject", MAIL, {"id": MAIL, "text": "Hello.", "source": "s"})
    assert finds("subject", NAME, {"id": "1", "text": "Hello.", "source": "letters of Jane Doe"})


def test_a_line_that_is_no_row_is_looked_at_with_its_escapes() -> None:
    line = json.dumps({"txt": "Zo\u00eb Quinn"})
    assert "\\u00eb" in line
    assert finds("subject", "Zoë Quinn", {"id": "1", "source": "s", "line": line})


def test_the_tombstone_does_not_say_whom_it_is_about() -> None:
    ways: list[tuple[By, str]] = [("subject", MAIL), ("subject", NAME), ("text", "Jane was here."), ("id", "jane")]
    for by, value in ways:
        stone = make_tombstone(by, value, KEY)
        written = stone.model_dump_json()
        assert "jane" not in written.lower()
        assert "doe" not in written.lower()
        for guess in (value, value.lower(), " ".join(split_subject(value))):
            assert hashlib.sha256(guess.encode()).hexdigest() not in written
        assert stone == make_tombstone(by, value, KEY)
        assert set(stone.hashes).isdisjoint(make_tombstone(by, value, secrets.token_bytes(32)).hashes)


@pytest.mark.parametrize(("by", "value"), [("id", " "), ("text", "\n"), ("subject", "?!"), ("subject", "word " * 17)])
def test_what_cannot_be_erased_is_bad_input(by: By, value: str) -> None:
    with pytest.raises(BadInput, match="--match"):
        make_tombstone(by, value, KEY)


words = st.lists(st.text(alphabet="abcxyzäé王", min_size=1, max_size=6), min_size=1, max_size=5)


@given(words, st.text(max_size=40), st.text(max_size=40), st.sampled_from([" ", "-", ", ", "\n", "_", ". "]))
def test_a_subject_is_found_in_any_text_around_it(subject: list[str], before: str, after: str, between: str) -> None:
    assert finds("subject", " ".join(subject), f"{before} {between.join(subject)} {after}")


@given(st.text(max_size=60), st.text(max_size=60))
def test_nothing_is_found_whose_words_are_not_there(text: str, other: str) -> None:
    wanted = split_subject(other)
    if 1 <= len(wanted) <= 16 and not set(wanted) & set(split_subject(f"{text} id text source r s")):
        assert not finds("subject", other, text)


def test_the_identity_is_that_of_all_tombstones_in_any_order() -> None:
    one, two = make_tombstone("id", "1", KEY), make_tombstone("id", "2", KEY)
    assert Erasures().inputs() == {}
    assert Erasures([one, two], KEY).inputs() == Erasures([two, one, two], KEY).inputs() != Erasures([one], KEY).inputs()


def corpus() -> Corpus:
    """Rows, a bad line and a golden item about somebody, and others."""
    read = Corpus()
    read.rows["pretrain"] = [Document(id=str(i), text=f"{who} said {i}.", source="s") for i, who in enumerate((NAME, "He"))]
    read.rows["sft"] = [Conversation.model_validate({"id": "c", "messages": chat("Who?", "doe, jane"), "source": "s"})]
    item = {"id": "q2", "kind": "closed_book", "question": "Who?", "answer": NAME}
    read.golden = {"closed_book": [GoldenLine.model_validate(one).root for one in (golden()[0], item)]}
    read.bad_lines = [BadLine("pretrain", "s:9", "s", "is not JSON", f"{{{NAME}"), BadLine("sft", "s:8", "s", "x", "{")]
    return read


def test_rows_lines_and_golden_items_are_taken_out_and_counted_without_a_trace(tmp_path: Path) -> None:
    funnel = Funnel()
    left = erase_rows(corpus(), Erasures([make_tombstone("subject", NAME, KEY)], KEY), funnel)
    assert [row.id for row in left.rows["pretrain"]] == ["1"]
    assert left.rows["sft"] == []
    assert [line.id for line in left.bad_lines] == ["s:8"]
    assert [item.id for item in left.golden["closed_book"]] == ["q1"]
    assert funnel.rows_in == {"pretrain": 2, "sft": 1}
    assert {entry["kind"] for entry in funnel.removed["erased"]} == {"pretrain", "sft"}
    assert all(set(entry) == {"kind", "stage", "rule", "reason"} for entry in funnel.removed["erased"])


def test_a_golden_set_of_which_nothing_is_left_is_bad_input() -> None:
    read = corpus()
    read.golden["closed_book"] = read.golden["closed_book"][1:]
    with pytest.raises(BadInput, match="golden set closed_book: has no item left"):
        erase_rows(read, Erasures([make_tombstone("subject", NAME, KEY)], KEY), Funnel())
