"""Which rows an erasure keeps out of all data versions to come. Pure; the tombstones' file is `data_contracts.tombstones`.

A tombstone says what to leave out without repeating it: it holds HMAC-SHA256 of what was asked for, under a key that only
this home has. Without the key nobody can try addresses or names against it. There are three ways:

- *id*: the row's id, or `source:id` where two sources use the same ids.
- *text*: a row one of whose texts (a document, a turn, a prompt, an answer) is that text, after the stage's own
  normalisation and without outer white space.
- *subject*: a row in which the words of an e-mail address or a name stand one after the other. Words are folded: case,
  accents, compatibility forms, invisible characters and all punctuation between them are no difference, so `Jane Doe` finds
  `JANE  DÖE,` and `jane_doe`, and an address finds itself in a link. A name is also looked for with its last word first
  (`Doe, Jane`). Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese are looked at character by character.

What a subject does not find: initials, nicknames, misspellings, transliterations, words between first and last name,
escapes (`jane%40doe.org`), and whoever is meant without being named. Ask once for each form that is known. What it finds
too much: everybody of the same name, and a name that is made of common words; that is what `--dry-run` is for.
"""

import hmac
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Literal

from data_contracts.clean import normalise
from data_contracts.messages import texts_in
from data_contracts.quarantine import Reason
from lineage.errors import BadInput
from lineage.files import canonical_json, sha256_text
from lineage.section import Section

By = Literal["id", "text", "subject"]
WAYS: tuple[By, ...] = ("id", "text", "subject")
MOST_WORDS = 16
MOST_REMEMBERED = 200_000  # words
# Scripts without spaces between words, and Hangul, whose particles are written onto names: every character is a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_ASCII_WORD = re.compile("[a-z0-9]+")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


class Tombstone(Section):
    """What one erasure leaves out, as hashes.

    Attributes:
        by: what the hashes are of.
        hashes: HMAC-SHA256, 64 hex digits; the first one names the tombstone.
        words: how many words a subject has.
        buckets: 16 bits of the hash of each form's first word, which spare most places of a text the whole comparison. Like
            the hashes, they say nothing without the key; with it, whoever has a list of names can try them.
    """

    by: By
    hashes: tuple[str, ...]
    words: int = 0
    buckets: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """A short name."""
        return self.hashes[0][:12]

    @property
    def reason(self) -> Reason:
        """Why a row is not kept. It says nothing about the row."""
        return Reason(self.by, f"tombstone {self.name}")


class Erasures:
    """All tombstones of a home, ready to be compared with rows. It may be sent to other processes.

    >>> erasures = Erasures([make_tombstone("subject", "jane@doe.org", key)], key)
    >>> erasures.find({"id": "7", "text": "Mail Jane@Doe.org", "source": "mails"}).by
    'subject'
    """

    def __init__(self, tombstones: Iterable[Tombstone] = (), key: bytes = b"") -> None:
        self._tombstones, self._key = list(tombstones), key
        self._by_hash = {(stone.by, digest): stone for stone in reversed(self._tombstones) for digest in stone.hashes}
        self._ways = {stone.by for stone in self._tombstones}
        self._sizes = sorted({stone.words for stone in self._tombstones if stone.by == "subject"})
        self._buckets = frozenset(bucket for stone in self._tombstones for bucket in stone.buckets)
        self._known: set[str] = set()  # words whose bucket was computed, and those of them with which a subject may begin
        self._first: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._tombstones)

    def inputs(self) -> dict[str, str]:
        """What the erasures add to the identity of a data stage: nothing where there are none."""
        hashes = sorted(digest for _, digest in self._by_hash)
        return {"erasures": sha256_text(canonical_json(hashes))} if hashes else {}

    def find(self, row: Mapping[str, Any]) -> Tombstone | None:
        """Returns the oldest tombstone that a row falls under; None where it may stay."""
        return min(self.find_all(row), key=self._tombstones.index, default=None)

    def find_all(self, row: Mapping[str, Any]) -> list[Tombstone]:
        """Returns every tombstone that a row falls under.

        Args:
            row: a row or a golden item as JSON, or what quarantine keeps of a line that is no row (`{"line": text}`).
        """
        return list({id(stone): stone for stone in self._matches(row)}.values()) if self._tombstones else []

    def _matches(self, row: Mapping[str, Any]) -> Iterator[Tombstone]:
        if "id" in self._ways and "id" in row:
            for name in (row.get("id"), f"{row.get('source')}:{row.get('id')}"):
                yield from self._look_up("id", str(name))
        for text in _texts(row):
            if "text" in self._ways:
                yield from self._look_up("text", _plain(text))
            if self._sizes:
                yield from self._find_subjects(split_subject(text))

    def _find_subjects(self, words: list[str]) -> Iterator[Tombstone]:
        distinct = set(words)
        self._sort_words(distinct)
        first = distinct & self._first
        for start, word in enumerate(words) if first else ():
            if word in first:
                for size in self._sizes:
                    if start + size <= len(words):
                        yield from self._look_up("subject", " ".join(words[start : start + size]))

    def _sort_words(self, words: set[str]) -> None:
        """Finds out which of the words a subject may begin with; words come again and again, so that is seldom asked."""
        if len(self._known) > MOST_REMEMBERED:
            self._known.clear()
            self._first.clear()
        new = words - self._known
        self._known |= new
        self._first |= {word for word in new if _bucket(self._key, word) in self._buckets}

    def _look_up(self, by: By, value: str) -> Iterator[Tombstone]:
        stone = self._by_hash.get((by, _hash(self._key, by, value)))
        if stone is not None:
            yield stone


