"""One endpoint process per served bundle: started, verified, restarted when it dies, drained before it is stopped."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from lineage.child import die_with_parent
from lineage.privacy import TELEMETRY_OFF
from serving.endpoint.listen import SECONDS_TO_DRAIN
from serving.routes import Arm

SECONDS_TO_START = 120
SECONDS_TO_STOP = 10
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds before a restart; doubled each time an endpoint dies before it was ready


@dataclass(frozen=True)
class Served:
    """A bundle under the model name that its requests carry: what one endpoint process serves.

    Arms of one digest share a process, whatever their versions and folders are called.
    """

    model: str
    digest: str
    bundle: Path = field(compare=False)

    @classmethod
    def of(cls, model: str, arm: Arm) -> "Served":
        """Returns what serves an arm."""
        return cls(model, arm.digest, arm.bundle)


class StartFailed(Exception):
    """An endpoint did not become ready."""


class Endpoint:
    """One endpoint and the task that keeps it running.

    Attributes:
        ready: set while it answers.
        url: its base URL while ready.
        pid: its process id, None while there is no process.
        in_flight: how many requests the gateway has open with it.
        ever_ready: whether it was ready once; before that it is starting, afterwards it is down.
        error: why it last failed.
        restarts: how often it was started again.
    """

    def __init__(self, served: Served, threads: int, slots: int) -> None:
        self.served = served
        self.ready = asyncio.Event()
        self.url = ""
        self.pid: int | None = None
        self.in_flight = 0
        self.ever_ready = False
        self.error = ""
        self.restarts = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._threads, self._slots = threads, slots
        self._process: asyncio.subprocess.Process | None = None
        self._examination: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._keep_running())

    @property
    def hopeless(self) -> bool:
        """Returns whether it failed to start and never was ready, so that waiting for it is no use."""
        return bool(self.error) and not self.ever_ready

    @contextmanager
    def request(self) -> Iterator[str]:
        """Counts one request as in flight while it lasts; yields the URL to send it to."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield self.url
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def wait_ready(self, seconds: float) -> None:
        """Returns once it is ready, or after so many seconds, or as soon as waiting is no use."""
        deadline = time.monotonic() + seconds
        while not self.ready.is_set() and not self.hopeless and time.monotonic() < deadline:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ready.wait(), 0.1)

    def suspect(self) -> None:
        """Takes it out of service after a broken connection, until it has said that it is well."""
        if self.ready.is_set():
            self.ready.clear()
            self.error = "a connection broke off"
            self._examination = asyncio.create_task(self._examine())

    async def _examine(self) -> None:
        process = self._process
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                well = (await client.get(f"{self.url}/healthz", timeout=SECONDS_TO_STOP)).status_code == 200
        except httpx.HTTPError:
            well = False
        if process is None or process is not self._process or process.returncode is not None:
            return  # it died, and `_keep_running` sees to it
        if well:
            self.error = ""
            self.ready.set()
        else:
            process.kill()

    async def drain(self) -> None:
        """Waits until no request is in flight, but not forever."""
        try:
            await asyncio.wait_for(self._idle.wait(), SECONDS_TO_DRAIN)
        except TimeoutError:
            print(f"{self._label()}: still busy after {SECONDS_TO_DRAIN} s, stopping it", file=sys.stderr)

    async def stop(self) -> None:
        """Ends the process, by force if it does not end when asked."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_running(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await self._run_once()
                pause = FIRST_PAUSE
            except (StartFailed, OSError, httpx.HTTPError) as error:
                self.error = str(error) or type(error).__name__
                pause = min(pause * 2, LONGEST_PAUSE)
            print(f"{self._label()}: {self.error}; starting it again in {pause:.1f} s", file=sys.stderr)
            await asyncio.sleep(pause)
            self.restarts += 1

    async def _run_once(self) -> None:
        """Runs the process until it dies.

        Raises:
            StartFailed: it was never ready.
        """
        process = await self._spawn()
        self._process, self.pid = process, process.pid
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[str] = []
        echo = asyncio.create_task(self._echo(process.stderr, said))
        try:
            self.url = await self._verified_url(process.stdout, echo, said)
            self.ever_ready, self.error = True, ""
            self.ready.set()
            code = await process.wait()
            self.error = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        finally:
            self.ready.clear()
            await self._end(process)
            self.pid = None
            echo.cancel()

    async def _spawn(self) -> asyncio.subprocess.Process:
        served = self.served
        command = [sys.executable, "-m", "serving", "endpoint", "--bundle", str(served.bundle), "--port", "0"]
        command += ["--digest", served.digest, "--model", served.model]
        command += ["--threads", str(self._threads), "--slots", str(self._slots)]
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | TELEMETRY_OFF,
            start_new_session=True,  # Ctrl-C reaches the gateway, which drains before it ends its endpoints
            preexec_fn=die_with_parent(signal.SIGKILL),
        )

    async def _verified_url(self, stdout: asyncio.StreamReader, echo: "asyncio.Task[None]", said: list[str]) -> str:
        try:
            line = await asyncio.wait_for(stdout.readline(), SECONDS_TO_START)
        except TimeoutError:
            raise StartFailed(f"was not ready after {SECONDS_TO_START} s") from None
        if not line:
            await echo  # what it said last says why
            raise StartFailed(
                next((text for text in reversed(said) if text.startswith("error:")), "ended before it was ready")
            )
        url = str(json.loads(line)["url"])
        async with httpx.AsyncClient(trust_env=False) as client:
            health = (await client.get(f"{url}/healthz", timeout=SECONDS_TO_STOP)).json()
        if health["digest"] != self.served.digest:
            raise StartFailed(f"serves {health['digest']}, not {self.served.digest}")
        return url

    async def _echo(self, stderr: asyncio.StreamReader, said: list[str]) -> None:
        while line := await stderr.readline():
            text = line.decode(errors="replace").rstrip()
            said.append(text)
            del said[:-20]
            print(f"{self._label()}: {text}", file=sys.stderr)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.returncode is not None:
                return
            process.send_signal(number)
            try:
                await asyncio.wait_for(process.wait(), SECONDS_TO_STOP)
            except TimeoutError:
                continue

    def _label(self) -> str:
        return f"endpoint {self.served.model} {self.served.digest[7:19]}"


class Supervisor:
    """The endpoints that run, by what they serve."""

    def __init__(self, threads: int, slots: int) -> None:
        self._threads, self._slots = threads, slots
        self._running: dict[Served, Endpoint] = {}
        self._retiring: dict[Served, tuple[Endpoint, asyncio.Task[None]]] = {}
        self._stopping: set[asyncio.Task[None]] = set()

    def get(self, model: str, arm: Arm) -> Endpoint | None:
        """Returns the endpoint of an arm."""
        return self._running.get(Served.of(model, arm))

    def want(self, wanted: Iterable[Served]) -> None:
        """Starts what is wanted and does not run; drains and then stops what runs and is not wanted."""
        wanted = set(wanted)
        for served in wanted - set(self._running):
            if served in self._retiring:  # wanted again before it had drained
                endpoint, task = self._retiring.pop(served)
                task.cancel()
                self._running[served] = endpoint
            else:
                self._running[served] = Endpoint(served, self._threads, self._slots)
        for served in set(self._running) - wanted:
            endpoint = self._running.pop(served)
            task = asyncio.create_task(self._retire(endpoint))
            self._retiring[served] = (endpoint, task)
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def close(self) -> None:
        """Stops every endpoint. The gateway has drained by then."""
        for _, task in self._retiring.values():
            task.cancel()
        endpoints = [*self._running.values(), *(endpoint for endpoint, _ in self._retiring.values())]
        await asyncio.gather(*(endpoint.stop() for endpoint in endpoints), *self._stopping, return_exceptions=True)

    async def _retire(self, endpoint: Endpoint) -> None:
        await endpoint.drain()
        # From here on it cannot be taken back: if it is wanted again, a new process starts.
        self._retiring.pop(endpoint.served, None)
        await endpoint.stop()
