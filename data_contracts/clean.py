"""Normalises text, so that two rows that look the same are the same bytes: NFC, Unix newlines, no invisible characters."""

import re
import unicodedata

from data_contracts.rows import Row

# Lone surrogates cannot be written as UTF-8. JSON can carry them (`"\ud800"`), so they do arrive.
_SURROGATE = re.compile("[\ud800-\udfff]")
# C0 and C1 controls but tab and newline, zero-width characters, the byte order mark, and marks that turn the direction of
# text (the "Trojan source" characters, CVE-2021-42574). Zero-width joiners stay: scripts and emoji need them.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_LINE_END = re.compile("\r\n?|\u2028|\u2029")
_TRAILING_SPACE = re.compile("[ \t]+$", re.MULTILINE)


def normalise(text: str) -> str:
    """Returns the text in NFC with `\\n` line ends, without invisible characters, trailing spaces and outer blank lines.

    Indentation stays. Normalising twice changes nothing more.
    """
    text = _LINE_END.sub("\n", text)
    if not (text.isascii() and text.isprintable()):
        text = unicodedata.normalize("NFC", _INVISIBLE.sub("", _SURROGATE.sub("\ufffd", text)))
    return _TRAILING_SPACE.sub("", text).strip("\n")


def normalise_row(row: Row) -> Row:
    """Returns the row with every text normalised."""
    return row.rewrite(normalise)