def make_tombstone(by: By, value: str, key: bytes) -> Tombstone:
    """Returns the tombstone of an id, a text or a subject.

    Raises:
        BadInput: the value is blank, or no subject.
    """
    if by != "subject":
        plain = value.strip() if by == "id" else _plain(value)
        if not plain:
            raise BadInput("--match", "", "is blank", "give the id or the text of a row")
        return Tombstone(by=by, hashes=(_hash(key, by, plain),))
    words = split_subject(value)
    if not 1 <= len(words) <= MOST_WORDS:
        problem = f"has {len(words)} words; a subject has 1 to {MOST_WORDS}"
        raise BadInput("--match", "", problem, "give an e-mail address or a name, or `--by text` for a whole text")
    forms = [words] if "@" in value or len(words) == 1 else [words, [words[-1], *words[:-1]]]
    return Tombstone(
        by=by,
        hashes=tuple(dict.fromkeys(_hash(key, by, " ".join(form)) for form in forms)),
        words=len(words),
        buckets=tuple(dict.fromkeys(_bucket(key, form[0]) for form in forms)),
    )


def split_subject(text: str) -> list[str]:
    """Returns the folded words of a text, in which subjects are looked for.

    >>> split_subject("José_Müller <jose@example.org>")
    ['jose', 'muller', 'jose', 'example', 'org']
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    plain = unicodedata.normalize("NFKD", text).translate(_ignored())
    return _WORD.findall(unicodedata.normalize("NFC", plain).casefold().lower())


def _texts(row: Mapping[str, Any]) -> list[str]:
    """All texts of a row, its id and source included: an id may be an address."""
    texts = list(texts_in(dict(row)))
    if isinstance(line := row.get("line"), str):
        with suppress(ValueError, RecursionError):  # a line that is no row may still be JSON, with escapes in its texts
            texts += texts_in(json.loads(line))
    return texts


def _plain(text: str) -> str:
    return normalise(text).strip()


def _hash(key: bytes, by: By, value: str) -> str:
    return hmac.digest(key, f"{by}\0{value}".encode(errors="surrogatepass"), "sha256").hex()


def _bucket(key: bytes, word: str) -> int:
    digest = hmac.digest(key, f"bucket\0{word}".encode(errors="surrogatepass"), "sha256")
    return int.from_bytes(digest[:2], "big")


@cache
def _ignored() -> dict[int, None]:
    """Accents and other marks on letters, and invisible characters."""
    characters = map(chr, range(sys.maxunicode + 1))
    return {ord(character): None for character in characters if unicodedata.category(character) in ("Mn", "Me", "Cf")}
