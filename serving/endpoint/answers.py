"""Turns requests into engine work and its deltas into answers, whole or streamed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from serving.endpoint.engine import Delta, Engine, EngineFailed
from serving.endpoint.load import LoadedModel
from serving.endpoint.protocol import (
    DONE,
    Answer,
    AnswerObject,
    ApiError,
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatRequest,
    Choices,
    CompletionRequest,
    Finish,
    GenerationRequest,
    Logprobs,
    TextChoice,
    event,
    new_id,
    usage,
)
from serving.endpoint.sampling import Sampling, TokenOdds
from serving.endpoint.text import REPLACEMENT


@dataclass
class Work:
    """What a request asks of the engine, and what the answer says about itself."""

    kind: Literal["chat", "text"]
    prompts: list[list[int]]
    samplings: list[Sampling]
    model: str
    fingerprint: str
    wants_usage: bool
    id: str = field(init=False)
    created: int = field(init=False)
    generated: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id, self.created = new_id("chatcmpl" if self.kind == "chat" else "cmpl")

    def count(self) -> tuple[int, int]:
        """Returns the prompt tokens and the tokens generated so far."""
        return sum(map(len, self.prompts)), sum(self.generated.values())


def chat_work(body: ChatRequest, loaded: LoadedModel) -> Work:
    """Renders a conversation with the bundle's own chat template.

    Raises:
        ApiError: 400, if the template refuses it or the context is too small.
    """
    from jinja2 import TemplateError

    messages = [{"role": message.role, "content": message.text} for message in body.messages]
    _require_short(sum(len(message["content"]) for message in messages), loaded, "messages")
    try:
        prompt = loaded.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    except (TemplateError, ValueError) as error:
        raise ApiError(400, f"the model's chat template refuses these messages: {error}", "messages") from None
    sampling = _sampling(body, loaded, prompt, body.limit, "messages")
    return _work("chat", body, loaded, [prompt], [sampling])


def completion_work(body: CompletionRequest, loaded: LoadedModel) -> Work:
    """Encodes the prompts of a completion.

    Raises:
        ApiError: 400, if a prompt is empty, holds an unknown token, or does not fit.
    """
    if not body.prompts:
        raise ApiError(400, "prompt: is empty", "prompt")
    for given in body.prompts:
        _require_short(len(given), loaded, "prompt")
    prompts = [list(loaded.tokenizer(p)["input_ids"]) if isinstance(p, str) else p for p in body.prompts]
    limit = body.max_tokens if body.max_tokens is not None else 16
    samplings = []
    for prompt in prompts:
        if not prompt or not all(0 <= token < loaded.vocabulary for token in prompt):
            raise ApiError(400, f"prompt: needs token ids from 0 to {loaded.vocabulary - 1}, at least one", "prompt")
        samplings.append(_sampling(body, loaded, prompt, limit, "prompt", body.logprobs, bool(body.echo)))
    return _work("text", body, loaded, prompts, samplings)


async def deltas(engine: Engine, work: Work) -> AsyncIterator[tuple[int, Delta]]:
    """Runs a request and yields (choice, delta) as they come; leaving early frees the engine's slots.

    Raises:
        ApiError: 500, if the engine gave up; 503, if it had done so before.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()

    def push(index: int, delta: Delta) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, (index, delta))

    requests = []
    try:
        for index, (prompt, sampling) in enumerate(zip(work.prompts, work.samplings, strict=True)):
            requests.append(engine.submit(prompt, sampling, partial(push, index)))
        unfinished = len(requests)
        while unfinished:
            index, delta = await queue.get()
            if delta.error:
                raise ApiError(500, f"the engine failed: {delta.error}", code="engine_failed")
            work.generated[index] = delta.tokens
            unfinished -= bool(delta.finish_reason)
            yield index, delta
    except EngineFailed:
        raise ApiError(503, "the engine has failed and is being restarted", code="engine_failed") from None
    finally:
        for request in requests:
            engine.cancel(request)


async def whole(engine: Engine, work: Work) -> Answer:
    """Returns the finished answer."""
    texts = [_echoed(engine.loaded, work, index) for index in range(len(work.prompts))]
    said: list[list[TokenOdds]] = [[] for _ in texts]
    finish: list[Finish] = ["stop" for _ in texts]
    async for index, delta in deltas(engine, work):
        texts[index] += delta.text
        said[index].extend(delta.odds)
        finish[index] = delta.finish_reason or "stop"
    if work.kind == "chat":
        chat = [ChatChoice(index=0, message=AssistantMessage(content=texts[0]), finish_reason=finish[0])]
        return _answer(work, "chat.completion", chat, counted=True)
    logprobs = [_logprobs(engine.loaded, *pair) for pair in zip(work.samplings, said, strict=True)]
    choices = [
        TextChoice(index=index, text=text, finish_reason=finish[index], logprobs=logprobs[index])
        for index, text in enumerate(texts)
    ]
    return _answer(work, "text_completion", choices, counted=True)


