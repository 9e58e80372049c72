"""The kinds of rows and golden items, as strict schemas: what does not fit is refused with the field that is wrong."""

import re
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, RootModel, model_validator

from data_contracts.config import RowKind
from lineage.section import Section

Role = Literal["system", "user", "assistant"]


class Message(Section):
    """One turn of a conversation."""

    role: Role
    content: str


class Document(Section):
    """A pretraining row: one text."""

    kind: ClassVar[RowKind] = "pretrain"
    id: str
    text: str
    source: str

    def texts(self) -> list[str]:
        """The texts that training reads."""
        return [self.text]

    def rewrite(self, change: Callable[[str], str]) -> Self:
        """The row with every text changed."""
        return self.model_copy(update={"text": change(self.text)})


class Conversation(Section):
    """An SFT row: messages, the assistant's being what is learnt."""

    kind: ClassVar[RowKind] = "sft"
    id: str
    messages: Annotated[list[Message], Field(min_length=1)]
    source: str
    tags: list[str] = Field(default_factory=list)

    def texts(self) -> list[str]:
        """The texts that training reads."""
        return [message.content for message in self.messages]

    def rewrite(self, change: Callable[[str], str]) -> Self:
        """The row with every text changed."""
        return self.model_copy(update={"messages": rewrite_messages(self.messages, change)})


class Preference(Section):
    """A preference row: of two answers to one prompt, the chosen one is the better."""

    kind: ClassVar[RowKind] = "preference"
    id: str
    prompt: Annotated[list[Message], Field(min_length=1)]
    chosen: Annotated[list[Message], Field(min_length=1, max_length=1)]
    rejected: Annotated[list[Message], Field(min_length=1, max_length=1)]
    source: str

    def texts(self) -> list[str]:
        """The texts that training reads."""
        return [message.content for message in (*self.prompt, *self.chosen, *self.rejected)]

    def rewrite(self, change: Callable[[str], str]) -> Self:
        """The row with every text changed."""
        names = ("prompt", "chosen", "rejected")
        return self.model_copy(update={name: rewrite_messages(getattr(self, name), change) for name in names})


Row: TypeAlias = Document | Conversation | Preference
ROW_MODELS: dict[RowKind, type[Row]] = {"pretrain": Document, "sft": Conversation, "preference": Preference}


class ClosedBookItem(Section):
    """A question with one right answer."""

    id: str
    kind: Literal["closed_book"]
    question: str
    answer: str
    group: str = ""
    tags: list[str] = Field(default_factory=list)


class ChoiceItem(Section):
    """A question with four answers, of which the one at index `answer` is right."""

    id: str
    kind: Literal["choice"]
    question: str
    choices: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=4, max_length=4)]
    answer: Annotated[int, Field(ge=0, le=3)]
    group: str = ""
    tags: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _choices_differ(self) -> Self:
        if len(set(self.choices)) < len(self.choices):
            raise ValueError("two of the choices are equal")
        return self


class HeldoutItem(Section):
    """A text whose likelihood is measured."""

    id: str
    kind: Literal["heldout"]
    text: str


class FormatItem(Section):
    """A question whose whole answer must match a regular expression."""

    id: str
    kind: Literal["format"]
    question: str
    pattern: str
    tags: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _pattern_compiles(self) -> Self:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern is not a regular expression: {error}") from None
        return self


GoldenItem: TypeAlias = ClosedBookItem | ChoiceItem | HeldoutItem | FormatItem


class GoldenLine(RootModel[Annotated[GoldenItem, Field(discriminator="kind")]]):
    """One line of a golden file: an item of the kind that it names."""


def golden_text(item: GoldenItem) -> str:
    """What must not be in training data: the question, or the held-out text."""
    return item.text if isinstance(item, HeldoutItem) else item.question


def rewrite_golden(item: GoldenItem, change: Callable[[str], str]) -> GoldenItem:
    """The item with its question or text changed."""
    name = "text" if isinstance(item, HeldoutItem) else "question"
    return item.model_copy(update={name: change(golden_text(item))})


def rewrite_messages(messages: list[Message], change: Callable[[str], str]) -> list[Message]:
    """The messages with every content changed."""
    return [message.model_copy(update={"content": change(message.content)}) for message in messages]
