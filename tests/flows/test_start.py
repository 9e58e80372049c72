"""`python -m flows.start MODULE …` behaves as `python -m MODULE …` does."""

import subprocess
import sys

import pytest

from lineage.garbage import NEW_OBJECTS

PROGRAM = "import gc, sys; print(__name__, sys.argv[1:], gc.get_threshold()[0]); sys.exit(7)"


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "someones_server.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "someones_server"


def test_a_module_gets_its_arguments_its_name_and_its_exit_code_and_collects_seldom(module):
    command = [sys.executable, "-m", "flows.start", module, "--port", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"__main__ ['--port', '1'] {NEW_OBJECTS}", done.stderr
    assert done.returncode == 7
