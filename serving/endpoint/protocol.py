"""OpenAI's HTTP shapes, as far as this endpoint honours them; source: the `openai` client's own types (3.52).

A field that the endpoint would have to ignore is refused by name: an answer that silently disregards a setting is wrong.
"""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import JSONResponse

Finish = Literal["stop", "length"]
AnswerObject = Literal["chat.completion", "chat.completion.chunk", "text_completion"]


class ApiError(Exception):
    """An answer that is an error, in OpenAI's form `{"error": {"message", "type", "param", "code"}}`."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """Returns the JSON body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Returns the HTTP response."""
        return JSONResponse(self.body(), status_code=self.status)


def invalid(place: Sequence[str | int], problem: str) -> ApiError:
    """Returns the 400 that names a request's wrong field by its path."""
    if place and place[0] == "prompt":  # the kinds of prompt are tried in turn, and are no part of the field's name
        place = place[:1]
    param = ".".join(str(part) for part in place)
    return ApiError(400, f"{param}: {problem}" if param else problem, param or None)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """JSON may escape half of a surrogate pair, which is no text and which no tokenizer takes."""
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            raise ValueError("holds half of a surrogate pair, which is not valid Unicode") from None
        return value


class StreamOptions(_Request):
    """What a stream says besides text."""

    include_usage: bool = False


class GenerationRequest(_Request):
    """What chat and plain completions have in common."""

    model: str
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    # Accepted at the value that changes nothing, because many clients send it.
    n: int | None = Field(default=1, ge=1, le=1)
    presence_penalty: float | None = Field(default=0, ge=0, le=0)
    frequency_penalty: float | None = Field(default=0, ge=0, le=0)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)

    @property
    def stops(self) -> tuple[str, ...]:
        """Returns the stop texts as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Returns whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(BaseModel):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """Returns the content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(GenerationRequest):
    """Body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @property
    def limit(self) -> int | None:
        """Returns the most new tokens that the client wants, None for as many as fit."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionRequest(GenerationRequest):
    """Body of `POST /v1/completions`: one prompt or several, as text or as token ids."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=5)
    echo: bool | None = False

    @property
    def prompts(self) -> list[str | list[int]]:
        """Returns every prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class Usage(BaseModel):
    """How many tokens a request cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


def usage(prompt: int, completion: int) -> Usage:
    """Returns the usage of one request."""
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class Logprobs(BaseModel):
    """Log probabilities of a completion, in the form of OpenAI's completions API (which lm-eval reads)."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class AssistantMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One answer of a chat."""

    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Finish


class ChatDelta(BaseModel):
    """What one chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """One answer's part of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: None = None
    finish_reason: Finish | None = None


class TextChoice(BaseModel):
    """One answer of a completion; in a stream, its next part."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Finish | None = None


Choices = list[ChatChoice] | list[ChatChunkChoice] | list[TextChoice]


class Answer(BaseModel):
    """A whole answer, or one chunk of a stream."""

    id: str
    object: AnswerObject
    created: int
    model: str
    system_fingerprint: str
    choices: Choices
    usage: Usage | None = None


def new_id(prefix: str) -> tuple[str, int]:
    """Returns an answer's id and its time of creation in Unix seconds."""
    return f"{prefix}-{uuid.uuid4().hex}", int(time.time())


def event(answer: Answer | dict[str, Any]) -> bytes:
    """Returns one server-sent event."""
    text = answer.model_dump_json() if isinstance(answer, Answer) else json.dumps(answer)
    return b"data: " + text.encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def model_list(models: dict[str, int]) -> dict[str, Any]:
    """Returns the body of `GET /v1/models`, from names and creation times in Unix seconds."""
    data = [{"id": n, "object": "model", "created": at, "owned_by": "goldpath"} for n, at in models.items()]
    return {"object": "list", "data": data}
