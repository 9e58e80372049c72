"""The figures of a run: time by part, arithmetic, energy, price, and what is left of them after a kill."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from tiny_training import SEQ_LEN, Command, wait_until

from lineage.errors import BadInput
from training.attempts import FILE, Attempt, Attempts, begin_attempt
from training.clock import StepClock
from training.config import ModelConfig, TrainingConfig
from training.energy import EnergyMeter
from training.flops import arithmetic_of
from training.model import build_model
from training.peak import measured_peak
from training.prices import Prices, load_prices
from training.telemetry import MEASURED, history_digest, read_rows
from training.vocabulary import Vocabulary

CPU = torch.device("cpu")


def spin(seconds: float) -> None:
    """Works for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_clock_divides_the_time_among_the_parts() -> None:
    clock = StepClock(CPU)
    for _ in range(2):
        with clock("forward"):
            spin(0.02)
    with clock("backward"):
        spin(0.02)
    spin(0.01)
    seconds = clock.read()
    assert 0.04 <= seconds["forward"] < 2
    assert seconds["backward"] >= 0.02
    assert seconds["other"] >= 0.01
    assert seconds["optimizer"] == 0
    assert clock.read()["forward"] == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_clock_counts_the_time_of_the_gpu_and_not_that_of_the_call() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(8192, 8192, device=device)
    torch.cuda.synchronize()
    clock = StepClock(device)
    begin = time.perf_counter()
    with clock("forward"):
        for _ in range(20):
            matrix = (matrix @ matrix).clamp(-1, 1)
    called = time.perf_counter() - begin
    assert clock.read()["forward"] > 2 * called


def test_arithmetic_is_six_per_weight_and_the_attention(packed_data: Path) -> None:
    vocabulary = Vocabulary(packed_data / "tokenizer")
    model = ModelConfig(hidden_size=48, intermediate_size=80, num_layers=3, num_heads=4, num_kv_heads=2)
    layer = 48 * 48 * 2 + 48 * 24 * 2 + 3 * 48 * 80
    adapters = 4 * (48 + 48)  # of q_proj alone
    for rank, passes in ((0, 6), (4, 4)):
        config = TrainingConfig(objective="sft", steps=1, lora_rank=rank, lora_targets=("q_proj",))
        found = arithmetic_of(build_model(model, None, vocabulary, config, SEQ_LEN))
        trained = 3 * 6 * adapters if rank else 0
        body = 3 * passes * layer + trained + 12 * 3 * 48 * SEQ_LEN
        assert found.training(100, 7, SEQ_LEN) == 100 * body + 7 * passes * vocabulary.size * 48


def test_peak_is_above_what_a_slow_loop_reaches() -> None:
    left, right = torch.ones(256, 256), torch.ones(256, 256)
    begin = time.perf_counter()
    for row in left:
        row @ right
    one_by_one = 2 * 256**3 / (time.perf_counter() - begin)
    assert measured_peak(CPU, "fp32", 256, 256, 256) > one_by_one


def test_energy_is_counted_over_the_end_of_the_counter(tmp_path: Path) -> None:
    package = tmp_path / "intel-rapl:0"
    part = tmp_path / "intel-rapl:0:0"  # a part of the package, which counts it already
    for folder, used in ((package, 90_000_000), (part, 1)):
        folder.mkdir()
        (folder / "energy_uj").write_text(str(used))
        (folder / "max_energy_range_uj").write_text("100000000")
    meter = EnergyMeter(CPU, tmp_path)
    assert meter.counts
    for used, joules in ((95_000_000, 5.0), (2_000_000, 12.0), (3_000_000, 13.0)):
        (package / "energy_uj").write_text(str(used))
        assert meter.joules() == pytest.approx(joules)
    assert not EnergyMeter(CPU, tmp_path / "nothing").counts


