"""HTTP on 127.0.0.1: take the port first, say when ready, answer what has begun before ending."""

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvicorn
from starlette.requests import Request
from starlette.types import ASGIApp

from lineage.errors import BadInput

HOST = "127.0.0.1"
BACKLOG = 2048
CLIENT_GONE = 499  # nginx' status for a client that went away first; nobody reads it, observations do
SECONDS_TO_DRAIN = 120  # an answer that takes longer than this after SIGTERM is cut

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed its connection before its answer was ready."""


def take_port(port: int) -> socket.socket:
    """Returns a socket bound to a port of 127.0.0.1; 0 takes a free one.

    Raises:
        BadInput: the port is in use or may not be used.
    """
    # asyncio switches Nagle's algorithm off only where the protocol is named; with it an answer's body waits 40 ms.
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((HOST, port))
    except (OSError, OverflowError) as error:
        taken.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise BadInput(
                "--port", str(port), "port in use", "choose another port, or `--port 0` for a free one"
            ) from None
        raise BadInput("--port", str(port), f"cannot be used ({error})", "choose a port from 1024 to 65535") from None
    return taken


def url_of(taken: socket.socket) -> str:
    """Returns the base URL of a bound socket."""
    return f"http://{HOST}:{taken.getsockname()[1]}"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._on_ready()


def serve(app: ASGIApp, taken: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serves an app until SIGTERM or SIGINT, then answers what has begun and returns (KeyboardInterrupt after SIGINT)."""
    config = uvicorn.Config(
        app,
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SECONDS_TO_DRAIN,
        # Longer than a pool keeps idle connections: else a reused connection may close under a request.
        timeout_keep_alive=300,
    )
    # uvicorn raises the signal again once it has drained; the drained process is done and not killed.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    _Server(config, on_ready).run(sockets=[taken])


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Awaits work for a client; cancels it if the client goes away. The request's body must have been read.

    Raises:
        ClientGone: there is nobody left to answer.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for waiting in (task, gone):
            waiting.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
