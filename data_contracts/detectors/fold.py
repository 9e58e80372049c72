"""A text as the detectors read it: every way to write a dash, a space or a digit is one, and what was escaped is not."""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from html import unescape
from typing import NamedTuple
from urllib.parse import unquote

# Dashes, spaces, the full-width forms of `+ , - . / : @`, and the digits of other scripts.
_DASHES = "\u2010-\u2015\u2212\ufe58\ufe63\uff0d"
_FOREIGN = re.compile(f"[{_DASHES}\u00a0\u2000-\u200a\u202f\u205f\u3000\uff0b-\uff0f\uff1a\uff20]|[^\\x00-\\x7f\\D]")
_DASH = re.compile(f"[{_DASHES}]")
# JSON within a text, URLs, HTML. Each stands for one character.
_HEX = "[0-9A-Fa-f]"
_ESCAPED = re.compile(
    rf"\\(?:[nrt/]|u(?:00{_HEX}{{2}}|20[0-6]{_HEX}|2212))|%(?:[2-7]{_HEX}|[Cc]2%[Aa]0|[Ee]2%8[0-8]%[89ABab]{_HEX})|"
    rf"&(?:#x?{_HEX}{{2,5}}|nbsp|ndash|minus);"
)


class Folded(NamedTuple):
    """A text as the detectors read it.

    Attributes:
        text: what they read.
        escapes: where in it an escape became one character.
        moved: how far what follows the first, second, … of them was moved; one more than there are escapes.
    """

    text: str
    escapes: Sequence[int] = ()
    moved: Sequence[int] = (0,)

    def place(self, position: int) -> int:
        """Returns where a position is in the original; that of an escape is where it begins."""
        return position + self.moved[bisect_left(self.escapes, position)]


def fold(text: str) -> Folded:
    """Folds a text; costs nothing where there is nothing to fold.

    >>> fold("030\u2013901%20820").text
    '030-901 820'
    """
    folded = _unescape(text) if "\\" in text or "%" in text or "&" in text else Folded(text)
    return folded if folded.text.isascii() else folded._replace(text=_FOREIGN.sub(_ascii, folded.text))


def _ascii(match: re.Match[str]) -> str:
    if _DASH.match(match[0]):
        return "-"
    digit = unicodedata.decimal(match[0], None)
    return unicodedata.normalize("NFKC", match[0])[:1] if digit is None else str(digit)


def _unescape(text: str) -> Folded:
    parts: list[str] = []
    escapes, moved = [], [0]
    end = 0
    for match in _ESCAPED.finditer(text):
        parts += [text[end : match.start()], _character(match[0])]
        escapes.append(match.start() - moved[-1])
        moved.append(moved[-1] + len(match[0]) - 1)
        end = match.end()
    return Folded("".join([*parts, text[end:]]), escapes, moved)


def _character(escape: str) -> str:
    if escape[0] == "%":
        return unquote(escape)
    if escape[0] == "&":
        return unescape(escape)[:1] or " "
    if escape[1] == "u":
        return chr(int(escape[2:], 16))
    return "/" if escape[1] == "/" else "\n"
