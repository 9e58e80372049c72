"""The demo as a process. What it tells is seen by running it; its parts are tested where they live."""

import subprocess
import sys
from pathlib import Path

import psutil

PROGRAM = """
import os, sys
from flows.demo import Stage
from flows.settings import load_settings
sys.executable = sys.argv[1]  # instead of `goldpath`: it says who it is, and works on
Stage(load_settings(), dict(os.environ), "").type("run", "pystdlib")
"""


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
