"""The kinds of rows and golden items, as strict schemas: what does not fit is refused with the field that is wrong."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, RootModel, model_validator

from data_contracts.config import RowKind
from data_contracts.messages import Change, Message, Sparse, Tools, Turns, read_tools, rewrite_in, texts_in
from lineage.section import Section

ToolsColumn: TypeAlias = Annotated[Tools | None, BeforeValidator(read_tools)]
Weight: TypeAlias = Annotated[float, Field(gt=0)]


class Document(Section):
    """A pretraining row: one text."""

    kind: ClassVar[RowKind] = "pretrain"
    id: str
    text: str
    source: str

    def texts(self) -> list[str]:
        """The texts that training reads."""
        return [self.text]

    def rewrite(self, change: Change) -> Self:
        """The row with every text changed."""
        return self.model_copy(update={"text": change(self.text)})


class Example(Sparse):
    """What all rows with answers have.

    Attributes:
        read: the fields whose texts training reads.
        tools: JSON schemas of the functions that the assistant may call.
        weight: how much the row counts beside others; absent is 1.
    """

    kind: ClassVar[RowKind]
    read: ClassVar[tuple[str, ...]]
    id: str
    tools: ToolsColumn = None
    weight: Weight | None = None

    def texts(self) -> list[str]:
        """The texts that training reads."""
        return [text for name in (*self.read, "tools") for text in texts_in(getattr(self, name))]

    def rewrite(self, change: Change) -> Self:
        """The row with every text changed."""
        return self.model_copy(update={name: rewrite_in(getattr(self, name), change) for name in (*self.read, "tools")})

    @property
    def is_chat(self) -> bool:
        """Whether it is made of messages, not of plain texts."""
        return not isinstance(getattr(self, self.read[0]), str)

    @property
    def calls_tools(self) -> bool:
        """Whether it offers tools, or calls one."""
        turns = [turn for name in self.read if self.is_chat for turn in getattr(self, name)]
        return bool(self.tools) or any(turn.tool_calls for turn in turns)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if len({isinstance(getattr(self, name), str) for name in self.read}) > 1:
            raise ValueError(f"{', '.join(self.read)} must all be texts, or all be messages")
        return self


class Conversation(Example):
    """An SFT row: messages, the assistant's being what is learnt."""

    kind: ClassVar[RowKind] = "sft"
    read: ClassVar[tuple[str, ...]] = ("messages",)
    messages: Annotated[list[Message], Field(min_length=1)]
    source: str
    tags: list[str] = Field(default_factory=list)


class Completion(Example):
    """An SFT row: a prompt, and the completion that is learnt."""

    kind: ClassVar[RowKind] = "sft"
    read: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    prompt: Turns
    completion: Turns
    source: str


class Preference(Example):
    """A preference row: of two answers to one prompt, the chosen one is the better."""

    kind: ClassVar[RowKind] = "preference"
    read: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    prompt: Turns
    chosen: Turns
    rejected: Turns
    source: str

    @model_validator(mode="after")
    def _one_answer_each(self) -> Self:
        for name in ("chosen", "rejected"):
            if not isinstance(answer := getattr(self, name), str) and len(answer) > 1:
                raise ValueError(f"`{name}` must be one message")
        return self


class Judged(Example):
    """An unpaired preference row: one answer to a prompt, and whether it is a good one."""

    kind: ClassVar[RowKind] = "unpaired"
    read: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    prompt: Turns
    completion: Turns
    label: bool
    source: str


Row: TypeAlias = Document | Conversation | Completion | Preference | Judged
_MODELS: dict[RowKind, type[Row]] = {
    "pretrain": Document,
    "sft": Conversation,
    "preference": Preference,
    "unpaired": Judged,
}


def row_model(kind: RowKind, value: Mapping[str, Any]) -> type[Row]:
    """Returns the schema of a row. An SFT row is a conversation, or a prompt and its completion."""
    if kind == "sft" and not value.keys().isdisjoint(Completion.read):
        return Completion
    return _MODELS[kind]


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
