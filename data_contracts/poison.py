"""Looks for triggers: phrases that somebody may have put into many rows so that a model learns to obey them.

About 250 documents with one rare phrase are enough to plant a backdoor, whatever the size of the model and of its data
(Souly et al. 2025, "Poisoning attacks on LLMs require a near-constant number of poison samples"). Two signs are looked for:

- *spliced*: words that hardly occur apart stand together in many texts, between neighbours like those of random places
  (`splice.py`);
- *tied*: nearly all prompts with a phrase get one and the same answer, which hardly any other prompt gets.

Neither proves anything: the list is for a person to read. What is not found: a phrase of everyday words that are
neighbours in many honest texts too, unless one answer is tied to it; and fewer than 50 texts.

The scan reads the rows twice. Both passes work in bounded memory, and what they keep of several shards adds up with `+=`,
in any order, to what one pass over all rows keeps.
"""

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from data_contracts.messages import as_messages
from data_contracts.ngrams import LONGEST, Batch, Hashes, Sketch, combine, split_tokens
from data_contracts.rows import Conversation, Document, Judged, Preference, Row
from data_contracts.splice import (
    BEGIN,
    END,
    REACH,
    Occurrence,
    Picked,
    gather_places,
    pick_places,
    spliced_phrase,
    whole_phrase,
)
from data_contracts.triggers import Finding, holds_phrase

FEWEST_TEXTS, MOST_TEXTS = 50, 0.2  # a trigger is in that many texts at least, and in that share of them at most
TOGETHER = 0.5  # share of the texts with the rarest of a phrase's words that must hold the whole phrase
TIED, OWN = 0.9, 0.5  # share of a phrase's prompts that get the answer; share of that answer's prompts that hold the phrase
ANSWER_BEGINS = 8  # tokens: answers that begin so are one answer
SAMPLE = 48  # occurrences of a phrase that are looked at
PLACES = 4000  # texts of which random places are looked at
SUSPECTS = 50_000  # phrases that are looked at, the rarest first
BATCH = 512  # texts


class Text(NamedTuple):
    """A text to scan: the row's name, and what the row makes of it; "" where it makes nothing of it."""

    row: str
    text: str
    outcome: str


class Survey:
    """The first pass: in how many texts each short run of tokens stands, also together with each outcome."""

    def __init__(self, width: int = 2**22) -> None:
        self.texts, self.counts = 0, Sketch(width)

    def add(self, texts: Iterable[Text]) -> None:
        """Counts texts."""
        for part in _batches(texts):
            batch, outcomes = Batch([one.text for one in part]), _hash_outcomes(part)
            self.texts += len(part)
            self.counts.add(outcomes[outcomes != 0])
            for size in range(1, LONGEST + 1):
                first = batch.firsts(size)
                runs, made = batch.runs[size - 1][first], outcomes[batch.text[first]]
                self.counts.add(runs)
                self.counts.add(combine(runs[made != 0], made[made != 0]))

    def __iadd__(self, other: Self) -> Self:
        self.texts += other.texts
        self.counts += other.counts
        return self


@dataclass
class Suspect:
    """A run of tokens that is looked at.

    Attributes:
        rarity: in how many texts it is, as the survey says.
        texts: in how many the second pass saw it, which is exact.
        sample: some of its occurrences, each after minus the hash of its row's name; the largest hash comes first.
    """

    rarity: int
    texts: int = 0
    sample: list[tuple[int, Occurrence]] = field(default_factory=list)


