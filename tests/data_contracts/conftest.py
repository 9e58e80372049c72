"""The data stage, run once on a small corpus for all tests of this folder."""

from pathlib import Path

import pytest
from tiny_corpus import run_data, write_corpus


@pytest.fixture(scope="session")
def data_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus (`recipe.json`), Goldpath's home (`home`) and the finished stage (`out`)."""
    folder = tmp_path_factory.mktemp("data_run")
    done = run_data("--config", write_corpus(folder), "--out", folder / "out", home=folder / "home", PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder
