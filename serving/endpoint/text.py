"""From tokens to text, as they come: whole characters only, and nothing that may turn out to be a stop text."""

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"  # what a decoder puts where bytes are no character, or not one yet
CONTEXT = 6  # tokens decoded again before new ones: a token's text can depend on its neighbours (a leading space)


class TextStream:
    """One answer's text while it grows.

    >>> text = TextStream(tokenizer, stop=("\\n",))
    >>> text.push(314)
    ' is'
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, [text for text in stop if text]
        self._tokens: list[int] = []
        self._start = 0  # the first token of the window that is decoded
        self._read = 0  # how many tokens have become text
        self._held = ""  # text that may be the beginning of a stop text

    def push(self, token: int) -> str:
        """Adds one token; returns the text that is now certain. After a stop text has come, `stopped` is true."""
        self._tokens.append(token)
        known = self._decode(self._start, self._read)
        text = self._decode(self._start, len(self._tokens))
        if text.endswith(REPLACEMENT):
            return ""  # perhaps the first bytes of a character
        self._read = len(self._tokens)
        self._start = max(self._start, self._read - CONTEXT) if self._ends_cleanly() else self._start
        return self._release(text[len(known) :])

    def finish(self) -> str:
        """Returns what was held back, once no more tokens will come."""
        known = self._decode(self._start, self._read)
        rest = self._release(self._decode(self._start, len(self._tokens))[len(known) :])
        if self.stopped:
            return rest
        rest, self._held = rest + self._held, ""
        return rest

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _decode(self, start: int, end: int) -> str:
        return str(self._tokenizer.decode(self._tokens[start:end], skip_special_tokens=True))

    def _ends_cleanly(self) -> bool:
        """Whether a window that began `CONTEXT` tokens ago would begin with a whole character."""
        return not self._decode(max(self._start, self._read - CONTEXT), self._read).startswith(REPLACEMENT)


def _overlap(text: str, stop: str) -> int:
    """Returns how many of a text's last characters are the beginning of a stop text."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
