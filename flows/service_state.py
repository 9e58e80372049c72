"""What is known about services without starting any: what `services.json` lists, and whether it is still true."""

import http.client
import json
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.processes import is_alive
from flows.service_commands import COMMANDS
from flows.settings import Settings
from lineage.files import write_json

LOG_TAIL = 15  # lines


@dataclass(frozen=True)
class Service:
    """One service, as `services.json` lists it.

    Attributes:
        pid: its process; None where it does not run, or where it runs elsewhere (`PREFECT_API_URL`).
        started: when the process was created, in seconds since 1970.
        port: the port on 127.0.0.1; kept after a stop, so that URLs stay the same.
        url: what a browser opens.
    """

    name: str
    pid: int | None
    started: float
    port: int
    url: str

    @property
    def external(self) -> bool:
        """Whether somebody else runs it."""
        return self.port == 0

    @property
    def alive(self) -> bool:
        """Whether the very process that was started still runs (not another one that got its pid)."""
        return self.pid is not None and is_alive(self.pid, self.started)


def read_services(settings: Settings) -> dict[str, Service]:
    """Returns what `services.json` lists; an unreadable file lists nothing, as it is only a memory."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        listed = json.loads(settings.services.read_text(encoding="utf-8"))
        return {name: Service(name=name, **entry) for name, entry in listed.items()}
    return {}


def state_of(service: Service) -> str:
    """Returns `live`, `not responding`, `dead` (it should run) or `stopped`."""
    if not service.external and not service.alive:
        return "stopped" if service.pid is None else "dead"
    return "live" if responds(service) else "not responding"


def responds(service: Service) -> bool:
    """Asks the service's health endpoint; a tracking URI that is no server (`sqlite:…`) has nothing to ask."""
    if not service.url.startswith("http"):
        return True
    # A proxy of the environment has no business on 127.0.0.1.
    proxies = urllib.request.ProxyHandler(None if service.external else {})
    try:
        with urllib.request.build_opener(proxies).open(service.url + COMMANDS[service.name].health, timeout=5):
            return True  # any status of 400 or more is raised
    except (OSError, http.client.HTTPException):
        return False


def log_of(settings: Settings, name: str) -> Path:
    """The log file of a service."""
    return settings.logs / f"{name}.log"


def log_tail(settings: Settings, name: str) -> str:
    """Returns the last lines that a service wrote."""
    with suppress(OSError):
        lines = log_of(settings, name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  | {line}" for line in lines[-LOG_TAIL:])
    return "  | (no log)"


def remember(settings: Settings, service: Service) -> None:
    """Writes one service into `services.json`; the caller holds the lock on the home's services."""
    listed = read_services(settings) | {service.name: service}
    entries = {name: {k: v for k, v in asdict(entry).items() if k != "name"} for name, entry in listed.items()}
    write_json(settings.services, entries)
