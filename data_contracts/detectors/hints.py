"""Whether a text could hold anything at all, at the speed of memory: most texts cannot, and no detector reads those.

`bytes.translate` makes a drawing of a text, in which every digit is `0`, every letter `A` and separators are gone; a
search for fixed bytes in the drawing is many times faster than a regular expression over the text.
"""

import re
import string

_LETTERS, _DIGITS = string.ascii_letters.encode(), string.digits.encode()
_OTHERS = bytes(set(range(256)) - set(_LETTERS + _DIGITS))
_SHAPES = bytes.maketrans(_LETTERS + _DIGITS + _OTHERS, b"A" * 52 + b"0" * 10 + b"x" * 194)
_SEPARATORS = b" -./()\t"
_HEXADECIMAL = string.hexdigits.encode()

_WORDS = bytes.maketrans(_LETTERS + _DIGITS + b"_-", b"w" * 64)
_LONG = b"w" * 16
_WORD = re.compile(r"[\w-]+", re.ASCII)
# In a word that was drawn by lot there is a digit, but for some tokens of letters only.
_DRAWN = re.compile(r"\d|hf_|g[hl][a-z]+[_-]|k_live_|k_test_|[A-Z]{16}")
# Of secrets that have no such word.
_MARKS = ("PRIVATE KEY", "PuTTY-User-Key", "_authToken", "hooks.slack", "AccountKey=", "eyJ", "SG.", "ecret", "ECRET")


def may_hold_number(text: str) -> bool:
    """Whether there is anything of the shape of a phone number, a card, an account or an identity number."""
    drawing = text.encode("ascii", "replace").translate(_SHAPES, _SEPARATORS)
    return (
        b"0000000" in drawing  # nearly everything that is looked for
        or b"000000A" in drawing  # NINO, HETU, CURP
        or b"A00A00A000A" in drawing  # codice fiscale
    )


def may_hold_ip(text: str) -> bool:
    """Whether three dots or three colons have nothing but hexadecimal digits between them."""
    rest = text.encode("ascii", "replace").translate(None, _HEXADECIMAL)
    return b"..." in rest or b":::" in rest


def may_hold_secret(text: str) -> bool:
    """Whether there is a word as long as a key and not made of letters, or what stands beside a shorter one."""
    if ("://" in text and "@" in text) or any(mark in text for mark in _MARKS):
        return True
    drawing = text.encode("ascii", "replace").translate(_WORDS)
    start = drawing.find(_LONG)
    while start >= 0:
        word = _WORD.match(text, start)
        if word is None or _DRAWN.search(word[0]):
            return True
        start = drawing.find(_LONG, word.end())
    return False
