"""What one item is worth. The task files in `suites/` name these functions; lm-eval gives them a row and its responses.

A response that is not a number (a model that diverged) scores NaN: it is neither right nor wrong, and never passes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
LogLikelihood = tuple[float, bool]  # natural log of the probability, and whether greedy decoding would have said it


def exact_match(row: Row, responses: Sequence[str]) -> dict[str, float]:
    """1 where the answer equals the row's, see `normalise`; else 0."""
    return {"exact_match": float(normalise(responses[0]) == normalise(row["answer"]))}


def match(row: Row, responses: Sequence[str]) -> dict[str, float]:
    """1 where the row's pattern matches the whole answer without the white space around it; else 0."""
    return {"match": float(re.fullmatch(row["pattern"], responses[0].strip()) is not None)}


def accuracy(row: Row, responses: Sequence[LogLikelihood]) -> dict[str, float]:
    """1 where the right choice is the likeliest; else 0. A tie counts for the first, as in lm-eval."""
    likelihoods = [likelihood for likelihood, _ in responses]
    if any(math.isnan(likelihood) for likelihood in likelihoods):
        return {"accuracy": math.nan}
    return {"accuracy": float(likelihoods.index(max(likelihoods)) == row["answer"])}


def bits_per_byte(row: Row, responses: Sequence[float]) -> dict[str, tuple[float, int]]:
    """The document's log likelihood in nats and its length in bytes; lm-eval's `bits_per_byte` makes a figure of them."""
    return {"bits_per_byte": (responses[0], len(row["text"].encode()))}


def normalise(answer: str) -> str:
    """Returns an answer without what does not change it: white space around it, back-ticks or quotes, one full stop.

    Case counts: `Queue` and `queue` are different names.
    """
    return " ".join(answer.split()).removesuffix(".").strip("`'\"")
