"""`goldpath up`: every service, the deployments, and one status screen that notices what dies and starts it again."""

import sys
import time
from collections import Counter
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from flows.console import say
from flows.deploy import deploy
from flows.release import repair
from flows.service_commands import COMMANDS
from flows.service_state import log_of, state_of
from flows.services import Services, running
from flows.settings import Settings
from lineage.errors import GoldpathError

LOOK_SECONDS = 1.0
COLOURS = {"live": "green", "not responding": "yellow", "dead": "red", "given up": "red"}


def run_up(settings: Settings, started: Callable[[dict[str, str]], object] | None = None) -> int:
    """Runs everything until Ctrl-C, which is the ordinary end of it.

    Args:
        started: is told the URLs once everything runs; changes are then told in lines, not on a screen.

    Raises:
        GoldpathError: a service did not start, or `prefect.yaml` cannot be deployed.
    """
    try:
        with running(settings, *COMMANDS, spare_used=False, report=lambda line: say("up", line)) as services:
            deploy(settings)
            say("up", "deployed build, release and nightly")
            for repaired in repair(settings):
                say("reconcile", repaired)
            watch = Watch(services)
            if started:
                started(services.urls())
            if sys.stdout.isatty() and not started:
                watch.on_screen(Console())
            else:
                watch.in_lines()
    except KeyboardInterrupt:
        say("up", "stopped")
    return 0


class Watch:
    """Looks after running services.

    Attributes:
        restarts: how often each was started again.
        given_up: what did not come up again; it stays down until the next `goldpath up`.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        self.restarts: Counter[str] = Counter()
        self.given_up: set[str] = set()
        self.states: dict[str, str] = {}

    def look(self) -> list[str]:
        """Looks at every service once, starts again what died, and returns a line per change."""
        lines = []
        for name, service in list(self.services.used.items()):
            state = "given up" if name in self.given_up else state_of(service)
            if state != self.states.get(name):
                lines.append(f"{name} is {state}: {service.url}" + (f" (pid {service.pid})" if service.pid else ""))
            if state == "dead":
                lines.append(f"{name} ended by itself; it is started again (log: {log_of(self.services.settings, name)})")
                state = self._revive(name, lines)
            self.states[name] = state
        return lines

    def in_lines(self) -> None:
        """Prints one line per change on stdout, for logs and scripts."""
        self._for_ever(lambda lines: print(*lines, sep="\n", flush=True) if lines else None)

    def on_screen(self, console: Console) -> None:
        """Keeps one table up to date; changes scroll by above it."""
        with Live(self._screen(), console=console, auto_refresh=False) as live:

            def show(lines: list[str]) -> None:
                for line in lines:
                    live.console.print(line, style="dim")
                live.update(self._screen(), refresh=True)

            self._for_ever(show)

    def _for_ever(self, show: Callable[[list[str]], None]) -> None:
        while True:
            show(self.look())
            time.sleep(LOOK_SECONDS)

    def _revive(self, name: str, lines: list[str]) -> str:
        try:
            self.services.revive(name)
        except GoldpathError as error:
            self.given_up.add(name)
            lines.append(str(error))
            return "given up"
        self.restarts[name] += 1
        lines.append(f"{name} is live again: {self.services[name].url} (pid {self.services[name].pid})")
        return "live"

    def _screen(self) -> RenderableType:
        table = Table(title="Goldpath", title_justify="left")
        for column in ("service", "state", "address", "pid", "up for", "restarts"):
            table.add_column(column, justify="right" if column in ("pid", "up for", "restarts") else "left")
        for name, service in self.services.used.items():
            state = self.states.get(name, "live")
            coloured = f"[{COLOURS.get(state, 'white')}]{state}[/]"
            pid = "elsewhere" if service.external else str(service.pid)
            age = "" if service.external else _duration(time.time() - service.started)
            table.add_row(name, coloured, service.url, pid, age, str(self.restarts[name] or ""))
        home = self.services.settings.home
        return Group(table, f"[dim]Ctrl-C stops all. State: {home} · logs: {self.services.settings.logs}[/]")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