async def stream(engine: Engine, work: Work) -> AsyncIterator[bytes]:
    """Yields the answer as server-sent events, ended by `[DONE]`; an engine failure is an error event instead."""
    kind: AnswerObject = "chat.completion.chunk" if work.kind == "chat" else "text_completion"
    try:
        if work.kind == "chat":
            first = ChatChunkChoice(index=0, delta=ChatDelta(role="assistant", content=""))
            yield event(_answer(work, kind, [first]))
        started: set[int] = set()
        async for index, delta in deltas(engine, work):
            text = delta.text if index in started else _echoed(engine.loaded, work, index) + delta.text
            started.add(index)
            if text or delta.odds or delta.finish_reason:
                yield event(_answer(work, kind, _next_part(engine.loaded, work, index, text, delta)))
        if work.wants_usage:
            yield event(_answer(work, kind, [], counted=True))
        yield DONE
    except ApiError as error:
        yield event(error.body())


def _next_part(loaded: LoadedModel, work: Work, index: int, text: str, delta: Delta) -> Choices:
    finish = delta.finish_reason or None
    if work.kind == "chat":
        said = ChatDelta(content=text) if text else ChatDelta()
        return [ChatChunkChoice(index=0, delta=said, finish_reason=finish)]
    logprobs = _logprobs(loaded, work.samplings[index], delta.odds)
    return [TextChoice(index=index, text=text, finish_reason=finish, logprobs=logprobs)]


def _answer(work: Work, kind: AnswerObject, choices: Choices, counted: bool = False) -> Answer:
    return Answer(
        id=work.id,
        object=kind,
        created=work.created,
        model=work.model,
        system_fingerprint=work.fingerprint,
        choices=choices,
        usage=usage(*work.count()) if counted else None,
    )


def _require_short(length: int, loaded: LoadedModel, param: str) -> None:
    """Refuses what cannot fit before it is tokenised, which would keep everybody waiting."""
    if length > loaded.longest_prompt:
        message = f"This model's maximum context length is {loaded.context} tokens, and the {param} cannot fit into it."
        raise ApiError(400, message, param, "context_length_exceeded")


def _sampling(
    body: GenerationRequest,
    loaded: LoadedModel,
    prompt: Sequence[int],
    limit: int | None,
    param: str,
    logprobs: int | None = None,
    echo: bool = False,
) -> Sampling:
    room = loaded.context - len(prompt)
    wanted = limit if limit is not None else max(1, room)
    if wanted > room:
        message = (
            f"This model's maximum context length is {loaded.context} tokens. However, you requested "
            f"{len(prompt) + wanted} tokens ({len(prompt)} in the {param}, {wanted} in the completion)."
        )
        raise ApiError(400, message, param, "context_length_exceeded")
    return Sampling(
        max_tokens=wanted,
        temperature=body.temperature if body.temperature is not None else loaded.temperature,
        top_p=body.top_p if body.top_p is not None else loaded.top_p,
        seed=body.seed,
        stop=body.stops,
        logprobs=logprobs,
        echo=echo,
    )


def _work(
    kind: Literal["chat", "text"],
    body: GenerationRequest,
    loaded: LoadedModel,
    prompts: list[list[int]],
    samplings: list[Sampling],
) -> Work:
    return Work(kind, prompts, samplings, body.model, loaded.digest, body.wants_usage)


def _echoed(loaded: LoadedModel, work: Work, index: int) -> str:
    """Returns the prompt's text where the client wants it back."""
    return str(loaded.tokenizer.decode(work.prompts[index])) if work.samplings[index].echo else ""


def _logprobs(loaded: LoadedModel, sampling: Sampling, said: Sequence[TokenOdds]) -> Logprobs | None:
    if sampling.logprobs is None:
        return None
    tokens = [_name(loaded, odd.token) for odd in said]
    offsets = [0]
    for token in tokens[:-1]:
        offsets.append(offsets[-1] + len(token))
    return Logprobs(
        tokens=tokens,
        token_logprobs=[odd.logprob for odd in said],
        top_logprobs=[{_name(loaded, token): value for token, value in odd.top.items()} or None for odd in said],
        text_offset=offsets[: len(tokens)],
    )


def _name(loaded: LoadedModel, token: int) -> str:
    """Returns a token's text, or its vocabulary entry where its bytes alone are no character: names stay distinct."""
    text = str(loaded.tokenizer.decode([token]))
    return str(loaded.tokenizer.convert_ids_to_tokens(token)) if REPLACEMENT in text else text
