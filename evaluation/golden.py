"""Golden sets: frozen, hashed evaluation items. They are verified and validated before any model sees them."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lineage.errors import BadInput, Tampered
from lineage.section import Section, parse, read_yaml

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Item(BaseModel):
    """One golden item. Items of one `group` ask for the same thing in other words, so statistics count them together."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    id: Text
    group: str = ""
    tags: list[str] = Field(default_factory=list)

    @property
    def expected(self) -> str:
        """The right answer, as a report shows it."""
        return ""


class ClosedBook(Item):
    """A question with one right answer."""

    question: Text
    answer: Text

    @property
    def expected(self) -> str:
        return self.answer


class Choice(Item):
    """A question with its choices and the index of the right one."""

    question: Text
    choices: list[Text] = Field(min_length=2)
    answer: int = Field(ge=0)

    @model_validator(mode="after")
    def _decidable(self) -> Self:
        if self.answer >= len(self.choices):
            raise ValueError(f"answer {self.answer} is no index of {len(self.choices)} choices")
        if len(set(self.choices)) < len(self.choices):
            raise ValueError("two choices are equal")
        return self

    @property
    def expected(self) -> str:
        return self.choices[self.answer]


class HeldOut(Item):
    """A document that must be predicted."""

    text: Text


class Format(Item):
    """A question, and the regular expression that the whole answer must match."""

    question: Text
    pattern: Text

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from None
        return pattern

    @property
    def expected(self) -> str:
        return f"/{self.pattern}/"


Kind = Literal["closed_book", "choice", "heldout", "format"]
ITEM_OF_KIND: dict[Kind, type[Item]] = {
    "closed_book": ClosedBook,
    "choice": Choice,
    "heldout": HeldOut,
    "format": Format,
}


class SetEntry(Section):
    """What the manifest vouches for, of one set."""

    file: str
    sha256: str
    items: int
    kind: Kind


class GoldenManifest(Section):
    """`golden/manifest.json`: the sets by name."""

    sets: dict[str, SetEntry]


@dataclass(frozen=True)
class GoldenSet:
    """One verified set. `content` is the very bytes that were hashed, so that nothing can change between check and use."""

    name: str
    sha256: str
    content: bytes
    items: tuple[Item, ...]


def read_golden(data: Path, names: Iterable[str]) -> dict[str, GoldenSet]:
    """Reads golden sets from a data stage's folder (or any folder with `golden/manifest.json`).

    Raises:
        Tampered: a set's bytes are not what the manifest vouches for.
        BadInput: the manifest or a set is missing, a set is empty, or an item is invalid; names file, line and field.
    """
    folder = data / "golden"
    path = folder / "manifest.json"
    manifest = parse(GoldenManifest, read_yaml(path), path)
    sets = {}
    for name in names:
        if name not in manifest.sets:
            known = ", ".join(manifest.sets) or "none"
            raise BadInput(path, f"sets.{name}", f"is not there (there are: {known})", "take a suite without its task")
        sets[name] = _read_set(folder, name, manifest.sets[name])
    return sets


def _read_set(folder: Path, name: str, entry: SetEntry) -> GoldenSet:
    path = folder / Path(entry.file).name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(path, "", f"cannot be read ({error.strerror})", "run the data stage again") from None
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != entry.sha256:
        fix = "golden sets are frozen: take the file as it was, or make a new version of the data"
        raise Tampered(path, "sha256", f"is {sha256[:12]}…, the manifest vouches for {entry.sha256[:12]}…", fix)
    items = tuple(_parse_line(path, number, line, entry.kind) for number, line in enumerate(content.splitlines(), start=1))
    if not items:
        raise BadInput(path, "", "holds no items", "a golden set needs at least one item; remove the set, or fill it")
    lines: dict[str, int] = {}
    for number, item in enumerate(items, start=1):
        if item.id in lines:
            raise BadInput(path, f"line {number}: id", f"{item.id!r} is also on line {lines[item.id]}", "make ids unique")
        lines[item.id] = number
    return GoldenSet(name, sha256, content, items)


def _parse_line(path: Path, number: int, line: bytes, kind: Kind) -> Item:
    try:
        value = json.loads(line)
    except ValueError:  # JSON and UTF-8 errors alike
        raise BadInput(path, f"line {number}", "is not JSON", "correct the line") from None
    return parse(ITEM_OF_KIND[kind], value, path, f"line {number}")
