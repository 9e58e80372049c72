"""The statistics: against textbook values, and their error rates by simulation."""

import numpy as np
import pytest

from evaluation.compare import Estimate, Levels, estimate_difference, estimate_score

ALPHA, RUNS = 0.05, 1000
# A true rate of 5 % is seen at most this often in 1,000 runs, but for one seed in ten thousand (binomial quantile).
MOST_SEEN = 0.077


def levels(seed: int = 0, resamples: int = 1000) -> Levels:
    return Levels(ALPHA, ALPHA, resamples, seed)


def score(scores: list[float], clusters: list[int] | None = None, **options: int) -> Estimate:
    values = np.array(scores, dtype=np.float64)
    groups = np.arange(len(scores)) if clusters is None else np.array(clusters)
    return estimate_score(values, np.ones_like(values), groups, levels(**options))


@pytest.mark.parametrize(
    ("right", "items", "low", "high"),
    [  # Clopper-Pearson, one-sided 95 % each: the roots of the binomial tail, as in any table
        (8, 10, 0.4931, 0.9632),
        (0, 20, 0.0, 0.1391),
        (20, 20, 0.8609, 1.0),
        (150, 250, 0.5463, 0.6520),
    ],
)
def test_proportion_is_clopper_pearson(right: int, items: int, low: float, high: float) -> None:
    found = score([1.0] * right + [0.0] * (items - right))
    assert found.value == right / items
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-4)


def test_whole_clusters_count_once() -> None:
    """Every item asked five times is no more evidence than every item asked once."""
    once = [1.0] * 30 + [0.0] * 20
    five = [value for value in once for _ in range(5)]
    groups = [number for number in range(50) for _ in range(5)]
    alone, grouped, pretended = score(once), score(five, groups), score(five)
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high), abs=0.01)
    assert pretended.high - pretended.low < 0.6 * (grouped.high - grouped.low)
    assert (grouped.items, grouped.clusters) == (250, 50)


def test_bootstrap_of_weighted_scores_is_near_the_normal_interval() -> None:
    generator = np.random.default_rng(0)
    scores, weights = generator.normal(3.0, 1.0, 400), generator.integers(500, 1500, 400).astype(np.float64)
    found = estimate_score(scores, weights, np.arange(400), levels(resamples=5000))
    error = np.sqrt((weights**2 * (scores - found.value) ** 2).sum()) / weights.sum()
    assert found.value == pytest.approx((scores * weights).sum() / weights.sum())
    assert found.low == pytest.approx(found.value - 1.645 * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.value + 1.645 * error, abs=0.1 * error)


def test_pairing_removes_what_the_items_share() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(0.0, 5.0, 200)
    first, second = hard + generator.normal(0.1, 0.1, 200), hard + generator.normal(0.0, 0.1, 200)
    found = estimate_difference(first, second, np.ones(200), np.arange(200), levels())
    assert 0.05 < found.low < found.value < found.high < 0.15


def test_agreement_on_few_items_proves_little() -> None:
    same = np.ones(40)
    found = estimate_difference(same, same, same, np.arange(40), levels())
    assert found.value == 0
    assert found.low < -0.05  # a model that loses one item in twenty agrees on all forty with probability 0.13
    many = np.ones(4000)
    assert estimate_difference(many, many, many, np.arange(4000), levels()).low > -0.002


def test_same_seed_same_bounds() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.integers(0, 2, (2, 100)).astype(np.float64)
    one, two = (estimate_difference(first, second, np.ones(100), np.arange(100), levels(seed=7)) for _ in range(2))
    assert one == two


def test_one_cluster_has_no_bounds() -> None:
    found = estimate_score(np.array([2.0, 3.0]), np.ones(2), np.zeros(2, dtype=np.int64), levels())
    assert (found.low, found.high) == (-np.inf, np.inf)


@pytest.mark.parametrize("items", [40, 250])
@pytest.mark.parametrize("churn", [0.0, 0.1])  # how many items each model wins besides those that the worse one loses
def test_error_rates_of_right_or_wrong_scores(items: int, churn: float) -> None:
    """At the margin a wrong pass and a wrong fail are each at most alpha; between equal models a fail is rarer still."""
    margin = 0.1
    passed, failed = _simulate(items, lost=churn + margin, won=churn, margin=margin)
    assert passed <= MOST_SEEN
    assert failed <= MOST_SEEN
    _, failed_equal = _simulate(items, lost=churn + 0.02, won=churn + 0.02, margin=margin)
    assert failed_equal <= 0.01


def test_error_rates_of_clustered_items() -> None:
    passed, failed = _simulate(250, lost=0.15, won=0.05, margin=0.1, per_cluster=2)
    assert passed <= MOST_SEEN
    assert failed <= MOST_SEEN


def test_power() -> None:
    """A gate that never passes would have no errors either: most equal models pass, nearly all bad ones fail."""
    passed, _ = _simulate(250, lost=0.05, won=0.05, margin=0.1)
    assert passed > 0.9
    _, failed = _simulate(250, lost=0.35, won=0.05, margin=0.1)
    assert failed > 0.9


@pytest.mark.parametrize("count", [20, 40])
def test_error_rates_of_document_scores(count: int) -> None:
    """Bits per byte: continuous, skewed, weighted by length. `first - second` is truly minus the margin."""
    generator = np.random.default_rng(5)
    margin, passed, failed = 0.05, 0, 0
    for run in range(RUNS):
        weights = generator.lognormal(7.0, 0.5, count)
        second = generator.gamma(4.0, 0.5, count)
        first = second - margin + generator.normal(0.0, 0.1, count)
        found = estimate_difference(first, second, weights, np.arange(count), levels(run))
        passed += found.low > -margin
        failed += found.high < -margin
    assert passed / RUNS <= MOST_SEEN
    assert failed / RUNS <= MOST_SEEN


def _simulate(items: int, lost: float, won: float, margin: float, per_cluster: int = 1) -> tuple[float, float]:
    """Returns how often non-inferiority is proven and refuted, for a candidate that truly loses `lost - won`."""
    generator = np.random.default_rng(items)
    count = items // per_cluster
    clusters = np.repeat(np.arange(count), per_cluster)
    passed = failed = 0
    for run in range(RUNS):
        luck = np.repeat(generator.random(count), per_cluster)
        other = (generator.random(len(luck)) < 0.7).astype(np.float64)
        champion = np.where(luck < lost, 1.0, np.where(luck < lost + won, 0.0, other))
        candidate = np.where(luck < lost, 0.0, np.where(luck < lost + won, 1.0, other))
        found = estimate_difference(candidate, champion, np.ones(len(luck)), clusters, levels(run, resamples=500))
        passed += found.low > -margin
        failed += found.high < -margin
    return passed / RUNS, failed / RUNS