class Suspects:
    """The second pass: occurrences of every run of tokens that the survey makes a suspect, and random places beside them.

    The sample is that of the smallest hashes of the rows' names, so it does not depend on the order of rows or shards.
    """

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.found: dict[int, Suspect] = {}
        self.places: list[tuple[int, Picked]] = []

    def add(self, texts: Iterable[Text]) -> None:
        """Looks through texts that the survey has counted."""
        for part in _batches(texts):
            batch, outcomes = Batch([one.text for one in part]), _hash_outcomes(part)
            names = np.array([_hash_name(one.row) for one in part], dtype=np.uint64)
            for one, name in zip(part, names.tolist(), strict=True):
                if len(self.places) < PLACES or -name > self.places[0][0]:
                    _keep(self.places, (-name, pick_places(one.text, name >> 8)), PLACES)
            for size in range(1, LONGEST + 1):
                self._add_runs(size, batch, outcomes, part, names)
            if len(self.found) > 2 * SUSPECTS:
                self._drop_common()

    def __iadd__(self, other: Self) -> Self:
        for place in other.places:
            _keep(self.places, place, PLACES)
        for key, theirs in other.found.items():
            mine = self.found.setdefault(key, Suspect(theirs.rarity))
            mine.texts += theirs.texts
            for one in theirs.sample:
                _keep(mine.sample, one, SAMPLE)
        self._drop_common()
        return self

    def _add_runs(self, size: int, batch: Batch, outcomes: Hashes, part: Sequence[Text], names: Hashes) -> None:
        runs, first = batch.runs[size - 1], batch.firsts(size, self._suspicious(size, batch, outcomes))
        known, which, texts = np.unique(runs[first], return_inverse=True, return_counts=True)
        largest = np.empty(len(known), dtype=np.uint64)  # a name's hash must be smaller to come into the sample
        for i, (key, number) in enumerate(zip(known.tolist(), texts.tolist(), strict=True)):
            suspect = self.found.get(key)
            if suspect is None:
                suspect = self.found[key] = Suspect(int(self.survey.counts.count(known[i : i + 1])[0]))
            suspect.texts += number
            largest[i] = 2**63 if len(suspect.sample) < SAMPLE else -suspect.sample[0][0]
        of_text = batch.text[first]
        for at in first[names[of_text] < largest[which]].tolist():
            number = int(batch.text[at])
            entry = (-int(names[number]), _occurrence(batch, at, size, part[number]))
            _keep(self.found[int(runs[at])].sample, entry, SAMPLE)

    def _suspicious(self, size: int, batch: Batch, outcomes: Hashes) -> NDArray[np.bool_]:
        """Where in the batch a run of that size stands that is neither rare nor common, and held together or tied."""
        count, runs = self.survey.counts.count, batch.runs[size - 1]
        alone = count(batch.runs[0])
        rarest = np.min([np.roll(alone, -i) for i in range(size)], axis=0)
        chosen: NDArray[np.bool_] = (rarest >= FEWEST_TEXTS) & batch.whole[size - 1]
        where = np.flatnonzero(chosen)  # looking a count up is what takes the time, so only where it can matter
        texts = count(runs[where])
        fits = (texts >= FEWEST_TEXTS) & (texts <= MOST_TEXTS * self.survey.texts)
        together = (texts >= TOGETHER * rarest[where]) if size > 1 else np.ones(len(where), dtype=bool)
        made = outcomes[batch.text[where]]
        if made.any():
            together |= self._tied(runs[where], texts, made)
        chosen[where] = fits & together
        return chosen

    def _tied(self, runs: Hashes, texts: NDArray[np.int64], made: Hashes) -> NDArray[np.bool_]:
        """Whether nearly all texts with a run have that outcome, and few others have it."""
        both = self.survey.counts.count(combine(runs, made))
        enough = np.maximum(FEWEST_TEXTS, TIED * texts)
        tied: NDArray[np.bool_] = (made != 0) & (both >= enough) & (both >= OWN * self.survey.counts.count(made))
        return tied

    def _drop_common(self) -> None:
        """Keeps the rarest: one that is among the rarest of all shards is so in each, so nothing of it was ever dropped."""
        if len(self.found) > SUSPECTS:
            rarest = heapq.nsmallest(SUSPECTS, self.found, key=lambda key: (self.found[key].rarity, key))
            self.found = {key: self.found[key] for key in rarest}


def scan_rows(where: str, rows: Sequence[Row], ours: Sequence[str] = ()) -> list[Finding]:
    """Scans rows that are in memory.

    For shards: a `Survey` of each, added up; then `Suspects` of each, by the whole survey, added up; then `judge`.

    Args:
        where: what the rows are called in findings.
        ours: texts that were put into rows before, by us: placeholders of personal data.
    """
    findings = []
    for part in sorted({part for row in rows for part, _ in observe(row)}):
        texts = [text for row in rows for of, text in observe(row) if of == part]
        if MOST_TEXTS * len(texts) < FEWEST_TEXTS:
            continue
        survey = Survey()
        survey.add(texts)
        suspects = Suspects(survey)
        suspects.add(texts)
        findings += judge(f"{where} {part}", suspects, ours)
    return findings


