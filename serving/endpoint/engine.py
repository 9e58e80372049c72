"""The continuously batching CPU engine: requests join the running batch between two steps and leave it as they end.

Own rows instead of transformers' `ContinuousBatchingManager` (5.23), because faithfulness comes first:
- there, sampling or greedy (`do_sample`) and the seed are one choice for all requests; here each request has its own;
- it knows no stop texts and no log probabilities of a prompt, and has both to be built around it;
- on a CPU it is slow: 157 / 457 tokens/s (27 M parameters, 2 cores, batch 1 / 16) where plain `generate` gives 115 / 1045,
  because paged attention costs more than it saves without a GPU kernel.
The price of rows is padding: in one step all rows are read to the length of the longest one.

Weights are float32 by default: then the same request gives the same tokens alone and among sixteen others.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from serving.endpoint.cache import RowCache, Window
from serving.endpoint.load import LoadedModel
from serving.endpoint.sampling import Sampling, TokenOdds, choose, make_generator, odds
from serving.endpoint.text import TextStream

PREFILL_TOKENS = 1024  # prompt tokens (with padding) of one step: the running answers wait for no more than that


@dataclass(frozen=True)
class Delta:
    """What one step added to one answer.

    Attributes:
        text: new text, "" where nothing is certain yet.
        tokens: how many tokens were generated so far, the end token included.
        odds: log probabilities of the new tokens, where asked for.
        finish_reason: `stop` (end token or stop text) or `length`; "" while it goes on.
        error: why the engine gave up; "" where it did not.
    """

    text: str
    tokens: int
    odds: tuple[TokenOdds, ...] = ()
    finish_reason: Literal["stop", "length", ""] = ""
    error: str = ""


@dataclass(eq=False)
class Request:
    """One answer in the making. `pending` are the tokens that the model has not seen yet; `seen` counts those it has."""

    sampling: Sampling
    on_delta: Callable[[Delta], None]
    pending: list[int]
    text: TextStream
    generator: torch.Generator
    seen: int = 0
    tokens: int = 0
    cancelled: bool = False


class EngineFailed(Exception):
    """The engine takes no more requests, because a step of it raised."""


class Engine:
    """Runs one model for many requests, in a thread of its own.

    >>> engine = Engine(load_bundle(folder))
    >>> request = engine.submit(prompt_ids, Sampling(max_tokens=16), on_delta=print)
    >>> engine.cancel(request)

    Args:
        loaded: the model.
        slots: how many requests run at once; more of them wait in order.
        on_failure: called once, from the engine's thread, if a step raises. All requests have their error by then.
    """

    def __init__(
        self, loaded: LoadedModel, slots: int = 16, on_failure: Callable[[BaseException], None] | None = None
    ) -> None:
        self.loaded, self.slots, self.failed = loaded, slots, False
        self._on_failure = on_failure
        plain = loaded.model.config._attn_implementation == "eager"  # models for which no fused attention exists
        self._mask_added_in = loaded.model.dtype if plain else None
        self._cache = RowCache(loaded.model.config.num_hidden_layers, slots)
        self._rows: list[Request] = []
        self._waiting: deque[Request] = deque()
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        """Returns how many requests hold a slot."""
        return len(self._rows)

    @property
    def num_waiting(self) -> int:
        """Returns how many requests wait for a slot."""
        return len(self._waiting)

    def submit(self, prompt: Sequence[int], sampling: Sampling, on_delta: Callable[[Delta], None]) -> Request:
        """Queues a request. `on_delta` is called from the engine's thread; the last delta has a finish reason or an error.

        Args:
            prompt: at least one token id; with `sampling.max_tokens` it fits into the model's context.

        Raises:
            ValueError: the prompt is empty or does not fit.
            EngineFailed: an earlier step raised; nothing runs any more.
        """
        if not prompt or len(prompt) + sampling.max_tokens > self.loaded.context:
            raise ValueError(f"{len(prompt)} prompt and {sampling.max_tokens} new tokens, context {self.loaded.context}")
        text = TextStream(self.loaded.tokenizer, sampling.stop)
        request = Request(sampling, on_delta, list(prompt), text, make_generator(sampling.seed))
        with self._wake:
            if self.failed:
                raise EngineFailed
            self._waiting.append(request)
            self._wake.notify()
        return request

    def cancel(self, request: Request) -> None:
        """Takes a request out before the next step. It gets no further delta."""
        request.cancelled = True
        with self._wake:
            self._wake.notify()

    def close(self) -> None:
        """Stops after the current step. Requests that are not finished stay so: drain first."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    self._drop_cancelled()
                    if newcomers := self._admit():
                        self._step(newcomers, first=len(self._rows))
                    elif self._rows:
                        self._step(self._rows, first=0)
        except Exception as error:
            self._fail(error)

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._closing or self._rows or self._waiting)
            return not self._closing

    def _drop_cancelled(self) -> None:
        for row in reversed(range(len(self._rows))):
            if self._rows[row].cancelled:
                self._vacate(row)

    def _admit(self) -> list[Request]:
        """Takes waiting requests, in order, that have a slot and whose prompts fit into one step together."""
        taken: list[Request] = []
        longest = 0
        with self._wake:
            while self._waiting and len(self._rows) + len(taken) < self.slots:
                request = self._waiting[0]
                longest = max(longest, len(request.pending))
                if taken and longest * (len(taken) + 1) > PREFILL_TOKENS:
                    break
                self._waiting.popleft()
                if not request.cancelled:
                    taken.append(request)
        return taken

    def _step(self, batch: list[Request], first: int) -> None:
        """Feeds each request its pending tokens and gives it one new token. Newcomers get the rows after the last."""
        if first == len(self._rows):
            self._rows.extend(batch)
        logits, lasts = self._forward(batch, first)
        for offset in reversed(range(len(batch))):  # from the last row on: vacating a row moves only later ones
            request, row_logits = batch[offset], logits[offset]
            self._advance(request, row_logits, lasts[offset], first + offset)

    def _forward(self, batch: list[Request], first: int) -> tuple[Tensor, list[int]]:
        """Returns logits of shape (rows, kept positions, vocab) and, per row, which kept position is its last."""
        sizes = [len(request.pending) for request in batch]
        longest = max(sizes)
        tokens = torch.tensor([request.pending + [0] * (longest - len(request.pending)) for request in batch])
        starts = torch.tensor([[request.seen] for request in batch])
        # Padding lies after a row's end, where nobody looks; it must only stay inside the context.
        columns = (starts + torch.arange(longest)).clamp(max=self.loaded.context - 1)
        window = Window(first, first + len(batch), columns)
        self._cache.aim(window)
        kept = list(range(longest)) if any(r.sampling.echo for r in batch) else sorted({size - 1 for size in sizes})
        out = self.loaded.model(
            input_ids=tokens,
            attention_mask=window.mask(self._mask_added_in),
            position_ids=columns,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor(kept),
        )
        return out.logits, [kept.index(size - 1) for size in sizes]

    def _advance(self, request: Request, logits: Tensor, last: int, row: int) -> None:
        """Gives one request its next token, and frees its row if that was the last one."""
        sampling = request.sampling
        said = _echo(request, logits) if sampling.echo and not request.tokens and sampling.logprobs is not None else []
        request.seen += len(request.pending)
        token = choose(logits[last], sampling, request.generator)
        request.pending, request.tokens = [token], request.tokens + 1
        if sampling.logprobs is not None:
            said.append(odds(logits[last], token, sampling.logprobs))
        ended = token in self.loaded.ends
        text = "" if ended else request.text.push(token)
        reason: Literal["stop", "length", ""] = ""
        if ended or request.text.stopped or request.tokens == sampling.max_tokens:
            text += "" if request.text.stopped else request.text.finish()
            reason = "stop" if ended or request.text.stopped else "length"
            self._vacate(row)
        request.on_delta(Delta(text, request.tokens, tuple(said), reason))

    def _vacate(self, row: int) -> None:
        last = len(self._rows) - 1
        if row != last:
            self._cache.move(last, row)
            self._rows[row] = self._rows[last]
        self._rows.pop()

    def _fail(self, error: BaseException) -> None:
        with self._wake:
            self.failed = True
            requests = [*self._rows, *self._waiting]
            self._rows.clear()
            self._waiting.clear()
        for request in requests:
            request.on_delta(Delta("", request.tokens, error=f"{type(error).__name__}: {error}"))
        if self._on_failure:
            self._on_failure(error)


def _echo(request: Request, logits: Tensor) -> list[TokenOdds]:
    """Returns the odds of the prompt's own tokens; the first one has none, for nothing came before it."""
    rivals = request.sampling.logprobs or 0
    prompt = request.pending
    return [TokenOdds(prompt[0], None, {})] + [odds(logits[at], token, rivals) for at, token in enumerate(prompt[1:])]
