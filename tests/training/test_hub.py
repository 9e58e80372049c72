"""Models by name: the library's own cache, offline, gives a plain folder of exactly the wanted files at one commit."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_training import TINY_MODEL, Command

from lineage.errors import BadInput
from lineage.record import read_record
from training.config import ModelConfig, TrainingConfig
from training.export import save_bundle
from training.hub import find_base
from training.model import build_model
from training.vocabulary import Vocabulary

NAME, COMMIT = "tiny-org/tiny-model", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model_folder(packed_data: Path, tmp_path: Path) -> Path:
    """A model as it is on the hub: with the pickle, the code and the other formats that repositories have."""
    folder, vocabulary = tmp_path / "model", Vocabulary(packed_data / "tokenizer")
    model = build_model(ModelConfig(**TINY_MODEL), None, vocabulary, TrainingConfig(objective="sft", steps=1), 48)
    save_bundle(model, vocabulary, "card", folder)
    (folder / "manifest.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"this would run code")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    (folder / "consolidated.safetensors").write_bytes(b"the same weights once more")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def warm_cache(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache as its library leaves it: blobs, and snapshots that link to them."""
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    repository = cache / f"models--{NAME.replace('/', '--')}"
    for path in sorted(path for path in model_folder.rglob("*") if path.is_file()):
        blob = repository / "blobs" / path.relative_to(model_folder).as_posix().replace("/", "--")
        link = repository / "snapshots" / COMMIT / path.relative_to(model_folder)
        for place in (blob, link):
            place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_a_warm_cache_needs_no_network(warm_cache: Path, model_folder: Path, tmp_path: Path, revision: str) -> None:
    folder = find_base(NAME, revision, tmp_path / "hub")
    assert folder == tmp_path / "hub" / "tiny-org--tiny-model" / COMMIT
    wanted = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
              "chat_template.jinja"}  # fmt: skip
    assert {path.name for path in folder.iterdir()} == wanted
    assert all(path.read_bytes() == (model_folder / path.name).read_bytes() for path in folder.iterdir())
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert [path.name for path in folder.parent.iterdir()] == [COMMIT]
    shutil.rmtree(warm_cache)
    assert find_base(NAME, COMMIT, tmp_path / "hub") == folder  # a commit never changes: nothing is asked


def test_offline_without_a_cache_is_one_error(warm_cache: Path, tmp_path: Path) -> None:
    for name, revision in (("other-org/other-model", ""), (NAME, "v2"), ("/no/such/folder", ""), ("tiny@1", "")):
        with pytest.raises(BadInput, match="is no folder, and the hub gave nothing") as caught:
            find_base(name, revision, tmp_path / "hub")
        assert len(str(caught.value).splitlines()) == 1
    assert not list((tmp_path / "hub").glob("*/*"))


def test_a_folder_that_looks_like_a_name_wins(
    warm_cache: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, NAME)
    assert find_base(NAME, "", tmp_path / "hub") == Path(NAME)
    with pytest.raises(BadInput, match=r"model.revision: is of a model on the hub, but this is a folder"):
        find_base(NAME, "main", tmp_path / "hub")


def test_the_command_trains_a_model_by_its_name_and_records_the_commit(
    warm_cache: Path, model_folder: Path, training_command: Command, tmp_path: Path
) -> None:
    job = training_command.job("sft", steps=2)
    told = json.loads(job.read_text())
    told["config"]["model"] = {"base": NAME}
    job.write_text(json.dumps(told))
    home = tmp_path / "home"
    environment = {"HF_HUB_CACHE": str(warm_cache), "HF_HUB_OFFLINE": "1", "GOLDPATH_HOME": str(home)}
    code, _, errors = training_command.run(job, tmp_path / "named", **environment)
    assert code == 0, errors
    record = read_record(tmp_path / "named")
    assert record.parents["base"].path.endswith(f"tiny-org--tiny-model/{COMMIT}")
    assert "base/model.safetensors" in record.inputs
    assert "base/pytorch_model.bin" not in record.inputs

    # The same bytes under another name are the same run.
    (model_folder / "pytorch_model.bin").unlink()
    (model_folder / "modeling_own.py").unlink()
    (model_folder / "consolidated.safetensors").unlink()
    shutil.rmtree(model_folder / "onnx")
    (model_folder / "README.md").unlink()
    code, _, errors = training_command.run(training_command.job("sft", base=model_folder, steps=2), tmp_path / "folder")
    assert code == 0, errors
    assert read_record(tmp_path / "folder").fingerprint == record.fingerprint


def test_linked_files_count_by_their_bytes(warm_cache: Path, tmp_path: Path) -> None:
    from lineage.job import Job

    snapshot = warm_cache / "models--tiny-org--tiny-model" / "snapshots" / COMMIT
    job = Job(name="tiny", version="1", stage="sft", config={}, parents={"base": snapshot})
    assert {"base/model.safetensors", "base/config.json"} <= set(job.inputs())


def test_a_base_named_twice(training_command: Command, tmp_path: Path) -> None:
    job = training_command.job("sft", base=tmp_path)
    told = json.loads(job.read_text())
    told["config"]["model"] = {"base": NAME}
    job.write_text(json.dumps(told))
    code, _, errors = training_command.run(job, tmp_path / "out")
    assert code == 2
    assert "config.model.base: is a second base beside `parents.base`" in errors
