"""When a night counts as a regression: beyond chance, on the same golden sets, and never by forgetting the release."""

import json
from pathlib import Path

import pytest

from flows.settings import Settings
from flows.trend import Night, Score, directions_of, find_regressions, read_trend, trend_rows
from lineage.errors import BadInput, Tampered
from lineage.job import Job
from lineage.stage import StageRun

GOLDEN = {"closed_book": "aa"}
ACCURACY, LOSS = "closed_book.exact_match", "heldout.bits_per_byte"
DIRECTIONS = {ACCURACY: "higher", LOSS: "lower"}


def night(at: str, accuracy: float, loss: float = 2.0, golden: dict[str, str] | None = None) -> Night:
    scores = {ACCURACY: Score(accuracy, accuracy - 0.05, accuracy + 0.05), LOSS: Score(loss, loss - 0.1, loss + 0.1)}
    return Night(at, "1.0.0", "sha256:" + "0" * 64, golden or GOLDEN, scores)


def reasons(*trend: Night) -> list[str]:
    return find_regressions(list(trend), DIRECTIONS)


def test_the_same_scores_are_no_regression() -> None:
    assert reasons(night("release", 0.4), night("1", 0.4), night("2", 0.4)) == []


def test_better_scores_are_no_regression() -> None:
    assert reasons(night("release", 0.4, 2.0), night("1", 0.9, 1.0)) == []


def test_what_chance_explains_is_no_regression() -> None:
    assert reasons(night("release", 0.4, 2.0), night("1", 0.36, 2.09)) == []


def test_a_lower_accuracy_and_a_higher_loss_are_regressions() -> None:
    found = reasons(night("release", 0.4, 2.0), night("1", 0.3, 2.2))
    assert [reason.split()[0] for reason in found] == [ACCURACY, LOSS]
    assert "0.3 (0.25 to 0.35), higher is better, and at release it was 0.4" in found[0]


def test_a_champion_that_got_better_and_falls_back_regressed() -> None:
    nights = [night(str(number), 0.6) for number in range(5)]
    found = reasons(night("release", 0.4), *nights, night("last", 0.42))
    assert len(found) == 1
    assert "the last nights' median it was 0.6" in found[0]


def test_slow_decay_is_found_at_the_release_s_score() -> None:
    decay = [night(str(step), 0.4 - 0.01 * step) for step in range(1, 12)]
    assert reasons(night("release", 0.4), *decay[:4]) == []
    assert reasons(night("release", 0.4), *decay) != []


def test_other_golden_sets_are_not_compared() -> None:
    assert reasons(night("release", 0.9, golden={"closed_book": "old"}), night("1", 0.1)) == []


def test_the_first_night_is_compared_with_the_release() -> None:
    assert reasons(night("release", 0.4)) == []
    assert reasons(night("release", 0.4), night("1", 0.1)) != []


def test_rows_have_a_column_per_metric() -> None:
    rows = trend_rows([night("release", 0.4)])
    assert rows == [{"night": "release", "version": "1.0.0", "digest": "sha256:" + "0" * 12, ACCURACY: 0.4, LOSS: 2.0}]


def finish(folder: Path, stage: str, config: dict[str, object], scores: dict[str, object] | None) -> None:
    with StageRun(Job(name="m", version="1.0.0", stage=stage, config=config), folder) as run:
        if scores is not None:
            (folder / "scores.json").write_text(json.dumps(scores))
        run.finish({})


def scores(value: float) -> dict[str, object]:
    metrics = {ACCURACY: {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 100}}
    return {"golden": GOLDEN, "harness": {}, "models": {"candidate": {"digest": "sha256:aa", "metrics": metrics}}}


def test_finished_nights_are_read_in_order_and_unfinished_ones_left_out(home_settings: Settings) -> None:
    runs = home_settings.runs / "m"
    finish(runs / "1.0.0" / "evaluate", "evaluate", {}, scores(0.4))
    finish(runs / "nightly-2026-11-02T02-30-00" / "evaluate", "evaluate", {}, scores(0.2))
    finish(runs / "nightly-2026-11-01T02-30-00" / "evaluate", "evaluate", {}, scores(0.3))
    (runs / "nightly-2026-11-03T02-30-00" / "evaluate").mkdir(parents=True)
    trend = read_trend(home_settings, "m", "1.0.0")
    assert [(n.at, n.scores[ACCURACY].value) for n in trend] == [
        ("release", 0.4),
        ("2026-11-01T02-30-00", 0.3),
        ("2026-11-02T02-30-00", 0.2),
    ]


def test_a_changed_night_is_not_believed(home_settings: Settings) -> None:
    folder = home_settings.runs / "m" / "1.0.0" / "evaluate"
    finish(folder, "evaluate", {}, scores(0.4))
    (folder / "scores.json").write_text(json.dumps(scores(0.9)))
    with pytest.raises(Tampered, match=r"scores\.json"):
        read_trend(home_settings, "m", "1.0.0")


def test_a_version_without_an_evaluation_is_named(home_settings: Settings) -> None:
    with pytest.raises(BadInput, match="did not finish"):
        read_trend(home_settings, "m", "1.0.0")


def test_directions_come_from_the_gate_that_the_version_passed(home_settings: Settings) -> None:
    policy: dict[str, object] = {
        "metrics": [{"metric": ACCURACY, "direction": "higher"}, {"metric": LOSS, "direction": "lower"}]
    }
    finish(home_settings.runs / "m" / "1.0.0" / "gate-0.9.0", "gate", policy, None)
    assert directions_of(home_settings, "m", "1.0.0") == DIRECTIONS
    with pytest.raises(BadInput, match="has no record"):
        directions_of(home_settings, "m", "9.9.9")
