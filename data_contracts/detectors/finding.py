"""What a detector returns, and the words beside a number that say what it is."""

import re
from dataclasses import dataclass

from data_contracts.config import PiiClass

_BEFORE, _AFTER = 64, 40

# Where a number may begin and end: not in a longer number, a word, or an amount of money.
NUMBER_START = r"(?<![\w.$€£])(?<!\w-)(?<!\d[,/])"
NUMBER_END = r"(?!\w)(?![.,/-]\d)(?!-\w)"


@dataclass(frozen=True)
class Finding:
    """A part of a text that is somebody's.

    Attributes:
        start, end: its place in the text.
        kind: the class that a policy is about.
        name: what it is, for a person: `email`, `US SSN`, `AWS Access Key`.
    """

    start: int
    end: int
    kind: PiiClass
    name: str


def words(*alternatives: str) -> re.Pattern[str]:
    """Returns a pattern of whole words in any case, also within `names_like_this` and `namesLikeThis`.

    A trailing `*` takes any ending; a space is also a dash, an underscore or nothing.
    """
    begins = r"(?:(?<![A-Za-z])|(?-i:(?<=[a-z])(?=[A-Z])))"
    return re.compile(rf"{begins}(?:{'|'.join(map(_word, alternatives))})", re.IGNORECASE)


def _word(alternative: str) -> str:
    ends = "" if alternative.endswith("*") or not alternative.isascii() else "(?![a-z])"
    return alternative.removesuffix("*").replace(" ", "[ _-]?") + ends


def beside(pattern: re.Pattern[str], text: str, start: int, end: int) -> bool:
    """Whether a word that explains a number stands up to 64 characters before it, or up to 40 behind it."""
    return bool(pattern.search(text, max(0, start - _BEFORE), start) or pattern.search(text, end, end + _AFTER))
