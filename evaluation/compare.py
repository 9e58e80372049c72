"""Statistics of scores: intervals of one model's score, and of the paired difference of two models on the same items.

All bounds are one-sided: `low` is exceeded by the truth with probability 1 - `alpha_low`, and `high` undercut with
probability 1 - `alpha_high`. Items of one cluster (one fact in several phrasings) are not independent, so whole clusters
are resampled (Cameron, Gelbach & Miller 2008; for language models Miller 2024, "Adding Error Bars to Evals").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Integers = npt.NDArray[np.int64]

BLOCK = 4_000_000  # numbers drawn at a time, so that memory does not grow with items times resamples


@dataclass(frozen=True)
class Levels:
    """The error probabilities of the two bounds, and the bootstrap's size and seed."""

    alpha_low: float
    alpha_high: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class Estimate:
    """A figure, its two one-sided bounds, and how many items and independent clusters stand behind it."""

    value: float
    low: float
    high: float
    items: int
    clusters: int


def estimate_score(scores: "Floats", weights: "Floats", clusters: "Integers", levels: Levels) -> Estimate:
    """Estimates the weighted mean of one model's scores: exactly for proportions, else by the clustered bootstrap.

    Args:
        scores, weights: (items,), finite.
        clusters: (items,), numbered from 0.
    """
    value = float((scores * weights).sum() / weights.sum())
    sums, sizes = _per_cluster(scores, weights, clusters)
    if _is_proportion(scores, weights):
        low, high = _proportion_bounds(value, sums, sizes, levels)
    else:
        low, high = _bootstrap_bounds(sums, sizes, levels)
    return Estimate(value, min(low, value), max(high, value), len(scores), len(sizes))


def estimate_difference(
    first: "Floats", second: "Floats", weights: "Floats", clusters: "Integers", levels: Levels
) -> Estimate:
    """Estimates the weighted mean of `first - second`, item by item, by the paired clustered bootstrap.

    Two models that agree on every item of a small set leave the bootstrap nothing to resample: its interval would be a
    single point, as if the set were infinite. For right-or-wrong scores, clusters of average size are therefore added
    while resampling: one won and one lost, as Bonett & Price (2012) add them to the closed-form interval. The lower bound
    gets a second lost one: where losses are rare their skew makes it too high (simulated in test_compare.py).

    Args:
        first, second, weights: (items,), finite, the same items in the same order.
        clusters: (items,), numbered from 0.
    """
    differences = first - second
    value = float((differences * weights).sum() / weights.sum())
    sums, sizes = _per_cluster(differences, weights, clusters)
    added_low: Sequence[float] = ()
    added_high: Sequence[float] = ()
    if _is_proportion(first, weights) and _is_proportion(second, weights):
        added_low, added_high = (1.0, -1.0, -1.0), (1.0, -1.0)
    low, _ = _bootstrap_bounds(*_with_clusters(sums, sizes, added_low), levels)
    _, high = _bootstrap_bounds(*_with_clusters(sums, sizes, added_high), levels)
    return Estimate(value, min(low, value), max(high, value), len(differences), len(sizes))


def _with_clusters(sums: "Floats", sizes: "Floats", scores: Sequence[float]) -> tuple["Floats", "Floats"]:
    """Appends clusters of average size in which every item has the given score."""
    import numpy as np

    size = float(sizes.mean())
    return np.append(sums, [size * score for score in scores]), np.append(sizes, [size] * len(scores))


def _per_cluster(scores: "Floats", weights: "Floats", clusters: "Integers") -> tuple["Floats", "Floats"]:
    """Returns the sum of weighted scores and the sum of weights of each cluster, both (clusters,)."""
    import numpy as np

    sums: Floats = np.bincount(clusters, scores * weights).astype(np.float64)
    sizes: Floats = np.bincount(clusters, weights).astype(np.float64)
    return sums, sizes


def _is_proportion(scores: "Floats", weights: "Floats") -> bool:
    return bool(((scores == 0) | (scores == 1)).all() and (weights == 1).all())


def _bootstrap_bounds(sums: "Floats", sizes: "Floats", levels: Levels) -> tuple[float, float]:
    """Bounds of the ratio of `sums` to `sizes` from resampled clusters (percentile bootstrap, Efron & Tibshirani 1993).

    The tail probabilities are widened for small samples ("expanded percentile", Hesterberg 2015): the plain
    percentile interval is too narrow by the factor sqrt((n - 1) / n) and by the normal quantile in place of Student's t.
    """
    import numpy as np
    from scipy.special import ndtr, stdtrit

    count = len(sums)
    if count < 2:
        return -np.inf, np.inf
    generator = np.random.default_rng(levels.seed)
    rows = max(1, BLOCK // count)
    means = []
    for start in range(0, levels.resamples, rows):
        drawn = generator.integers(0, count, (min(rows, levels.resamples - start), count))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    widen = np.sqrt(count / (count - 1))
    tail_low, tail_high = (ndtr(widen * stdtrit(count - 1, alpha)) for alpha in (levels.alpha_low, levels.alpha_high))
    low, high = np.quantile(np.concatenate(means), [tail_low, 1 - tail_high])
    return float(low), float(high)


def _proportion_bounds(value: float, sums: "Floats", sizes: "Floats", levels: Levels) -> tuple[float, float]:
    """Exact bounds of a proportion (Clopper & Pearson 1934) at the effective sample size (Korn & Graubard 1998).

    Clusters shrink the sample to the size at which independent items would give the same standard error. Wilson's interval
    is shorter, but its one-sided error exceeds the nominal one near 0 and 1 (Cai 2005), where floors usually are.
    """
    from scipy.special import betaincinv

    count = len(sums)
    items = float(sizes.sum())
    if value in (0.0, 1.0) or count < 2:
        effective = float(count)  # no variance to estimate from: take every cluster for one item
    else:
        residuals = sums - value * sizes
        variance = float((residuals**2).sum()) * count / (count - 1) / items**2
        design_effect = variance / (value * (1 - value) / (items - 1))
        effective = items / max(1.0, design_effect)
    right, wrong = value * effective, (1 - value) * effective
    low = float(betaincinv(right, wrong + 1, levels.alpha_low)) if right > 0 else 0.0
    high = float(betaincinv(right + 1, wrong, 1 - levels.alpha_high)) if wrong > 0 else 1.0
    return low, high
