"""The demo as a process. What it tells is seen by running it; its parts are tested where they live."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

PROGRAM = """
import os, sys
from flows.demo import Stage
from flows.settings import load_settings
sys.executable = sys.argv[1]  # instead of `goldpath`: it says who it is, and works on
from flows.processes import signals_end_with_cleanup
with signals_end_with_cleanup():  # as in a demo
    Stage(load_settings(), dict(os.environ), "").type("run", "pystdlib")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_that_a_demo_typed_may_clean_up(tmp_path: Path, number: signal.Signals) -> None:
    command, clean = tmp_path / "command", tmp_path / "clean"
    command.write_text(f"#!/bin/bash\ntrap 'sleep 1; touch {clean}; exit 1' TERM\necho $$ >&2\nsleep 600 &\nwait\n")
    command.chmod(0o755)
    demo = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(command)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert demo.stderr is not None
    typed = psutil.Process(next(int(line) for line in demo.stderr if line.strip().isdigit()))
    os.killpg(demo.pid, number)
    demo.wait(timeout=30)
    typed.wait(timeout=30)
    assert clean.exists()
    demo.stderr.close()


def test_the_command_that_a_demo_typed_ends_when_the_demo_is_killed(tmp_path: Path) -> None:
    command = tmp_path / "command"
    command.write_text("#!/bin/sh\necho $$ >&2\nexec sleep 600\n")
    command.chmod(0o755)
    demo = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(command)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert demo.stderr is not None
    typed = psutil.Process(next(int(line) for line in demo.stderr if line.strip().isdigit()))
    demo.kill()
    demo.wait()
    typed.wait(timeout=30)  # raises TimeoutExpired
    demo.stderr.close()