def test_prices_are_those_of_the_longest_name_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prices = Prices(per_hour={"cpu": 0.04, "h100": 2.0, "H100 NVL": 3.0})
    assert prices.of_hour("cpu", 8) == pytest.approx(0.32)
    assert prices.of_hour("NVIDIA H100 NVL", 2) == 6.0
    assert prices.of_hour("NVIDIA H100 80GB HBM3", 1) == 2.0
    assert prices.of_hour("NVIDIA A100", 1) is None
    monkeypatch.delenv("GOLDPATH_PRICES", raising=False)
    assert load_prices() is None
    table = tmp_path / "prices.yaml"
    monkeypatch.setenv("GOLDPATH_PRICES", str(table))
    with pytest.raises(BadInput, match="cannot be read"):
        load_prices()
    table.write_text("per_hour: {cpu: -1}")
    with pytest.raises(BadInput, match=r"per_hour\.cpu"):
        load_prices()


def test_goodput_is_productive_time_over_wall_clock() -> None:
    attempts = Attempts(attempts=(Attempt(started=100.0, ended=150.0), Attempt(started=160.0)))
    assert attempts.restarts == 1
    assert attempts.goodput(80.0, now=200.0) == pytest.approx(0.8)
    assert attempts.held_seconds(now=200.0) == pytest.approx(90.0)


def test_goodput_at_one_kill_per_ten_minutes() -> None:
    """Ten hours on a simulated clock: a checkpoint every 10 s, 6 s of start-up, a kill every 600 s."""
    step, save, startup, every = 1.0, 0.05, 6.0, 10
    now, kept, attempts = 0.0, 0, []
    while now < 36_000:
        attempts.append(Attempt(started=now))
        end, at, done = now + 600, now + startup, kept
        while (at := at + step) <= end:
            done += 1
            if done % every == 0:
                kept, at = done, at + save
        now = end
    assert Attempts(attempts=tuple(attempts)).goodput(kept * step, now) >= 0.97


def test_an_attempt_that_was_killed_ends_at_its_last_sign_of_life(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    first = begin_attempt(tmp_path, metrics, 0.0)
    assert first.restarts == 0
    metrics.write_text("{}\n")
    seen = first.attempts[0].started + 5
    os.utime(metrics, (seen, seen))
    second = begin_attempt(tmp_path, metrics, 7.5)
    assert (second.restarts, second.joules) == (1, 7.5)
    assert second.attempts[0].ended == pytest.approx(seen, abs=0.01)
    (tmp_path / FILE).write_text("{torn")
    assert begin_attempt(tmp_path, metrics, 0.0).restarts == 0


def test_a_killed_run_tells_its_restart_and_computes_the_same(training_command: Command, tmp_path: Path) -> None:
    job = training_command.job("pretrain", steps=40, checkpoint_every=4)
    prices = tmp_path / "prices.yaml"
    prices.write_text("per_hour: {cpu: 3600}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert training_command.run(job, whole)[0] == 0
    process = training_command.start(job, killed)
    wait_until(lambda: process.poll() is not None or len(read_rows(killed / "metrics.jsonl")) > 10)
    process.kill()
    process.communicate()
    code, said, errors = training_command.run(job, killed, GOLDPATH_PRICES=str(prices))
    assert code == 0, errors
    rows = read_rows(killed / "metrics.jsonl")
    assert history_digest(rows) == history_digest(read_rows(whole / "metrics.jsonl"))
    assert [row["restarts"] for row in rows if "restarts" in row][-1] == said["metrics"]["restarts"] == 1
    last = [row for row in rows if "loss" in row][-1]
    parts = sum(value for key, value in last.items() if key.endswith("_seconds") and key in MEASURED)
    assert parts - last["productive_seconds"] - last["step_seconds"] == pytest.approx(last["step_seconds"], rel=0.01)
    assert last["padded_tokens_per_second"] > last["tokens_per_second"] > 0
    assert 0 < last["mfu"] < 1
    assert 0 < last["goodput"] < 1
    assert last["cost"] > 1  # a unit of money a second
    assert FILE not in json.loads((killed / "record.json").read_text())["outputs"]
