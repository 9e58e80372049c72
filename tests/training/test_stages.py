"""The stage command, end to end: pretrain, then SFT, then DPO with adapters, each continuing the one before."""

from pathlib import Path

from tiny_training import Command

from lineage.bundle import verify_bundle


def test_pretrain(training_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "pretrain"
    code, said, errors = training_command.run(training_command.job("pretrain"), out)
    assert code == 0, errors
    assert said["metrics"]["validation_loss"] < said["metrics"]["validation_loss_before"]
    verify_bundle(out / "bundle")
