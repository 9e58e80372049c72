"""Turns of a conversation in the form that chat templates read, tool calls included, and the texts in them."""

import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from lineage.section import Section

Role = Literal["system", "user", "assistant", "tool"]
Change: TypeAlias = Callable[[str], str]
MAX_DEPTH = 64  # of lists and objects in a row


class Sparse(Section):
    """A section that is written without its absent fields, so that a row keeps the form that it came in."""

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}


class Function(Section):
    """The function that a call names, with its arguments; a JSON text of them, as HTTP APIs give it, is read."""

    name: Annotated[str, Field(min_length=1)]
    arguments: dict[str, Any]

    @field_validator("arguments", mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        return _read_json(value, "arguments")


class ToolCall(Sparse):
    """One call of a tool by the assistant."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Function


class Message(Sparse):
    """One turn. The assistant may call tools, with words or without; a `tool` turn is what one of them answered."""

    role: Role
    content: str = ""
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    name: str | None = None
    tool_call_id: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _no_words(cls, value: Any) -> Any:
        return "" if value is None else value

    @model_validator(mode="after")
    def _says_or_calls(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only the assistant has `tool_calls`")
        if not self.tool_calls and "content" not in self.model_fields_set:
            raise ValueError("`content` is missing")
        return self

    @property
    def turn(self) -> str:
        """The role; an assistant's turn that calls tools is a `call`."""
        return "call" if self.tool_calls else self.role

    def texts(self) -> Iterator[str]:
        """Yields the texts of the turn: what is said, and all that its calls are made of."""
        yield self.content
        if self.name:
            yield self.name
        for call in self.tool_calls or []:
            yield call.function.name
            yield from texts_in(call.function.arguments)

    def rewrite(self, change: Change) -> Self:
        """The turn with every text changed, but for the names of tools."""
        changed: dict[str, Any] = {"content": change(self.content)}
        if self.tool_calls:
            changed["tool_calls"] = [_rewrite_call(call, change) for call in self.tool_calls]
        return self.model_copy(update=changed)


# A plain text, or messages. Which of the two is read from the value, so that an error names what is wrong in it.
Turns: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Message], Field(min_length=1), Tag("messages")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "messages"),
]
Tools: TypeAlias = list[dict[str, Any]]  # JSON schemas of the functions that may be called


def read_tools(value: Any) -> Any:
    """Reads a `tools` column: JSON schemas, or their JSON text.

    Raises:
        ValueError: a tool has no name.
    """
    value = _read_json(value, "tools")
    if isinstance(value, list) and not all(isinstance(tool, dict) and tool_name(tool) for tool in value):
        raise ValueError("every tool needs a `name`, or a `function` with one")
    return value or None


def tool_name(tool: dict[str, Any]) -> str:
    """Returns the name of the function that a JSON schema describes, wrapped as `{"function": …}` or not; "" without."""
    described = tool.get("function", tool)
    name = described.get("name") if isinstance(described, dict) else None
    return name if isinstance(name, str) else ""


def as_messages(turns: str | list[Message], role: Role) -> list[Message]:
    """Returns messages as they are, and a plain text as one turn of a role."""
    return [Message(role=role, content=turns)] if isinstance(turns, str) else turns


def texts_in(value: Any) -> Iterator[str]:
    """Yields every text in a value: a text, turns, or JSON with its keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Message):
        yield from value.texts()
    elif isinstance(value, (list, dict)):
        yield from value if isinstance(value, dict) else ()
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_in(part)


def rewrite_in(value: Any, change: Change) -> Any:
    """Returns a value with every text in it changed, but for the keys of JSON.

    The white space around a text stays: where a plain prompt and its completion meet, it is part of what is learnt.
    """
    if isinstance(value, str):
        inner = value.strip()
        start = value.find(inner)
        return value[:start] + change(inner) + value[start + len(inner) :]
    if isinstance(value, Message):
        return value.rewrite(change)
    if isinstance(value, dict):
        return {name: rewrite_in(part, change) for name, part in value.items()}
    return [rewrite_in(part, change) for part in value] if isinstance(value, list) else value


def _rewrite_call(call: ToolCall, change: Change) -> ToolCall:
    arguments = rewrite_in(call.function.arguments, change)
    return call.model_copy(update={"function": call.function.model_copy(update={"arguments": arguments})})


def refuse_deep(value: Any) -> None:
    """Refuses a value whose lists and objects are nested more than `MAX_DEPTH` deep: rows are walked through recursively.

    Raises:
        ValueError: it is.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        parts = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list)))
        level = [part for inside in parts for part in inside if isinstance(part, (dict, list))]
        if not level:
            return
    raise ValueError("is nested too deeply")


def _read_json(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        read = json.loads(value)
    except RecursionError:
        raise ValueError(f"the text of {what} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"the text of {what} is no JSON ({error})") from None
    refuse_deep(read)
    return read
