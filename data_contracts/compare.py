"""Compares two data versions: pure figures from two profiles. A is the older one, B the newer.

- Rows: matched by content first, so that a line put in at the top of a file, which gives all rows behind it new ids, is one
  added row; what is left is matched by id.
- Lengths: the two-sample Kolmogorov-Smirnov statistic, and its asymptotic p-value as `scipy.stats.ks_2samp` computes it.
- Vocabulary: the population stability index, PSI = Σ (b - a) ln(b / a) over the shares a, b of the frequent words and of
  all others together (Siddiqi 2006, "Credit Risk Scorecards"). Below 0.1 is called stable, above 0.25 a shift. Two samples
  of one vocabulary have an expected PSI of (bins - 1) (1/n + 1/m) (Yurdakul 2018), which is given beside it; words of one
  text come together, so the true noise is larger.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_contracts.profile import Profile, Vocabulary
from data_contracts.split import PARTS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_BINS = 1000
LEAST_COUNT = 100  # a rarer word says more about chance than about drift
NUM_MOVERS = 12
NUM_SAMPLES = 5
STABLE, SHIFTED = 0.1, 0.25


@dataclass(frozen=True)
class RowChanges:
    """How many rows are in both versions and how many are not.

    Rows of A = unchanged + changed + removed; rows of B = unchanged + changed + added.

    Attributes:
        unchanged, renamed: rows in both; of them those under another id.
        changed: rows of B with the id of a row of A that is gone.
        added, removed: rows in one version only.
        validated_on_trained: validation rows of B that A trained on. A model that continues A's has seen them.
        samples: of `changed`, `added` and `removed` rows, hashes of a few ids (`data_contracts.profile.digest_id`).
    """

    unchanged: int
    renamed: int
    changed: int
    added: int
    removed: int
    validated_on_trained: int
    samples: dict[str, list[int]]


def compare_rows(a: Profile, b: Profile) -> RowChanges:
    """Matches the rows of two versions."""
    import numpy as np

    ids_a, contents_a = _digests(a)
    ids_b, contents_b = _digests(b)
    in_both, at_a, at_b = np.intersect1d(contents_a, contents_b, return_indices=True)
    gone, new = ids_a[~np.isin(contents_a, in_both)], ids_b[~np.isin(contents_b, in_both)]
    changed = np.intersect1d(gone, new)
    added, removed = new[~np.isin(new, changed)], gone[~np.isin(gone, changed)]
    trained, validated = _array(a.digests["train"].contents), _array(b.digests["validation"].contents)
    return RowChanges(
        unchanged=len(ids_b) - len(new),
        renamed=int((ids_a[at_a] != ids_b[at_b]).sum()),
        changed=len(changed),
        added=len(added),
        removed=len(removed),
        validated_on_trained=int(np.isin(validated, trained).sum()),
        samples={
            name: rows[:NUM_SAMPLES].tolist()
            for name, rows in (("changed", changed), ("added", added), ("removed", removed))
        },
    )


def compare_lengths(a: Counter[int], b: Counter[int]) -> dict[str, float | None]:
    """Returns the Kolmogorov-Smirnov statistic of two histograms, 0 to 1, and the p-value; None where one has no rows.

    Args:
        a, b: rows by length.
    """
    n, m = a.total(), b.total()
    if not n or not m:
        return {"ks": None, "p": None}
    from scipy.stats import kstwo

    below_a = below_b = 0
    statistic = 0.0
    for length in sorted(a.keys() | b.keys()):
        below_a, below_b = below_a + a[length], below_b + b[length]
        statistic = max(statistic, abs(below_a / n - below_b / m))
    effective = n * m / (n + m)
    return {"ks": statistic, "p": float(kstwo.sf(statistic, max(1, round(effective))))}


def compare_vocabularies(a: Vocabulary, b: Vocabulary) -> dict[str, Any]:
    """Returns the PSI over words, its noise, what it is called, and the share of B's words that A never uses.

    The `movers` are the words that account for most of it, with their occurrences per million. `psi` is None where there is
    too little text.
    """
    pooled = a.counts + b.counts
    words = [word for word, count in pooled.most_common(MOST_BINS) if count >= LEAST_COUNT]
    unseen = sum(count for word, count in b.counts.items() if word not in a.counts)
    found: dict[str, Any] = {"psi": None, "noise": None, "drift": None, "bins": 0, "movers": []}
    found["unseen"] = unseen / b.total if b.total else None
    if not words or not a.total or not b.total:
        return found
    bins = {word: (a.counts[word], b.counts[word]) for word in words}
    rest = a.total - sum(count for count, _ in bins.values()), b.total - sum(count for _, count in bins.values())
    terms = population_stability({**bins, "": rest})
    psi = sum(terms.values())
    noise = len(words) * (1 / a.total + 1 / b.total)
    movers = sorted(words, key=lambda word: (-terms[word], word))[:NUM_MOVERS]
    per_million = {word: [1e6 * bins[word][0] / a.total, 1e6 * bins[word][1] / b.total] for word in movers}
    drift = "stable" if psi < STABLE or psi < 2 * noise else "shifted" if psi > SHIFTED else "moving"
    return found | {
        "psi": psi,
        "noise": noise,
        "drift": drift,
        "bins": len(words) + 1,
        "movers": [{"word": word, "per_million": per_million[word], "psi": terms[word]} for word in movers],
    }


def population_stability(bins: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Returns each bin's part of the population stability index.

    Half a count is added to every bin (Jeffreys' prior), because a bin that is empty on one side would be infinite.

    Args:
        bins: what A and B count in each bin.
    """
    total_a, total_b = (sum(pair[side] for pair in bins.values()) + len(bins) / 2 for side in (0, 1))
    terms = {}
    for name, (count_a, count_b) in bins.items():
        share_a, share_b = (count_a + 0.5) / total_a, (count_b + 0.5) / total_b
        terms[name] = (share_b - share_a) * math.log(share_b / share_a)
    return terms


def compare_shares(a: Counter[str], b: Counter[str]) -> dict[str, Any]:
    """Returns rows by source in both versions, and the PSI over sources; None where a version has no rows."""
    names = sorted(a.keys() | b.keys())
    bins = {name: (a[name], b[name]) for name in names}
    psi = sum(population_stability(bins).values()) if a.total() and b.total() else None
    return {"psi": psi, "rows": {name: list(pair) for name, pair in bins.items()}}


def _digests(profile: Profile) -> "tuple[NDArray[np.uint64], NDArray[np.uint64]]":
    import numpy as np

    parts = [profile.digests[part] for part in PARTS]
    ids, contents = ([_array(getattr(part, name)) for part in parts] for name in ("ids", "contents"))
    return np.concatenate(ids), np.concatenate(contents)


def _array(values: Any) -> "NDArray[np.uint64]":
    import numpy as np

    return np.frombuffer(values, dtype=np.uint64) if len(values) else np.empty(0, dtype=np.uint64)