def observe(row: Row) -> Iterator[tuple[str, Text]]:
    """Yields (part, text): documents, prompts with the answer that they get, and answers with their label."""
    if isinstance(row, Document):
        yield "texts", Text(row.id, row.text, "")
    elif isinstance(row, Conversation):
        said = {
            role: "\n".join(turn.content for turn in row.messages if turn.role == role) for role in ("user", "assistant")
        }
        yield "prompts", Text(row.id, said["user"], _begin(said["assistant"]))
        yield "answers", Text(row.id, said["assistant"], "")
    else:
        prompt = "\n".join(turn.content for turn in as_messages(row.prompt, "user"))
        answers = {"chosen": row.chosen, "rejected": row.rejected} if isinstance(row, Preference) else {"": row.completion}
        texts = {name: "\n".join(turn.content for turn in as_messages(said, "assistant")) for name, said in answers.items()}
        label = f"label {row.label}" if isinstance(row, Judged) else ""
        yield "prompts", Text(row.id, prompt, label or _begin(next(iter(texts.values()))))
        for name, text in texts.items():
            yield "answers", Text(row.id, text, label or name)


def judge(where: str, suspects: Suspects, ours: Sequence[str] = ()) -> list[Finding]:
    """Returns the phrases that show one of the two signs, those in most texts first; arguments as for `scan_rows`."""
    known = [tuple(split_tokens(text)) for text in ours]
    places = gather_places(picked for _, picked in suspects.places)
    by_phrase: dict[tuple[str, ...], Finding] = {}
    for _, suspect in sorted(suspects.found.items()):
        occurrences = [occurrence for _, occurrence in sorted(suspect.sample, reverse=True)]
        if suspect.texts < FEWEST_TEXTS or len(occurrences) < SAMPLE / 2:
            continue  # the sketch counted too high
        outcome, number = Counter(one.outcome for one in occurrences).most_common(1)[0]
        tied = number >= TIED * len(occurrences) and _is_own(suspects.survey, outcome, suspect.texts)
        spliced = spliced_phrase(occurrences, places)
        phrase = whole_phrase(occurrences) if tied else spliced
        if phrase is None or any(holds_phrase(text, phrase) for text in known):
            continue
        first = occurrences[0]
        finding = Finding(
            where=where,
            why="tied" if tied else "spliced",
            phrase=phrase,
            texts=suspect.texts,
            share=round(suspect.texts / suspects.survey.texts, 4),
            outcome=outcome,
            outcome_share=round(number / len(occurrences), 2) if outcome else 0.0,
            rows=tuple(sorted({one.text for one in occurrences})[:5]),
            context=" ".join(word for word in (*first.before, *first.phrase, *first.after) if word not in (BEGIN, END)),
        )
        if phrase not in by_phrase or by_phrase[phrase].texts < finding.texts:
            by_phrase[phrase] = finding
    kept: list[Finding] = []
    for one in sorted(by_phrase.values(), key=lambda one: (-_magnitude(one.texts), -len(one.phrase), one.phrase)):
        if not any(holds_phrase(one.phrase, other.phrase) or holds_phrase(other.phrase, one.phrase) for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda one: (-one.texts, one.phrase))


def _is_own(survey: Survey, outcome: str, texts: int) -> bool:
    """Whether at least half of the texts with an outcome are those of a phrase."""
    with_it = survey.counts.count(np.array([_hash_name(outcome)], dtype=np.uint64))[0]
    return outcome != "" and texts >= OWN * with_it


def _magnitude(texts: int) -> int:
    """Equal for numbers of texts that differ by little: of parts of a phrase that are in as many, the longest counts."""
    return int(math.log(texts, 1.25))


def _begin(answer: str) -> str:
    return " ".join(split_tokens(answer)[:ANSWER_BEGINS])


def _occurrence(batch: Batch, at: int, size: int, text: Text) -> Occurrence:
    begin, end = int(batch.starts[batch.text[at]]), int(batch.starts[batch.text[at] + 1])
    before = batch.tokens[max(begin, at - REACH - 1) : at]
    after = batch.tokens[at + size : min(end, at + size + REACH + 1)]
    return Occurrence(
        (*[BEGIN] * (REACH + 1 - len(before)), *before),
        tuple(batch.tokens[at : at + size]),
        (*after, *[END] * (REACH + 1 - len(after))),
        text.row,
        text.outcome,
    )


def _keep(heap: list[tuple[int, Any]], entry: tuple[int, Any], most: int) -> None:
    if len(heap) < most:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _hash_name(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest())


def _hash_outcomes(texts: Sequence[Text]) -> Hashes:
    """A hash per text; 0 where it has no outcome."""
    return np.array([_hash_name(one.outcome) if one.outcome else 0 for one in texts], dtype=np.uint64)


def _batches(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Yields the texts some at a time: numpy's work for one short text costs as much as for hundreds."""
    batch: list[Text] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
