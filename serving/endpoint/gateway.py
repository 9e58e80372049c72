"""The gateway: every client's one address. Splits traffic over arms, counts and measures, and drops nothing on the way.

A request belongs to one arm from its first byte to its last. Until the first byte has gone out, another arm (or the same
one, restarted) may still answer it, because generation has no side effects; after that only its own arm can.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as HttpRoute

from serving.endpoint.board import Board
from serving.endpoint.listen import CLIENT_GONE, ClientGone, serve, take_port, unless_gone, url_of
from serving.endpoint.protocol import ApiError, model_list
from serving.endpoint.proxy import Ask, Proxy
from serving.endpoint.sticky import choose_arm, session_of
from serving.endpoint.supervisor import Supervisor
from serving.metrics import TrafficLog
from serving.routes import ArmName, Route

ARM_HEADER = "x-goldpath-arm"
LARGEST_BODY = 8 * 2**20  # bytes


class Gateway:
    """The app's handlers over one routes file. Lives inside one event loop.

    Args:
        routes: the routes file; it is watched.
        threads: CPU threads of each endpoint.
        slots: requests that run at once in each endpoint.
    """

    def __init__(self, routes: Path, threads: int, slots: int) -> None:
        self._supervisor = Supervisor(threads, slots)
        self._board = Board(routes, self._supervisor)
        self._log = TrafficLog()
        self._proxy = Proxy(self._board, self._log)
        self._follower: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Follows the routes while the app runs, and ends every endpoint with it."""
        self._follower = asyncio.create_task(self._board.follow())
        try:
            yield
        finally:
            self._follower.cancel()
            await self._proxy.close()
            await self._supervisor.close()

    async def generate(self, request: Request) -> Response:
        """`POST /v1/chat/completions` and `POST /v1/completions`."""
        ask, route = await self._ask(request)
        try:
            return await unless_gone(request, self._proxy.answer(ask, route))
        except ClientGone:
            return Response(status_code=CLIENT_GONE)

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`: every model with a route."""
        return JSONResponse(model_list(dict.fromkeys(self._board.models, int(self._log.started_at))))

    async def status(self, request: Request) -> Response:
        """`GET /goldpath/status`: the routes in force and the state of their endpoints."""
        return JSONResponse(self._board.status())

    async def observations(self, request: Request) -> Response:
        """`GET /goldpath/observations?model=&after=SEQ`."""
        after = request.query_params.get("after") or "0"
        if not after.isdecimal():
            raise ApiError(400, f"after: {after!r} is not a sequence number", "after")
        page = self._log.page(request.query_params.get("model") or None, int(after))
        return Response(page.model_dump_json(), media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: Prometheus' text format."""
        return Response(self._log.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def healthz(self, request: Request) -> Response:
        """`GET /healthz`: whether the gateway follows its routes file."""
        follows = self._follower is not None and not self._follower.done()
        return JSONResponse({"status": "ok" if follows else "routes are not followed"}, 200 if follows else 503)

    async def _ask(self, request: Request) -> tuple[Ask, Route]:
        content = await _read(request)
        try:
            body = json.loads(content)
        except ValueError as error:
            raise ApiError(400, f"the body is not JSON: {error}") from None
        if not isinstance(body, dict) or not isinstance(body.get("model"), str):
            raise ApiError(400, "model: name the model in a JSON object", "model")
        model = body["model"]
        route = self._board.route(model)
        if route is None:
            known = ", ".join(self._board.models) or "none yet"
            raise ApiError(404, f"the model `{model}` does not exist; there is: {known}", "model", "model_not_found")
        arm, forced = self._arm(request, body, route)
        return Ask(request.url.path, content, bool(body.get("stream")), model, arm, forced), route

    def _arm(self, request: Request, body: dict[str, Any], route: Route) -> tuple[ArmName, bool]:
        forced = request.headers.get(ARM_HEADER)
        if forced == "stable" or forced == "canary":
            if forced not in route.arms():
                raise ApiError(404, f"the model `{route.model}` has no {forced} arm", ARM_HEADER, "arm_not_found")
            return forced, True
        if forced is not None:
            raise ApiError(400, f"{ARM_HEADER}: is {forced!r}, neither `stable` nor `canary`", ARM_HEADER)
        client = request.client.host if request.client else ""
        return choose_arm(route, session_of(request.headers, body, client)), False


def make_gateway(routes: Path, threads: int = 1, slots: int = 16) -> Starlette:
    """Returns the gateway's app; its endpoints start with it and end with it.

    Raises:
        BadInput: the routes file is not one.
    """
    gateway = Gateway(routes, threads, slots)
    return Starlette(
        routes=[
            HttpRoute("/v1/chat/completions", gateway.generate, methods=["POST"]),
            HttpRoute("/v1/completions", gateway.generate, methods=["POST"]),
            HttpRoute("/v1/models", gateway.models),
            HttpRoute("/goldpath/status", gateway.status),
            HttpRoute("/goldpath/observations", gateway.observations),
            HttpRoute("/metrics", gateway.metrics),
            HttpRoute("/healthz", gateway.healthz),
        ],
        exception_handlers={ApiError: _refused, HTTPException: _unknown, Exception: _broken},
        lifespan=gateway.lifespan,
    )


def run_gateway(routes: Path, port: int, threads: int, slots: int) -> int:
    """Runs the gateway until it is told to end; prints one JSON line `{"url", "routes"}` once it listens.

    Raises:
        BadInput: the port is in use, or the routes file is not one.
    """
    taken = take_port(port)
    app = make_gateway(routes, threads, slots)
    serve(app, taken, lambda: print(json.dumps({"url": url_of(taken), "routes": str(routes)}), flush=True))
    return 0


async def _read(request: Request) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > LARGEST_BODY:
            raise ApiError(413, f"the body is larger than {LARGEST_BODY} bytes")
    return bytes(content)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()


async def _broken(request: Request, error: Exception) -> Response:
    return ApiError(500, f"{type(error).__name__}: {error}").response()
