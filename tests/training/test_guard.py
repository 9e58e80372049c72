"""Bad steps: told apart from good ones, passed over without a trace in the weights, and the same after a kill."""

import json
import math
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_resume import WEIGHTS, start_and_signal
from tiny_training import PAD, SEQ_LEN, TINY_MODEL, Command, pack_row, write_packed
from torch import Tensor

from data_contracts.encode import Piece, Segment
from data_contracts.pack import arrange, fill_rows
from data_contracts.pack import write_packed as write_tensors
from lineage.errors import GoldpathError
from lineage.files import sha256_file
from training.batches import Batch, PackedRows, rows_of_step
from training.checkpoint import Checkpoints
from training.config import ModelConfig, TrainingConfig
from training.engine import SingleEngine
from training.guard import FEWEST, MOST_IN_A_ROW, WINDOW, StepResult, find_fault, remember
from training.loop import Loop, is_regular
from training.manifest import Progress
from training.model import build_model
from training.objectives import Objective
from training.processes import Processes
from training.schedule import learning_rate
from training.scoring import Scorer
from training.stop import Stopped, StopRequest
from training.vocabulary import Vocabulary
from training.watchdog import Watchdog

STEPS, BAD_STEP = 8, 4
ALONE = Processes(0, 1, torch.device("cpu"))


def result(loss: float, grad_norm: float = 1.0) -> StepResult:
    """Returns a step with these figures."""
    return StepResult(3, [5, 7], loss, grad_norm)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_is_bad_whatever_came_before(number: float) -> None:
    assert "loss is no finite number" in find_fault(result(number), (), 0.0)
    assert "gradient is no finite number" in find_fault(result(1.0, number), (), 0.0)
    assert find_fault(result(1.0), (), 0.0) == ""


def test_a_spike_stands_out_of_the_recent_losses_and_the_first_steps_are_none() -> None:
    recent = [2.0 + 0.01 * (number % 5) for number in range(WINDOW)]
    assert "is a spike" in find_fault(result(2.5), recent, 8.0)
    assert find_fault(result(2.1), recent, 8.0) == ""
    assert find_fault(result(2.5), recent, 0.0) == ""
    assert find_fault(result(99.0), recent[: FEWEST - 1], 8.0) == ""
    assert "step 4: loss 2.5, gradient norm 1, packed rows 5, 7" in str(result(2.5))
    named = replace(result(2.5), sources=[f"chats:{number}" for number in range(20)])
    assert str(named).endswith(
        "rows chats:0, chats:1, chats:2, chats:3, chats:4, chats:5, chats:6, chats:7, chats:8, chats:9, "
        "chats:10, chats:11 and 8 more"
    )


