"""The stage command, end to end: pretrain, then SFT, then DPO with adapters, each continuing the one before."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_training import Command

from lineage.bundle import verify_bundle
from lineage.record import read_record

BUNDLE_FILES = {
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
    "manifest.json",
}


@pytest.fixture(scope="module")
def chain(packed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, Path, dict[str, dict[str, Any]]]:
    """Three finished stages and what they printed."""
    folder = tmp_path_factory.mktemp("chain")
    command, base, said = Command(packed_data, folder), None, {}
    for stage, options in {
        "pretrain": {"steps": 20, "learning_rate": 0.01, "precision": "bf16"},
        "sft": {"steps": 10, "learning_rate": 0.005, "validate_every": 5},
        "dpo": {"steps": 20, "learning_rate": 0.005, "lora_rank": 4, "dpo_beta": 0.3},
    }.items():
        code, said[stage], errors = command.run(command.job(stage, base=base, **options), folder / stage)
        assert code == 0, errors
        base = folder / stage
    return command, folder, said


def test_every_stage_lowers_its_validation_loss(chain: tuple[Command, Path, dict[str, dict[str, Any]]]) -> None:
    _, _, said = chain
    for stage, result in said.items():
        metrics = result["metrics"]
        assert result["stage"] == stage
        assert metrics["validation_loss"] < 0.97 * metrics["validation_loss_before"], stage
        assert metrics["tokens"] > 0
        assert metrics["tokens_per_second"] > 0


def test_dpo_starts_at_log_2_and_ranks_better_afterwards(chain: tuple[Command, Path, dict[str, dict[str, Any]]]) -> None:
    metrics = chain[2]["dpo"]["metrics"]
    assert metrics["validation_loss_before"] == pytest.approx(math.log(2), abs=1e-6)  # policy and reference are the same
    assert metrics["preference_accuracy"] > metrics["preference_accuracy_before"]


def test_bundles_are_sealed_complete_and_readable_by_others(chain: tuple[Command, Path, dict[str, dict[str, Any]]]) -> None:
    _, folder, _ = chain
    bundles = [folder / stage / "bundle" for stage in ("pretrain", "sft", "dpo")] + [folder / "pretrain" / "initial"]
    for bundle in bundles:
        verify_bundle(bundle)
        names = {path.name for path in bundle.iterdir()}
        assert names == BUNDLE_FILES
        assert {path.stat().st_mode & 0o777 for path in bundle.iterdir()} == {0o644}
        assert json.loads((bundle / "generation_config.json").read_text())["eos_token_id"] == 2
    assert {path.name for path in (folder / "dpo" / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip
    assert not (folder / "sft" / "initial").exists()


def test_the_record_lists_the_outputs_and_no_hidden_file(chain: tuple[Command, Path, dict[str, dict[str, Any]]]) -> None:
    record = read_record(chain[1] / "dpo")
    assert {"metrics.jsonl", "bundle/model.safetensors", "adapter/adapter_model.safetensors"} <= set(record.outputs)
    assert not any(part.startswith(".") for name in record.outputs for part in name.split("/"))
    assert set(record.parents) == {"data", "base"}


def test_history_has_every_step_once(chain: tuple[Command, Path, dict[str, dict[str, Any]]]) -> None:
    rows = [json.loads(line) for line in (chain[1] / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 11))
    assert [row["step"] for row in rows if "validation_loss" in row] == [0, 5, 10]
    assert all({"learning_rate", "grad_norm", "tokens", "tokens_per_second"} <= set(row) for row in rows if "loss" in row)


def test_a_finished_stage_is_reused_and_says_so(chain: tuple[Command, Path, dict[str, dict[str, Any]]]) -> None:
    command, folder, said = chain
    before = (folder / "pretrain" / "record.json").read_bytes()
    code, again, errors = command.run(folder / "job-0.yaml", folder / "pretrain")
    assert (code, again) == (0, said["pretrain"])
    assert "already finished, reused" in errors
    assert (folder / "pretrain" / "record.json").read_bytes() == before


def test_a_loss_without_reference_trains_and_scores_none(chain: tuple[Command, Path, dict[str, dict[str, Any]]]) -> None:
    command, folder, _ = chain
    job = command.job(
        "dpo", base=folder / "sft", steps=20, learning_rate=0.005, lora_rank=4, dpo_loss="simpo", dpo_beta=2.0
    )
    code, said, errors = command.run(job, folder / "simpo")
    assert code == 0, errors
    metrics = said["metrics"]
    assert metrics["validation_loss"] < metrics["validation_loss_before"]
    assert metrics["preference_accuracy"] > metrics["preference_accuracy_before"]
