"""Normalisation: what looks the same becomes the same bytes, and a second pass changes nothing."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_contracts.clean import normalise


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("cafe\u0301", "café"),
        ("ze\u200bro\ufeff\x00width\x07", "zerowidth"),
        ("user\u202etxt.exe", "usertxt.exe"),
        ("bad \ud800 surrogate", "bad \ufffd surrogate"),
        ("\n\n    indented \t\n  stays  \n\n", "    indented\n  stays"),
        ("tab\tstays", "tab\tstays"),
        ("family \U0001f468\u200d\U0001f469 stays", "family \U0001f468\u200d\U0001f469 stays"),
    ],
)
def test_normalise(text: str, clean: str) -> None:
    assert normalise(text) == clean


@given(st.text(st.characters(codec=None)))
def test_normalising_twice_changes_nothing_and_gives_writable_nfc(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    once.encode()
