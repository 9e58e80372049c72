"""The judge's arithmetic against SciPy, and its spending against its budget."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, fisher_exact, hypergeom

from serving.release.intervals import (
    difference_upper,
    fisher_greater,
    mcnemar_greater,
    percentile,
    requests_needed,
    spend,
    wilson,
)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 60), st.integers(1, 60))
def test_fisher_agrees_with_scipy(hits: int, total: int, base_hits: int, base_total: int) -> None:
    hits, base_hits = min(hits, total), min(base_hits, base_total)
    table = [[hits, total - hits], [base_hits, base_total - base_hits]]
    assert fisher_greater(hits, total, base_hits, base_total) == pytest.approx(
        fisher_exact(table, alternative="greater").pvalue, abs=1e-9
    )


def test_fisher_stays_exact_for_many_requests() -> None:
    assert fisher_greater(160, 30_000, 100, 40_000) == pytest.approx(hypergeom.sf(159, 70_000, 260, 30_000), rel=1e-6)


@settings(deadline=None)
@given(st.integers(0, 80), st.integers(0, 80))
def test_mcnemar_agrees_with_scipy(lost: int, won: int) -> None:
    expected = binomtest(lost, lost + won, 0.5, alternative="greater").pvalue if lost + won else 1.0
    assert mcnemar_greater(lost, won) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 300), st.sampled_from([0.001, 0.025, 0.1]))
def test_wilson_agrees_with_scipy(hits: int, total: int, level: float) -> None:
    hits = min(hits, total)
    expected = binomtest(hits, total).proportion_ci(1 - 2 * level, method="wilson")
    assert wilson(hits, total, level) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_newcombe_s_own_example() -> None:
    """Newcombe (1998), table II, method 10, example (a): 56/70 - 48/80, 95 % interval 0.0524 to 0.3339."""
    assert difference_upper(56, 70, 48, 80, 0.025) == pytest.approx(0.3339, abs=5e-5)
    assert -difference_upper(48, 80, 56, 70, 0.025) == pytest.approx(0.0524, abs=5e-5)


def test_no_data_bounds_nothing() -> None:
    assert wilson(0, 0, 0.05) == (0.0, 1.0)
    assert difference_upper(0, 0, 3, 10, 0.05) == 1.0


def test_looks_never_spend_more_than_alpha() -> None:
    assert sum(spend(0.05, look) for look in range(1, 100_000)) <= 0.05


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05, 0.3])
def test_requests_needed_is_the_smallest_number_that_can_show_the_margin(margin: float) -> None:
    needed = requests_needed(margin, 0.025)
    assert wilson(0, needed, 0.025)[1] <= margin < wilson(0, needed - 1, 0.025)[1]


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.95) == 95
    assert percentile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert percentile([1.0], 0.95) == 1.0
