"""A bundle is its digest: nothing in it can change, vanish or be added unseen."""

import json
from pathlib import Path

import pytest

from lineage.bundle import MANIFEST, digest_model, read_manifest, seal_bundle, verify_bundle
from lineage.errors import BadInput, Tampered


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "adapter").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "adapter" / "adapter.safetensors").write_bytes(b"more")
    return folder


def test_the_digest_depends_on_the_files_alone(bundle: Path, tmp_path: Path) -> None:
    digest = seal_bundle(bundle)
    assert digest.startswith("sha256:")
    assert len(digest) == 71
    copy = tmp_path / "copy"
    bundle.rename(copy)
    assert verify_bundle(copy) == verify_bundle(copy, digest) == digest
    assert seal_bundle(copy) == digest


def test_every_kind_of_change_is_named(bundle: Path) -> None:
    digest = seal_bundle(bundle)
    weights = bundle / "model.safetensors"

    weights.write_bytes(b"weightS")  # same length, one bit
    with pytest.raises(Tampered, match=r"model\.safetensors: was changed"):
        verify_bundle(bundle, digest)

    weights.unlink()
    with pytest.raises(Tampered, match=r"model\.safetensors: is missing"):
        verify_bundle(bundle, digest)

    weights.write_bytes(b"weights")
    (bundle / "adapter" / "extra.txt").write_text("x")
    with pytest.raises(Tampered, match=r"adapter/extra\.txt: is not in the manifest"):
        verify_bundle(bundle, digest)

    (bundle / "adapter" / "extra.txt").unlink()
    assert verify_bundle(bundle, digest) == digest


def test_a_file_replaced_by_a_link_is_tampered(bundle: Path, tmp_path: Path) -> None:
    seal_bundle(bundle)
    outside = tmp_path / "outside.safetensors"
    (bundle / "model.safetensors").rename(outside)
    (bundle / "model.safetensors").symlink_to(outside)
    with pytest.raises(Tampered, match="is a link or hidden"):
        verify_bundle(bundle)


def test_a_changed_manifest_is_another_digest(bundle: Path) -> None:
    digest = seal_bundle(bundle)
    (bundle / "config.json").write_text('{"other": true}')
    other = seal_bundle(bundle)
    assert other != digest
    with pytest.raises(Tampered, match="digest"):
        verify_bundle(bundle, digest)


def test_a_manifest_that_is_none_is_tampered_or_absent(bundle: Path) -> None:
    with pytest.raises(BadInput, match="is not a release bundle"):
        read_manifest(bundle)
    (bundle / MANIFEST).write_text("{")
    with pytest.raises(Tampered, match="is not JSON"):
        read_manifest(bundle)
    (bundle / MANIFEST).write_text(json.dumps({"files": {}, "extra": 1}))
    with pytest.raises(BadInput, match="unknown key"):
        read_manifest(bundle)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.pt", "state.pkl", "custom_model.py"])
def test_formats_that_run_code_are_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"x")
    with pytest.raises(BadInput, match="can run code"):
        seal_bundle(bundle)
    assert not (bundle / MANIFEST).exists()


def test_a_bundle_without_weights_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="no safetensors weights"):
        seal_bundle(tmp_path)


def test_a_plain_model_folder_has_the_digest_that_sealing_would_give_it(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "model"
    folder.mkdir()
    store.write_text("weights")
    (folder / "model.safetensors").symlink_to(store)  # as in the hub's cache
    with pytest.raises(BadInput, match="neither a release bundle nor a model folder"):
        digest_model(folder)
    (folder / "config.json").write_text("{}")
    plain = digest_model(folder)
    store.write_text("others")
    assert digest_model(folder) != plain
    store.write_text("weights")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_text("weights")
    assert plain == seal_bundle(folder) == digest_model(folder)
