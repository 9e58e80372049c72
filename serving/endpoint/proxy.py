"""Passes one request to an arm's endpoint and its answer back, whole or streamed, and notes what it saw."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import httpx
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serving.endpoint.board import Board
from serving.endpoint.listen import CLIENT_GONE
from serving.endpoint.observe import Reading
from serving.endpoint.protocol import ApiError, event
from serving.endpoint.supervisor import Endpoint
from serving.metrics import Observation, TrafficLog
from serving.routes import Arm, ArmName, Route

SECONDS_FOR_AN_ARM = 30.0  # how long a request waits for an endpoint that starts again
# An endpoint answers on the same machine: no connection within 2 s means that it is gone. Reading has the whole
# generation to wait for, where it is not streamed.
TIMEOUT = httpx.Timeout(120, connect=2)
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=60)
JSON = {"content-type": "application/json"}


class ArmFailed(Exception):
    """An arm gave no answer, and nothing has gone out to the client yet."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Ask:
    """A client's request, and the arm that it belongs to.

    Attributes:
        forced: the client named the arm: a probe. No other arm answers it, and it is no traffic.
    """

    path: str
    content: bytes
    stream: bool
    model: str
    arm: ArmName
    forced: bool
    arrived: float = field(default_factory=time.monotonic)
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class _Try:
    """One request at one endpoint; `last` where no other arm can answer."""

    ask: Ask
    name: ArmName
    arm: Arm
    endpoint: Endpoint
    last: bool

    @property
    def headers(self) -> dict[str, str]:
        return {"x-goldpath-digest": self.arm.digest, "x-goldpath-arm": self.name}


