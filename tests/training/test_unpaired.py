"""KTO: its formula, its zero point over all rows of a step, and the stage that learns with it."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tiny_training import TINY_MODEL, Command

from lineage.errors import BadInput
from lineage.files import sha256_file, write_json
from lineage.record import read_record
from lineage.stage import STARTED
from training.batches import PackedRows
from training.config import ModelConfig, TrainingConfig
from training.engine import SingleEngine
from training.model import build_model
from training.objectives import UnpairedObjective
from training.processes import Processes
from training.scoring import Scorer
from training.stage import make_objective
from training.unpaired import answer_losses
from training.validate import with_zero_point
from training.vocabulary import Vocabulary

WEIGHTS = Path("bundle") / "model.safetensors"
OPTIONS = {"steps": 12, "learning_rate": 0.005, "kto_beta": 0.3, "checkpoint_every": 4}


def configure(**options: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"objective": "kto", "steps": 1, "precision": "fp32", "kto_beta": 0.3, **options})


@pytest.fixture
def make_engine(packed_data: Path) -> Callable[..., SingleEngine]:
    """An engine over a new tiny model."""

    def make(**options: object) -> SingleEngine:
        config = configure(**options)
        model = build_model(ModelConfig(**TINY_MODEL), None, Vocabulary(packed_data / "tokenizer"), config, 48)
        return SingleEngine(Scorer(model).train(), config, Processes(0, 1, torch.device("cpu")))

    return make


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_loss_is_its_formula() -> None:
    config = configure(kto_desirable_weight=1.5, kto_undesirable_weight=0.5)
    losses = answer_losses(torch.tensor([0.7, -0.2]), torch.tensor([True, False]), 0.1, config)
    expected = [1.5 * (1 - sigmoid(0.3 * (0.7 - 0.1))), 0.5 * (1 - sigmoid(0.3 * (0.1 + 0.2)))]
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_zero_point_is_the_mean_log_ratio_of_all_mismatched_answers(
    make_engine: Callable[..., SingleEngine], packed_rows: Callable[..., PackedRows]
) -> None:
    rows = [4, 1, 0, 2]
    engine = make_engine(steps=10, rows_per_step=4)
    objective = make_objective(engine, packed_rows("kto"), "train")
    assert isinstance(objective, UnpairedObjective)
    assert objective.mismatched is not None
    # What the reference is moved by: the policy is then as much likelier, as likely, or less likely.
    for shift, expected in ((-0.5, 0.5), (0.0, 0.0), (0.5, 0.0)):
        moved = replace(objective.mismatched, reference=objective.mismatched.reference + shift)
        for accumulation in (1, 2, 4):
            engine.config = configure(rows_per_step=4, accumulation=accumulation)
            measured = with_zero_point(engine, replace(objective, mismatched=moved), rows)
            assert isinstance(measured, UnpairedObjective)
            assert measured.zero_point == pytest.approx(expected, abs=1e-5)


def test_apo_zero_needs_no_mismatched_answers(
    make_engine: Callable[..., SingleEngine], packed_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(packed_data, tmp_path / "data")
    (tmp_path / "data/packed/unpaired/train-mismatched.safetensors").unlink()
    data = PackedRows(tmp_path / "data", "kto", "train")
    engine = make_engine(kto_loss="apo_zero_unpaired")
    assert with_zero_point(engine, (objective := make_objective(engine, data, "train")), [0]) is objective
    with pytest.raises(BadInput, match=r"train-mismatched.safetensors: is missing"):
        make_objective(make_engine(), data, "train")


def test_settings_that_would_learn_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="nothing would be learnt"):
        configure(kto_desirable_weight=0, kto_undesirable_weight=0)
    with pytest.raises(ValidationError, match="objective `kto` takes neither"):
        configure(z_loss=1e-4)


@pytest.fixture(scope="module")
def finished(packed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, Path, Path]:
    """The command, the job and the folder of a finished KTO stage over a pretrained base."""
    folder = tmp_path_factory.mktemp("kto")
    command = Command(packed_data, folder)
    code, _, errors = command.run(command.job("pretrain", steps=15, learning_rate=0.01), folder / "base")
    assert code == 0, errors
    job = command.job("kto", base=folder / "base", **OPTIONS)
    code, _, errors = command.run(job, folder / "kto")
    assert code == 0, errors
    return command, job, folder / "kto"


def test_the_stage_starts_at_one_half_and_parts_good_from_bad(finished: tuple[Command, Path, Path]) -> None:
    metrics = read_record(finished[2]).metrics
    assert metrics["validation_loss_before"] == pytest.approx(0.5, abs=1e-6)  # policy and reference are the same
    assert float(metrics["validation_loss"]) < 0.49
    assert float(metrics["reward_margin"]) > 0
    assert "Kahneman-Tversky" in (finished[2] / "bundle/README.md").read_text()


def test_a_continued_run_has_the_same_bits(finished: tuple[Command, Path, Path], tmp_path: Path) -> None:
    command, job, reference = finished
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    write_json(out / STARTED, {"fingerprint": read_record(out).fingerprint})
    (out / "record.json").unlink()
    shutil.rmtree(out / "bundle")
    shutil.rmtree(out / ".checkpoints" / "step-000012")
    code, _, errors = command.run(job, out)
    assert code == 0, errors
    assert "continuing from step-000008" in errors
    assert sha256_file(out / WEIGHTS) == sha256_file(reference / WEIGHTS)


@pytest.mark.slow
def test_two_processes_share_one_zero_point(finished: tuple[Command, Path, Path], tmp_path: Path) -> None:
    command, _, reference = finished
    resources = {"processes": 2, "engine": "ddp", "device": "cpu"}
    job = command.job("kto", base=reference.parent / "base", resources=resources, **{**OPTIONS, "steps": 6})
    alone = command.job("kto", base=reference.parent / "base", **{**OPTIONS, "steps": 6})
    losses = []
    for number, (path, processes) in enumerate([(job, 2), (alone, 1)]):
        code, _, errors = command.run(path, tmp_path / str(number), processes=processes)
        assert code == 0, errors
        rows = [json.loads(line) for line in (tmp_path / str(number) / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
