"""How one request turns logits into tokens: greedy, temperature, nucleus, seeded; and what it can say about its odds.

Everything is per request, because the rows of one batch belong to different clients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GREEDY_BELOW = 1e-5  # divided by less, logits overflow, and no draw would differ from the likeliest token anyway


@dataclass(frozen=True)
class Sampling:
    """What a client asked for.

    Attributes:
        max_tokens: at most so many new tokens.
        temperature: 0 takes the most likely token (ties: the lowest id, as `generate` does).
        top_p: draw from the smallest set of tokens whose probability reaches this.
        seed: makes the draw repeatable; None draws from the system's entropy.
        stop: texts that end the answer; they are not part of it.
        logprobs: how many of the most likely tokens to report per token; None reports nothing.
        echo: also report the prompt's tokens.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False


@dataclass(frozen=True)
class TokenOdds:
    """One token's log probability (natural logarithm), None for a prompt's first token, and its most likely rivals."""

    token: int
    logprob: float | None
    top: dict[int, float]


def make_generator(seed: int | None) -> torch.Generator:
    """Returns a request's own source of randomness: its draws do not depend on who shares the batch."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Returns the next token for one row of logits, shape (vocab,).

    Nucleus sampling after Holtzman et al. 2020 (arXiv 1904.09751), cut as transformers' `TopPLogitsWarper` cuts it.
    """
    if sampling.temperature < GREEDY_BELOW:
        return int(logits.argmax())
    scores = logits.float() / sampling.temperature
    if sampling.top_p < 1:
        ascending, order = scores.sort()
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        dropped[-1] = False  # the most likely token always stays
        scores = scores.index_fill(0, order[dropped], -torch.inf)
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))


def odds(logits: Tensor, token: int, rivals: int) -> TokenOdds:
    """Returns the log probability of a token under one row of logits, shape (vocab,), and of the `rivals` likeliest.

    The token itself is always among `top`, as OpenAI's completions API has it.
    """
    logprobs = logits.float().log_softmax(-1)
    values, ids = logprobs.topk(rivals)
    top = {int(i): float(v) for i, v in zip(ids, values, strict=True)}
    own = float(logprobs[token])
    return TokenOdds(token, own, {**top, token: own})
