"""What a person sees: one line that names file, field and fix, and the documented exit code; never a traceback."""

import subprocess
import sys

import pytest

CASES = {
    "return None": (0, ""),
    "return 3": (3, ""),
    "raise BadInput('recipe.yaml', 'sft.steps', 'is 0', 'give 1 or more')": (
        2,
        "error: recipe.yaml: sft.steps: is 0. Fix: give 1 or more\n",
    ),
    "raise BadInput('recipe.yaml', '', 'is empty', 'write one')": (2, "error: recipe.yaml: is empty. Fix: write one\n"),
    "raise Tampered('model', 'a', 'was changed', 'restore it')": (2, "error: model: a: was changed. Fix: restore it\n"),
    "raise GoldpathError('no. Fix: yes')": (1, "error: no. Fix: yes\n"),
    "raise KeyboardInterrupt": (130, "interrupted: run the same command again to continue\n"),
}


@pytest.mark.parametrize("body", CASES)
def test_exit_code_and_message(body: str) -> None:
    program = f"from lineage.errors import *\nfrom lineage.errors import run_cli\ndef main():\n    {body}\nrun_cli(main)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == CASES[body]
    assert done.stdout == ""
