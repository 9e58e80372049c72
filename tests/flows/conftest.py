"""Fixtures of the flows' tests: a home of its own, an environment without a user's servers, and commands in processes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.settings import Settings
from tests.flows.programs import Command


@pytest.fixture(autouse=True)
def no_foreign_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test talks to a server that the person who runs it happens to have."""
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "MLFLOW_TRACKING_URI", "GOLDPATH_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home_settings(tmp_path: Path) -> Settings:
    """Settings of an empty home."""
    return Settings(home=tmp_path / "home")


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
