"""The judge's arithmetic: exact tests and confidence bounds for shares. Pure Python, so that a verdict needs no SciPy."""

from math import comb, exp, lgamma, sqrt
from statistics import NormalDist


def spend(alpha: float, look: int) -> float:
    """Returns the level of the look with a number (from 1), so that all looks together spend at most alpha.

    alpha / (look · (look + 1)) sums to alpha over infinitely many looks; by the union bound the judge may look as often
    as it likes. An alpha-spending sequence in the sense of Lan & DeMets (1983), without their correlation between looks.
    """
    return alpha / (look * (look + 1))


def fisher_greater(hits: int, total: int, base_hits: int, base_total: int) -> float:
    """Returns the one-sided p value that the first share is the larger one only by chance (Fisher's exact test).

    The tail P(X ≥ hits) of the hypergeometric distribution with both margins given; Fisher (1935).
    """
    everything, marked = total + base_total, hits + base_hits
    logs = (_log_comb(marked, k) + _log_comb(everything - marked, total - k) for k in range(hits, min(total, marked) + 1))
    whole = _log_comb(everything, total)
    return min(1.0, sum(exp(log - whole) for log in logs))


def mcnemar_greater(lost: int, won: int) -> float:
    """Returns the one-sided p value that paired items are lost more often than won only by chance.

    The exact form of McNemar (1947): lost ~ Binomial(lost + won, 1/2) when both arms are equally good.
    """
    flips = lost + won
    return sum(comb(flips, k) for k in range(lost, flips + 1)) * 0.5**flips


def wilson(hits: int, total: int, level: float) -> tuple[float, float]:
    """Returns lower and upper confidence bound of a share, each one-sided at `1 - level` (Wilson, 1927).

    Without any data the bounds are 0 and 1.
    """
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(1 - level)
    share, spread = hits / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    reach = z * sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def difference_upper(hits: int, total: int, base_hits: int, base_total: int, level: float) -> float:
    """Returns the upper confidence bound, one-sided at `1 - level`, of how much larger the first share is.

    Newcombe (1998), Statistics in Medicine 17:873-890, method 10: Wilson's bounds of both shares combined.
    """
    if not total or not base_total:
        return 1.0
    share, base = hits / total, base_hits / base_total
    above, below = wilson(hits, total, level)[1] - share, base - wilson(base_hits, base_total, level)[0]
    return min(1.0, share - base + sqrt(above**2 + below**2))


def requests_needed(margin: float, level: float) -> int:
    """Returns how many requests without one fault it takes to show, at `1 - level`, a share of faults below a margin.

    The inverse of Wilson's upper bound for no hits, z² / (n + z²).
    """
    square = NormalDist().inv_cdf(1 - level) ** 2
    return int(square * (1 - margin) / margin) + 1


def percentile(values: list[float], share: float) -> float:
    """Returns the smallest value that at least a share of the values do not exceed (nearest rank)."""
    ranked = sorted(values)
    rank = -int(-share * len(ranked) // 1)  # ceiling
    return ranked[max(rank, 1) - 1]


def _log_comb(n: int, k: int) -> float:
    if not 0 <= k <= n:
        return float("-inf")
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