@given(st.lists(st.floats(0.1, 10), min_size=FEWEST, max_size=WINDOW), st.floats(1, 20))
def test_no_loss_up_to_the_median_is_a_spike(recent: list[float], deviations: float) -> None:
    middle = sorted(recent)[len(recent) // 2 - 1]
    assert find_fault(result(middle), recent, deviations) == ""


def test_the_window_forgets() -> None:
    recent: tuple[float, ...] = ()
    for number in range(WINDOW + 3):
        recent = remember(recent, float(number))
    assert recent == tuple(float(number) for number in range(3, WINDOW + 3))


@dataclass(frozen=True)
class Poisoned(Objective):
    """An objective whose loss of some rows is no number."""

    rows: frozenset[int] = frozenset()

    def loss(self, batch: Batch, scores: Tensor) -> Tensor:
        broken = math.nan if self.rows & set(batch.rows) else 1.0
        return super().loss(batch, scores) * broken


def make_loop(data: Path, folder: Path, bad: bool = True, **options: Any) -> Loop:
    """Returns a loop of a real model; the rows of step `BAD_STEP` poison its loss."""
    values = {
        "objective": "pretrain",
        "steps": STEPS,
        "rows_per_step": 1,
        "precision": "fp32",
        "checkpoint_every": 3,
        "keep_checkpoints": 2,
    }
    config = TrainingConfig.model_validate(values | options)
    rows = PackedRows(data, "pretrain", "train")
    scorer = Scorer(build_model(ModelConfig(**TINY_MODEL), None, Vocabulary(data / "tokenizer"), config, SEQ_LEN))
    poison = frozenset(rows_of_step(rows.num_rows, 1, config.seed, BAD_STEP) if bad else ())
    return Loop(
        config,
        ALONE,
        SingleEngine(scorer.train(), config, ALONE),
        Poisoned(rows, rows=poison),
        Objective(PackedRows(data, "pretrain", "validation")),
        Checkpoints(folder, ["a" * 64], config.keep_checkpoints, ALONE, is_regular(config)),
        None,
        StopRequest(),
        Watchdog(0, folder / "stacks"),
        Progress(),
    )


def learn_by_hand(loop: Loop, steps: list[int]) -> None:
    """Takes steps without any guard."""
    for step in steps:
        batch = loop.train.data.batch(rows_of_step(loop.train.data.num_rows, 1, loop.config.seed, step))
        terms = loop.train.data.terms(batch)
        loop.engine.learn(batch, lambda scores, b=batch, n=terms: loop.train.loss(b, scores) / n, last=True)
        loop.engine.clip()
        loop.engine.apply(learning_rate(loop.config, step))


@pytest.mark.parametrize(
    ("policy", "taken"),
    [("skip", [0, 1, 2, 3, 5, 6, 7]), ("rewind", [0, 1, 2, 5, 6, 7])],  # a checkpoint was written after step 2
)
def test_a_bad_step_leaves_no_trace(packed_data: Path, tmp_path: Path, policy: str, taken: list[int]) -> None:
    loop = make_loop(packed_data, tmp_path / "guarded", on_bad_step=policy)
    loop.run()
    by_hand = make_loop(packed_data, tmp_path / "by-hand", bad=False)
    learn_by_hand(by_hand, taken)
    assert loop.progress.step == STEPS
    assert loop.progress.updates == len(taken)
    weights, expected = loop.engine.full_weights(), by_hand.engine.full_weights()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_bad_step_that_fp16_discards_too_counts_once(packed_data: Path, tmp_path: Path) -> None:
    loop = make_loop(packed_data, tmp_path, on_bad_step="skip", precision="fp16")
    loop.run()
    scale = loop.engine.loss_scale
    assert scale is not None
    assert scale.skipped >= 1
    assert loop.progress.updates == STEPS  # `Engine.restore` takes the discarded ones off
    assert loop.progress.passed_over == 0


def test_a_validation_that_is_no_number_ends_the_run(packed_data: Path, tmp_path: Path) -> None:
    loop = make_loop(packed_data, tmp_path, bad=False)
    loop.validation = Poisoned(loop.validation.data, rows=frozenset({0}))
    with pytest.raises(GoldpathError, match="the validation gave"):
        loop.run()


def test_by_default_a_bad_step_ends_the_run_and_names_its_rows(packed_data: Path, tmp_path: Path) -> None:
    loop = make_loop(packed_data, tmp_path, log_every=1)
    with pytest.raises(GoldpathError, match=rf"step {BAD_STEP + 1}: loss nan.*packed rows \d+.*on_bad_step: skip"):
        loop.run()
    assert loop.checkpoints.load_newest(loop.engine).step == 3


def test_a_bad_step_names_the_rows_of_the_data(packed_data: Path, tmp_path: Path) -> None:
    pieces = [Piece((Segment(list(range(3, 23)), [True] * 20),), source=f"notes:{number}") for number in range(30)]
    shutil.copytree(packed_data, tmp_path / "data")
    for split in ("train", "validation"):
        path = tmp_path / "data" / "packed" / "pretrain" / f"{split}.safetensors"
        write_tensors(path, "pretrain", fill_rows(arrange(pieces, SEQ_LEN), SEQ_LEN, PAD), len(pieces))
    loop = make_loop(tmp_path / "data", tmp_path, log_every=1, rows_per_step=2)
    assert [loop.train.data.sources([number]) for number in (0, 14)] == [["notes:0", "notes:1"], ["notes:28", "notes:29"]]
    row = rows_of_step(15, 1, loop.config.seed, BAD_STEP)[0]
    with pytest.raises(GoldpathError, match=rf"rows .*notes:{2 * row}\b.*rows/pretrain/train.jsonl"):
        loop.run()


def test_a_signal_between_checkpoints_does_not_change_where_a_run_rewinds_to(packed_data: Path, tmp_path: Path) -> None:
    options = {"on_bad_step": "rewind", "keep_checkpoints": 1}
    whole = make_loop(packed_data, tmp_path / "whole", **options)
    whole.run()
    stopped = make_loop(packed_data, tmp_path / "stopped", **options)
    update = stopped.update

    def update_and_signal() -> None:
        update()
        stopped.stop.number = signal.SIGTERM if stopped.progress.step == BAD_STEP else 0

    stopped.update = update_and_signal  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        stopped.run()
    names = sorted(path.name for path in (tmp_path / "stopped").glob("step-*"))
    assert names == ["step-000003", f"step-00000{BAD_STEP}"]
    continued = make_loop(packed_data, tmp_path / "stopped", **options)
    continued.progress = continued.checkpoints.load_newest(continued.engine)
    assert continued.progress.step == BAD_STEP
    continued.run()
    weights, expected = continued.engine.full_weights(), whole.engine.full_weights()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_what_never_gets_better_ends_the_run(packed_data: Path, tmp_path: Path) -> None:
    loop = make_loop(packed_data, tmp_path, on_bad_step="skip", steps=40)
    loop.train = Poisoned(loop.train.data, rows=frozenset(range(loop.train.data.num_rows)))
    with pytest.raises(GoldpathError, match=rf"step {MOST_IN_A_ROW + 1}: loss nan"):
        loop.run()


@pytest.fixture(scope="module")
def noisy_data(packed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that are learnt easily, and a few of noise."""
    folder = tmp_path_factory.mktemp("noisy")
    shutil.copytree(packed_data, folder, dirs_exist_ok=True)
    generator = torch.Generator().manual_seed(7)
    rows = [pack_row("pretrain", generator) for _ in range(40)]
    for number in (11, 23):
        noise = torch.randint(40, 96, (SEQ_LEN,), generator=generator).tolist()
        rows[number] = rows[number] | {"input_ids": noise}
    write_packed(folder, "pretrain", "train", rows)
    return folder


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_killed_run_passes_over_the_same_spikes(noisy_data: Path, tmp_path: Path, policy: str) -> None:
    command = Command(noisy_data, tmp_path)
    options = {"steps": 160, "rows_per_step": 1, "log_every": 5, "checkpoint_every": 5, "learning_rate": 0.02}
    job = command.job("pretrain", **options, on_bad_step=policy, spike_deviations=4.0)
    code, _, errors = command.run(job, tmp_path / "whole")
    assert code == 0, errors
    assert "its loss is a spike" in errors
    start_and_signal(command, job, tmp_path / "killed", signal.SIGKILL)
    code, _, errors = command.run(job, tmp_path / "killed")
    assert code == 0, errors
    assert sha256_file(tmp_path / "killed" / WEIGHTS) == sha256_file(tmp_path / "whole" / WEIGHTS)
    told = [told_bad_steps(tmp_path / name) for name in ("whole", "killed")]
    assert told[0] == told[1]
    assert {row for step in told[0] for row in step["rows"]} <= {11, 23}


def told_bad_steps(out: Path) -> list[dict[str, Any]]:
    """Returns the bad steps that a run's history tells of."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "bad_step" in row]
