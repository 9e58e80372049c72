"""Fixtures of the flows' tests: a home of its own, an environment without a user's servers, and commands in processes."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.settings import Settings

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def no_foreign_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test talks to a server that the person who runs it happens to have."""
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "MLFLOW_TRACKING_URI", "GOLDPATH_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home_settings(tmp_path: Path) -> Settings:
    """Settings of an empty home."""
    return Settings(home=tmp_path / "home")


class Command:
    """A Python program in a process of its own, with its output readable line by line."""

    def __init__(self, program: str, *arguments: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )

    def read_until(self, part: str) -> str:
        """Returns the first line that holds a text; fails with all that was said where the program ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if part in line:
                return line
        raise AssertionError(f"never said {part!r}:\n{''.join(self.lines)}")

    def say(self, line: str = "") -> None:
        """Writes a line to the program's standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


@pytest.fixture
def start_command() -> Iterator[Callable[..., Command]]:
    """Starts programs, and ends those that a failed test leaves."""
    commands: list[Command] = []

    def start(program: str, *arguments: str) -> Command:
        commands.append(Command(program, *arguments))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
        command.process.communicate()


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    """Waits until a condition holds; False at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
