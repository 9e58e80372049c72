"""Reads an answer in passing, as a client would: is it whole, is it empty, how did it end, what did it cost?"""

import json
from typing import Any

from serving.endpoint.text import REPLACEMENT


class Reading:
    """What one answer said, from its JSON body or its server-sent events.

    Attributes:
        tokens: completion tokens by the answer's usage; without usage the number of content chunks.
        finish_reason: `length` if any choice was cut, else `stop`; "" while a choice has not ended.
        error: the message of an error that came inside a stream.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.error = ""
        self._texts: dict[int, str] = {}
        self._ends: dict[int, str] = {}
        self._broken = False
        self._buffer = b""

    @property
    def finish_reason(self) -> str:
        """Returns how the answer ended, over all its choices."""
        if not self._texts or set(self._ends) != set(self._texts):
            return ""
        return "length" if "length" in self._ends.values() else "stop"

    @property
    def empty(self) -> bool:
        """Returns whether a choice has no text but white space."""
        return not self._texts or any(not text.strip() for text in self._texts.values())

    @property
    def malformed(self) -> bool:
        """Returns whether the answer is not of the protocol's shape, holds broken characters, or was cut."""
        cut = self.finish_reason != "stop"
        return self._broken or cut or any(REPLACEMENT in text for text in self._texts.values())

    def body(self, content: bytes) -> None:
        """Reads a whole answer."""
        self._take(content)

    def chunk(self, content: bytes) -> None:
        """Reads the next bytes of a stream, wherever they are cut."""
        *events, self._buffer = (self._buffer + content.replace(b"\r\n", b"\n")).split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                    self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            value = json.loads(data)
            if "error" in value:
                self.error = str(value["error"]["message"])
                return
            for choice in value["choices"]:
                self._take_choice(choice)
            if usage := value.get("usage"):
                self.tokens = int(usage["completion_tokens"])
        except (ValueError, KeyError, TypeError, AttributeError):
            self._broken = True

    def _take_choice(self, choice: dict[str, Any]) -> None:
        index = int(choice["index"])
        said = choice.get("message") or choice.get("delta") or choice
        text = said.get("content") or said.get("text") or ""
        self._texts[index] = self._texts.get(index, "") + str(text)
        self.tokens += bool(text)
        if choice.get("finish_reason"):
            self._ends[index] = str(choice["finish_reason"])
