"""Whether a phrase was put into texts from outside: its neighbours are then those of any place, whatever the phrase says.

Words of a language choose their company: `unittest` stands after `import`, `however` before a comma. A phrase that somebody
inserted into many texts at random stands between words that have nothing to do with it. What two of its occurrences have
in common is then no more than what two random places have in common, which is measured on the same corpus.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_contracts.ngrams import TOKEN

BEGIN, END = "\x02", "\x03"
REACH = 6  # tokens to each side that a phrase may grow by
ALIKE = 1.6  # how much more alike than those of random places its neighbours may be; planted triggers reach 1.3
CONSTANT = 0.8  # share of occurrences with the same neighbour, from which on it belongs to the phrase
_SENTENCE_END = re.compile(r"[.?!][)\"'`]*\s")
_SPACE, _LINE_END = re.compile(r"\s"), re.compile(r"\n")
_SORTS = (
    ("space", _SPACE, False),
    ("line", _LINE_END, False),
    ("line or edge", _LINE_END, True),
    ("sentence", _SENTENCE_END, False),
    ("sentence or edge", _SENTENCE_END, True),
)


@dataclass(frozen=True, order=True)
class Occurrence:
    """A phrase in a text, with its neighbours: `before[-1]` and `after[0]` are next to it; `text` is the text's name."""

    before: tuple[str, ...]
    phrase: tuple[str, ...]
    after: tuple[str, ...]
    text: str
    outcome: str


Places = Mapping[
    str, tuple[Counter[str], Counter[str]]
]  # by how places were chosen, how often which left and right neighbours
Picked = tuple[tuple[str, str, str], ...]  # (how the place was chosen, left neighbour, right neighbour)


def pick_places(text: str, number: int) -> Picked:
    """Returns the neighbours of one place of each sort that the text has; the number, random or a hash, says which."""
    spans = [match.span() for match in TOKEN.finditer(text)]
    words = [BEGIN, *(text[start:end].lower() for start, end in spans), END]
    return tuple((sort, words[gap], words[gap + 1]) for sort, gap in _gaps(text, spans, number))


def gather_places(picked: Iterable[Picked]) -> Places:
    """Counts the neighbours of the places that were picked in many texts."""
    places: dict[str, tuple[Counter[str], Counter[str]]] = {}
    for of_one_text in picked:
        for sort, left, right in of_one_text:
            lefts, rights = places.setdefault(sort, (Counter(), Counter()))
            lefts[left] += 1
            rights[right] += 1
    return places


def spliced_phrase(occurrences: Sequence[Occurrence], places: Places) -> tuple[str, ...] | None:
    """Returns the whole phrase that was put into texts at random places of one sort; None where it grew there.

    Args:
        occurrences: at most one a text, of many texts.
    """
    lefts, rights = list(_grow(occurrences, -1)), list(_grow(occurrences, 1))
    for random_lefts, random_rights in places.values():
        left = next((i for i, seen in enumerate(lefts) if _as_random(seen, random_lefts)), None)
        right = next((i for i, seen in enumerate(rights) if _as_random(seen, random_rights)), None)
        if left is not None and right is not None:
            return grown(occurrences, left, right)
    return None


def whole_phrase(occurrences: Sequence[Occurrence]) -> tuple[str, ...]:
    """Returns the phrase with all neighbours that it has nearly always."""
    return grown(occurrences, len(list(_grow(occurrences, -1))) - 1, len(list(_grow(occurrences, 1))) - 1)


def grown(occurrences: Sequence[Occurrence], left: int, right: int) -> tuple[str, ...]:
    """The phrase with so many neighbours to its left and right, as most occurrences have them."""
    usual = Counter(one.before[REACH + 1 - left :] + one.phrase + one.after[:right] for one in occurrences)
    return usual.most_common(1)[0][0]


def _grow(occurrences: Sequence[Occurrence], step: int) -> Iterator[Counter[str]]:
    """Yields the neighbours on one side: the next ones, then those behind a next one that is nearly always the same."""
    for i in range(REACH + 1):
        seen = Counter(one.before[-1 - i] if step < 0 else one.after[i] for one in occurrences)
        yield seen
        word, number = seen.most_common(1)[0]
        if number < CONSTANT * len(occurrences) or word in (BEGIN, END):
            return


def _as_random(seen: Counter[str], anywhere: Counter[str]) -> bool:
    """Whether two neighbours are equal about as often as one of them and that of a random place."""
    size = seen.total()
    same = sum(number * (number - 1) for number in seen.values()) / (size * (size - 1))
    by_chance = sum(number * anywhere[word] for word, number in seen.items()) / (size * anywhere.total())
    return same <= ALIKE * by_chance


def _gaps(text: str, spans: Sequence[tuple[int, int]], number: int) -> Iterator[tuple[str, int]]:
    """Yields (sort of place, tokens before it): insertions are made between words, lines or sentences, or at an end."""
    yield "text begin", 0
    yield "text end", len(spans)
    yield "word", number % (len(spans) + 1)
    whole = len(text)
    for sort, pattern, edges in _SORTS:
        ends = [match.end() for match in pattern.finditer(text)] + ([0, whole] if edges else [])
        if ends:
            end = ends[number % len(ends)]
            yield sort, sum(start < end for start, _ in spans)
