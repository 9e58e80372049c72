"""Words as every comparison of texts here sees them: lower-cased, without punctuation, accents and invisible characters."""

import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache

Words = tuple[str, ...]
# Scripts that write no spaces between words are compared character by character: Thai to Khmer, kana, Han.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def split_words(text: str) -> Words:
    """Returns a text's words.

    >>> split_words("The *Café*,\\nopen!")
    ('the', 'cafe', 'open')
    """
    if text.isascii():
        return tuple(_WORD.findall(text.lower()))
    return tuple(_WORD.findall(_plain(text)))


def runs(words: Words, size: int) -> Iterable[Words]:
    """Yields every run of `size` words, in order; nothing for a shorter text."""
    return zip(*(words[i:] for i in range(size)), strict=False)


def _plain(text: str) -> str:
    """Drops what two spellings of one word may differ in: compatibility forms, marks (Mn), format characters (Cf)."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return unicodedata.normalize("NFC", apart.translate(_dropped()))


@cache
def _dropped() -> dict[int, None]:
    """The characters to drop, found when they are first needed: it takes a tenth of a second."""
    return {code: None for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Mn", "Cf")}
