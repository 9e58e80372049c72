"""Finds a prompt in a text although some of its words were changed: other words, fewer, more, or in another order.

Three questions are asked of a text, the cheap ones first:

1. *Could it be there?* Pairs of adjacent words are looked up in an index of all prompts. Pairs that many prompts share are
   not in it, so that what a template says proposes nobody.
2. *Are the words that tell the prompt from others there?* Every word weighs what its rarity tells (its surprisal, in nats):
   `which module` tells little among questions about modules, the name that one of them asks about tells all. A prompt
   whose name was replaced is another prompt; one whose `which` was replaced is not.
3. *Is it said in that order?* The least number of edits (a word replaced, left out, put in, or swapped with its neighbour)
   that turns the prompt into some part of the text.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from data_contracts.words import Words

PASSAGE = 64  # words: how rare a word is, is counted in passages, so that long and short texts count alike
EDITS = (
    0.25  # edits per word of the prompt: a tenth of the words changed at random is at times two tenths of a short prompt
)
LOSS = 0.25  # share of the prompt's information that may be missing
SHORT, LOSS_SHORT = 10, 0.10  # a tenth of fewer than ten words is less than one word: no telling word may be missing
FEWEST = 6  # words; what is shorter is compared as a phrase only
INFORMATION = (
    8.0  # nats that must be matched: by chance a passage does so once in three thousand times, and seldom in order
)
RAREST = 1e-3  # no word counts as rarer than this share of passages, so that none decides alone
FEW_PROMPTS = 20  # a share among fewer prompts than this says nothing
PAIRS, TELLING_PAIR = 12, 3.0  # a prompt is looked up by so many pairs of words at most, each of so many nats at least
COMMON_PAIR = 64  # a pair of words in more prompts than this proposes nobody
ENOUGH_PAIRS = 0.25  # share of those pairs that a place must hold to be looked at; an edit breaks two or three


@dataclass
class WordCounts:
    """In how many passages of the training rows each word stands. Counts of several shards add up with `+=`."""

    passages: int = 0
    words: Counter[str] = field(default_factory=Counter)

    def count(self, words: Words, vocabulary: frozenset[str]) -> None:
        """Counts the words of one text that are in the vocabulary: no others are ever asked for."""
        for start in range(0, len(words), PASSAGE):
            self.words.update(vocabulary.intersection(words[start : start + PASSAGE]))
            self.passages += 1

    def __iadd__(self, other: "WordCounts") -> "WordCounts":
        self.passages += other.passages
        self.words.update(other.words)
        return self


@dataclass(frozen=True)
class Prompt:
    """A prompt to look for: its words, what each tells (nats), and its name."""

    words: Words
    weights: tuple[float, ...]
    label: str

    @cached_property
    def num_edits(self) -> int:
        """How many edits it may take."""
        return int(EDITS * len(self.words))

    @cached_property
    def must_tell(self) -> float:
        """How much of its information must be there."""
        loss = LOSS_SHORT if len(self.words) < SHORT else LOSS
        return max(INFORMATION, (1 - loss) * sum(self.weights))

    def telling_pairs(self) -> list[int]:
        """Where its rarest pairs of neighbours stand."""
        told = sorted((-left - right, place) for place, (left, right) in enumerate(pairwise(self.weights)))
        return [place for minus_told, place in told[:PAIRS] if -minus_told >= TELLING_PAIR]


@dataclass(frozen=True)
class NearIndex:
    """Prompts by their pairs of words: `pairs` holds (prompt, place in it), `needed` how many of them must be found."""

    prompts: Sequence[Prompt]
    needed: Sequence[int]
    pairs: Mapping[tuple[str, str], Sequence[tuple[int, int]]]


def index_prompts(prompts: Sequence[tuple[str, Words]], counts: WordCounts | None = None) -> NearIndex:
    """Makes prompts findable.

    Args:
        prompts: their names and words.
        counts: how common words are in the training rows; without it only the prompts themselves say so.
    """
    common = Counter(word for _, words in prompts for word in set(words))
    weighed = [
        Prompt(words, _weigh(words, common, len(prompts), counts or WordCounts()), label) for label, words in prompts
    ]
    telling = [prompt for prompt in weighed if len(prompt.words) >= FEWEST and sum(prompt.weights) >= INFORMATION]
    pairs: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for i, prompt in enumerate(telling):
        for place in prompt.telling_pairs():
            pairs.setdefault((prompt.words[place], prompt.words[place + 1]), []).append((i, place))
    rare = {pair: places for pair, places in pairs.items() if len(places) <= COMMON_PAIR}
    num_pairs = Counter(i for places in rare.values() for i, _ in places)
    needed = [max(1, int(ENOUGH_PAIRS * num_pairs[i])) for i in range(len(telling))]
    return NearIndex(telling, needed, rare)


def find_near(words: Words, index: NearIndex) -> tuple[str, float] | None:
    """Returns the name of a prompt that a text nearly holds, and the share of its words that are there as they were."""
    found: dict[int, list[int]] = {}
    wanted = bytes(map(index.pairs.__contains__, pairwise(words)))
    here = wanted.find(1)
    while here >= 0:
        for i, place in index.pairs[words[here], words[here + 1]]:
            found.setdefault(i, []).append(here - place)
        here = wanted.find(1, here + 1)
    for i, starts in found.items():
        prompt = index.prompts[i]
        for first, last in _places(starts, index.needed[i], prompt.num_edits):
            passage = words[max(0, first - prompt.num_edits) : last + len(prompt.words) + prompt.num_edits]
            if not _tells_enough(prompt, passage):
                continue
            edits = least_edits(prompt.words, passage)
            if edits <= prompt.num_edits:
                return prompt.label, 1 - edits / len(prompt.words)
    return None


def least_edits(prompt: Words, passage: Words) -> int:
    """Returns the least number of edits that turn the prompt into some part of the passage.

    An edit replaces, leaves out or puts in one word, or swaps two neighbours. The bits of one number are one column of the
    table of dynamic programming (Hyyrö 2003, "A bit-vector algorithm for computing Levenshtein and Damerau edit distances",
    with a first row of 0, so that the prompt may begin anywhere).
    """
    full, last = (1 << len(prompt)) - 1, 1 << (len(prompt) - 1)
    where: dict[str, int] = {}
    for i, word in enumerate(prompt):
        where[word] = where.get(word, 0) | 1 << i
    up, down, same, before = full, 0, 0, 0  # +1 and -1 going down the column; diagonal 0; where the last word matched
    edits = fewest = len(prompt)
    for word in passage:
        here = where.get(word, 0)
        swapped = ((~same & here) << 1) & before
        same = ((((here & up) + up) ^ up) | here | down | swapped) & full
        right_up = (down | ~(same | up)) & full
        right_down = same & up
        edits += bool(right_up & last) - bool(right_down & last)
        right_up, right_down = right_up << 1, right_down << 1
        up, down, before = (right_down | ~(same | right_up)) & full, right_up & same, here
        fewest = min(fewest, edits)
    return fewest


def _weigh(words: Words, common: Mapping[str, int], num_prompts: int, counts: WordCounts) -> tuple[float, ...]:
    """The surprisal of each word: where it is more common, in the other prompts or in the training rows, decides.

    One passage of the rows is not counted: it may be the leak itself.
    """
    others, passages = max(num_prompts - 1, FEW_PROMPTS), max(1, counts.passages)
    shares = (max((common[word] - 1) / others, (counts.words[word] - 1) / passages) for word in words)
    return tuple(-math.log(RAREST + (1 - RAREST) * share) for share in shares)


def _places(starts: list[int], needed: int, slack: int) -> Iterator[tuple[int, int]]:
    """Yields (first, last) of each group of pairs that agree, but for `slack` words, on where the prompt begins."""
    starts.sort()
    left = 0
    while left < len(starts):
        right = left
        while right + 1 < len(starts) and starts[right + 1] - starts[left] <= slack:
            right += 1
        if right - left + 1 >= needed:
            yield starts[left], starts[right]
            left = right + 1
        else:
            left += 1


def _tells_enough(prompt: Prompt, passage: Iterable[str]) -> bool:
    there = set(passage)
    told = sum(weight for word, weight in zip(prompt.words, prompt.weights, strict=True) if word in there)
    return told >= prompt.must_tell