class Proxy:
    """Finds an arm that answers."""

    def __init__(self, board: Board, log: TrafficLog) -> None:
        self._board, self._log = board, log
        self._client = httpx.AsyncClient(timeout=TIMEOUT, limits=LIMITS, trust_env=False)

    async def close(self) -> None:
        """Closes the pooled connections."""
        await self._client.aclose()

    async def answer(self, ask: Ask, route: Route) -> Response:
        """Returns the answer of the request's arm, or of the stable arm where the canary gives none.

        Raises:
            ApiError: 503, if no arm answers in time.
        """
        if ask.arm == "canary" and not ask.forced and route.stable is not None:
            try:
                return await self._ask_once(ask, route, "canary", last=False)
            except ArmFailed:
                return await self._ask_patiently(ask, "stable")
        return await self._ask_patiently(ask, ask.arm)

    async def _ask_patiently(self, ask: Ask, name: ArmName) -> Response:
        """Asks the last arm that is left: waits for its endpoint, and asks again if that dies before it answers."""
        deadline = ask.arrived + SECONDS_FOR_AN_ARM
        while True:
            route = self._board.route(ask.model)  # it may change while we wait
            if route is None:
                raise ApiError(404, f"the model `{ask.model}` was withdrawn", "model", "model_not_found")
            if name not in route.arms() and not ask.forced:
                name = next(iter(route.arms()), name)  # a lone canary that became stable
            try:
                return await self._ask_once(ask, route, name, last=True)
            except ArmFailed as failed:
                endpoint = self._endpoint(route, name)
                remaining = deadline - time.monotonic()
                if endpoint is None or endpoint.hopeless or remaining <= 0:
                    message = f"the {name} arm of `{ask.model}` does not answer: {failed.reason}"
                    raise ApiError(failed.status, message, code="arm_unavailable") from None
                await endpoint.wait_ready(remaining)

    def _endpoint(self, route: Route, name: ArmName) -> Endpoint | None:
        arm = route.arms().get(name)
        return self._board.endpoint(route.model, arm) if arm else None

    async def _ask_once(self, ask: Ask, route: Route, name: ArmName, last: bool) -> Response:
        """Asks one arm once.

        Raises:
            ArmFailed: it is not ready, went away, or (unless it is the last one) answered with a server error.
        """
        arm = route.arms().get(name)
        endpoint = self._endpoint(route, name)
        if arm is None or endpoint is None:
            raise ArmFailed(503, "there is none")
        attempt = _Try(ask, name, arm, endpoint, last)
        if not endpoint.ready.is_set():
            reason = endpoint.error or "it is starting"
            if not last and (endpoint.ever_ready or endpoint.hopeless):  # an arm that only starts has not failed yet
                self.note(attempt, 503, Reading(), reason)
            raise ArmFailed(503, reason)
        try:
            return await self._send(attempt)
        except httpx.HTTPError as error:
            endpoint.suspect()
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            self.note(attempt, 502, Reading(), reason)
            raise ArmFailed(502, reason) from None

    async def _send(self, attempt: _Try) -> Response:
        ask = attempt.ask
        with ExitStack() as held:
            url = held.enter_context(attempt.endpoint.request())
            request = self._client.build_request("POST", url + ask.path, content=ask.content, headers=JSON)
            try:
                answer = await self._client.send(request, stream=True)
                chunks = answer.aiter_raw()
                if ask.stream and answer.status_code == 200:
                    first = await anext(chunks, b"")  # until these bytes are here, another arm could still answer
                    return _Relay(self, attempt, answer, first, chunks, held.pop_all())
                content = b"".join([chunk async for chunk in chunks])
            except asyncio.CancelledError:
                self.note(attempt, CLIENT_GONE, Reading(), "")
                raise
        return self._whole(attempt, answer, content)

    def _whole(self, attempt: _Try, answer: httpx.Response, content: bytes) -> Response:
        reading = Reading()
        status = answer.status_code
        reading.body(content)
        self.note(attempt, status, reading, f"HTTP {status}: {reading.error}" if status >= 500 else "")
        if status >= 500 and not attempt.last:
            raise ArmFailed(status, reading.error)
        kind = answer.headers.get("content-type", "application/json")
        return Response(content, status_code=status, headers={**attempt.headers, "content-type": kind})

    def note(self, attempt: _Try, status: int, reading: Reading, error: str) -> None:
        """Records what an arm did with a request."""
        answered = status == 200 and not error
        self._log.record(
            Observation(
                at=attempt.ask.at,
                model=attempt.ask.model,
                digest=attempt.arm.digest,
                arm=attempt.name,
                status=status,
                seconds=time.monotonic() - attempt.ask.arrived,
                completion_tokens=reading.tokens,
                finish_reason=reading.finish_reason,
                empty=answered and reading.empty,
                malformed=answered and reading.malformed,
                error=error,
                probe=attempt.ask.forced,
            )
        )


class _Relay(StreamingResponse):
    """A streamed answer on its way. However it ends (also before it began), it is noted and its endpoint released."""

    def __init__(
        self,
        proxy: Proxy,
        attempt: _Try,
        answer: httpx.Response,
        first: bytes,
        chunks: AsyncIterator[bytes],
        held: ExitStack,
    ) -> None:
        kind = answer.headers.get("content-type", "text/event-stream")
        headers = {**attempt.headers, "content-type": kind, "cache-control": "no-cache"}
        super().__init__(self._pass_on(first, chunks), headers=headers)
        self._proxy, self._attempt, self._answer, self._held = proxy, attempt, answer, held
        self._reading, self._status = Reading(), CLIENT_GONE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._held.close()
            self._proxy.note(self._attempt, self._status, self._reading, self._reading.error)
            await self._answer.aclose()

    async def _pass_on(self, first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        reading = self._reading
        try:
            reading.chunk(first)
            yield first
            async for chunk in chunks:
                reading.chunk(chunk)
                yield chunk
            self._status = 200
        except httpx.HTTPError as error:
            self._status, reading.error = 502, f"broke off: {type(error).__name__}"
            self._attempt.endpoint.suspect()
            yield event(ApiError(502, f"the answer {reading.error}", code="arm_unavailable").body())
