"""One bundle behind an OpenAI-compatible HTTP endpoint."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from serving.endpoint.answers import Work, chat_work, completion_work, stream, whole
from serving.endpoint.engine import Engine
from serving.endpoint.listen import CLIENT_GONE, ClientGone, serve, unless_gone, url_of
from serving.endpoint.load import Precision, load_bundle
from serving.endpoint.protocol import ApiError, ChatRequest, CompletionRequest, GenerationRequest, invalid, model_list


def make_app(engine: Engine, model: str) -> FastAPI:
    """Returns the endpoint's app.

    Args:
        model: the name that requests must carry.
    """
    app = FastAPI(title="Goldpath endpoint", version=engine.loaded.digest)
    created = int(time.time())

    @app.get("/healthz")
    async def healthz() -> Response:
        """The digest that is served, and how busy the engine is; 503 once the engine has failed."""
        state = {
            "digest": engine.loaded.digest,
            "model": model,
            "running": engine.num_running,
            "waiting": engine.num_waiting,
        }
        return JSONResponse(state, status_code=503 if engine.failed else 200)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served here."""
        return model_list({model: created})

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        """The next message of a conversation."""
        _check_model(body, model)
        return await _reply(request, body, chat_work(body, engine.loaded), engine)

    @app.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """The continuation of one text or several."""
        _check_model(body, model)
        return await _reply(request, body, completion_work(body, engine.loaded), engine)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> Response:
        first = dict(error.errors()[0])
        place = tuple(first["loc"])[1:]  # without "body"
        return invalid(place, str(first["msg"])).response()

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return ApiError(500, f"{type(error).__name__}: {error}").response()

    return app


def run_endpoint(
    bundle: Path,
    taken: socket.socket,
    digest: str | None,
    model: str | None,
    threads: int,
    slots: int,
    precision: Precision,
) -> int:
    """Serves a bundle until it is told to end; prints one JSON line `{"url", "digest", "model"}` once ready.

    Args:
        taken: the port's socket (`listen.take_port`).
        digest: the digest that the bundle must have; None takes the manifest's own.
        model: the name that requests carry; None takes the folder's name.

    Raises:
        Tampered: the bundle is not what its digest says. Nothing was loaded.
        BadInput: there is no such bundle, or it cannot be served faithfully.
    """
    torch.set_num_threads(threads)
    loaded = load_bundle(bundle, digest, precision)
    name = model or bundle.resolve().name
    engine = Engine(loaded, slots, on_failure=_end_with_error)

    def say_ready() -> None:
        print(json.dumps({"url": url_of(taken), "digest": loaded.digest, "model": name}), flush=True)

    try:
        serve(make_app(engine, name), taken, say_ready)
    finally:
        engine.close()
    return int(engine.failed)


def _end_with_error(error: BaseException) -> None:
    print(f"error: the engine failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)  # the open requests get their error first


def _check_model(body: GenerationRequest, model: str) -> None:
    if body.model != model:
        raise ApiError(404, f"the model `{body.model}` does not exist here; there is `{model}`", "model", "model_not_found")


async def _reply(request: Request, body: GenerationRequest, work: Work, engine: Engine) -> Response:
    if engine.failed:  # before a stream has begun: so that the gateway can still ask another arm
        raise ApiError(503, "the engine has failed and is being restarted", code="engine_failed")
    if body.stream:
        return StreamingResponse(
            stream(engine, work), media_type="text/event-stream", headers={"cache-control": "no-cache"}
        )
    try:
        answer = await unless_gone(request, whole(engine, work))
    except ClientGone:
        return Response(status_code=CLIENT_GONE)
    return Response(answer.model_dump_json(), media_type="application/json")
