"""What the command line says before it does anything."""

import subprocess
import sys


def goldpath(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "flows.cli", *words], capture_output=True, text=True, check=False)


def test_without_a_command_the_help_is_shown_and_is_no_error() -> None:
    done = goldpath()
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: goldpath")
    assert "error:" not in done.stderr


def test_a_usage_error_is_one_line_that_names_the_fix() -> None:
    for words, problem in (
        (("runn",), "error: goldpath: No such command 'runn'. Did you mean 'run'"),
        (("run",), "error: goldpath run: Missing argument 'RECIPE'"),
        (("run", "x", "--fast"), "error: goldpath run: No such option '--fast'"),
    ):
        done = goldpath(*words)
        assert done.returncode == 2
        assert done.stderr.startswith(problem)
        assert done.stderr.count("\n") == 1
        assert "--help`" in done.stderr
