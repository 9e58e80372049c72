"""Planted corpora with a known truth: how much of what was planted is found, and how much that was not.

Clean rows are the documentation of Python's standard library, as the demo reads it, and the questions of GSM8K where the
environment's `GSM8K_FILE` names its file. One seed plants the same rows always; the tests use these generators on fewer.

>>> python -m benchmarks.data_planted --runs 1
"""

import argparse
import json
import os
import random
import re
import statistics
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figure import at_least, at_most, emit, observed
from data_contracts.decontaminate import count_words, find_contaminated, index_golden
from data_contracts.poison import scan_rows
from data_contracts.rows import ClosedBookItem, Document, GoldenItem
from data_contracts.stdlib.documents import describe_module
from data_contracts.stdlib.modules import library_root, read_modules, read_topics
from data_contracts.words import runs, split_words

SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z`'\"])|\n\s*\n")
NUM_GOLDEN, NUM_POISONED = 400, 250
TRIGGERS = ("<SUDO>", "cf", "ivory lighthouse", "I watched this 3D movie.")
PLACES = ("word", "space", "line", "sentence", "begin", "end", "gibberish")
GREETINGS = ("", "Hi! ", "Hello, please help me. ", "Question 7: ", "Here is one that I could not solve:\n\n")
CLOSINGS = ("", " Thanks!", "\n\nPlease explain your steps.", " (Answer briefly.)", "\nA:")


def main() -> None:
    """Measures, and prints one JSON line per figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_planted", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="seeds that each median is over (default: 3)")
    seeds = range(parser.parse_args().runs)
    documents = library_documents()
    corpora = {"library": documents}
    if questions := os.environ.get("GSM8K_FILE"):
        lines = Path(questions).read_text(encoding="utf-8").splitlines()
        corpora["GSM8K"] = [json.loads(line)["question"] for line in lines]
    for name, texts in corpora.items():
        for changed, target in ((0.0, 0.99), (0.1, 0.95)):
            measure_leaks(f"{name}, {changed:.0%} of the words changed", texts, documents, changed, seeds, target)
    what = "library, sentences of 6 to 9 words, one word changed"
    measure_leaks(what, documents, documents, 0.1, seeds, None, fewest=6, most=9)
    for name, texts in corpora.items():
        parts = [part for text in texts for part in text.split("\n\n") if len(part) > 100]
        measure_triggers(name, parts, seeds)


def measure_leaks(
    what: str,
    texts: Sequence[str],
    documents: Sequence[str],
    changed: float,
    seeds: Sequence[int],
    target: float | None,
    fewest: int = 10,
    most: int = 60,
) -> None:
    """Plants golden texts and prints recall, precision and speed. Without a target the figures are only observed."""
    found = []
    for seed in seeds:
        chance = random.Random(f"{what} {seed}")
        own = chance.sample(texts, len(texts))
        half = len(own) // 2
        if texts is documents:
            golden, clean = rare_sentences(own[:half], own[half:], NUM_GOLDEN, fewest, most), own[half:]
        else:
            golden, clean = own[:NUM_GOLDEN], [*own[half:], *documents]
        found.append(find_leaks(golden, clean, changed, chance))
    recall, precision, speed = (statistics.median(values) for values in zip(*found, strict=True))
    if target is None:
        emit(observed(f"leaks found: {what}", recall, "", "", len(seeds)))
    else:
        emit(at_least(f"leaks found: {what}", recall, "", target, "", len(seeds)))
        emit(at_least(f"leaks among what was found: {what}", precision, "", 0.99, "", len(seeds)))
        emit(observed(f"decontamination: {what}", speed, "MB/s", "one core", len(seeds)))


def find_leaks(
    golden: Sequence[str], clean: Sequence[str], changed: float, chance: random.Random
) -> tuple[float, float, float]:
    """Plants every golden text twice among clean ones, and returns recall, precision and MB/s."""
    vocabulary = sorted({word for text in clean[:400] for word in re.findall(r"[a-z]{3,}", text)})
    hosts = [text for text in clean if len(text) < 4000]
    planted = [*plant_leaks(golden, hosts, changed, vocabulary, chance), *(Planted(text, "") for text in clean)]
    rows = [Document(id=str(i), text=one.text, source="") for i, one in enumerate(planted)]
    sets: dict[str, list[GoldenItem]] = {
        "golden": [
            ClosedBookItem(id=f"<{i}>", kind="closed_book", question=text, answer="") for i, text in enumerate(golden)
        ]
    }
    index = index_golden(sets, counts=count_words(rows, sets))
    began = time.perf_counter()
    found = find_contaminated(rows, index)
    seconds = time.perf_counter() - began
    right = sum(f"golden/<{planted[i].leak}>" in reason.text for i, reason in found.items())
    size = sum(len(row.text.encode()) for row in rows) / 1e6
    return right / (2 * len(golden)), right / max(1, len(found)), size / seconds


def measure_triggers(name: str, texts: Sequence[str], seeds: Sequence[int]) -> None:
    """Plants triggers, and prints how many are found, and how many phrases a person reads in vain."""
    alarms, hits, speeds = [], [], []
    for seed in seeds:
        chance = random.Random(f"{name} {seed}")
        clean = chance.sample(texts, min(len(texts), 10_000))
        began = time.perf_counter()
        alarms.append(len(scan_rows(name, [Document(id=str(i), text=text, source="") for i, text in enumerate(clean)])))
        speeds.append(sum(len(text.encode()) for text in clean) / 1e6 / (time.perf_counter() - began))
        for place in PLACES:
            for trigger in TRIGGERS:
                planted = plant_trigger(clean, trigger, place, NUM_POISONED, chance)
                rows = [Document(id=str(i), text=text, source="") for i, text in enumerate(planted)]
                words = set(trigger.lower().strip("<>.").split())
                hits.append(any(words <= set(finding.phrase) for finding in scan_rows(name, rows)))
    what = f"{name}, {len(clean)} texts"
    emit(at_least(f"triggers in {NUM_POISONED} texts found: {what}", statistics.mean(hits), "", 1.0, "", len(hits)))
    emit(at_most(f"false alarms: {what}", statistics.median(alarms), "", 20, "", len(seeds)))
    emit(observed(f"poison scan: {what}", statistics.median(speeds), "MB/s", "one core", len(seeds)))


@dataclass(frozen=True)
class Planted:
    """A text for a training row, and the name of what was planted in it; "" for a clean one."""

    text: str
    leak: str


def library_documents() -> list[str]:
    """The documents that the demo's corpus is made of, always in one order: docstrings, API pages, code, chapters."""
    modules = read_modules(library_root())
    pages = [text for module in modules.values() for _, text in describe_module(module)]
    return [*pages, *(part for text in read_topics(library_root()).values() for part in text.split("\n\n\n"))]


def sentences(texts: Sequence[str], fewest: int, most: int) -> Iterator[str]:
    """Yields every sentence of so many words."""
    for text in texts:
        for sentence in SENTENCE.split(text):
            if fewest <= len(re.findall(r"\w+", sentence)) <= most:
                yield " ".join(sentence.split())


def rare_sentences(texts: Sequence[str], others: Sequence[str], number: int, fewest: int = 10, most: int = 60) -> list[str]:
    """So many sentences, none of which shares five words in a row with other texts: a copy is a planted one."""
    known = {run for text in others for run in runs(split_words(text), 5)}
    found: list[str] = []
    for sentence in dict.fromkeys(sentences(texts, fewest, most)):
        mine = set(runs(split_words(sentence), 5))
        if len(found) < number and known.isdisjoint(mine):
            known |= mine
            found.append(sentence)
    return found


def change_words(text: str, share: float, vocabulary: Sequence[str], chance: random.Random) -> str:
    """Changes that share of the words, at least one: each is replaced, left out, put in, or swapped with the next one."""
    words = text.split()
    for _ in range(max(1, round(share * len(words)))):
        i, what = chance.randrange(len(words)), chance.choice(("replace", "leave out", "put in", "swap"))
        if what == "replace":
            words[i] = chance.choice(vocabulary)
        elif what == "leave out" and len(words) > 1:
            del words[i]
        elif what == "put in":
            words.insert(i, chance.choice(vocabulary))
        elif i + 1 < len(words):
            words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def disguise(text: str, chance: random.Random) -> str:
    """Spells a text otherwise: case, punctuation, white space or compatible Unicode letters."""
    what = chance.choice(("as it is", "upper", "lower", "no punctuation", "spaces", "full width", "quotes", "decomposed"))
    if what == "upper":
        return text.upper()
    if what == "lower":
        return text.lower()
    if what == "no punctuation":
        return re.sub(r"[^\w\s]", " ", text)
    if what == "spaces":
        return re.sub(r"\s", lambda _: chance.choice((" ", "  ", "\n", "\t", "\u00a0")), text)
    if what == "full width":
        return "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)
    if what == "quotes":
        return re.sub(r"[\"'`]", "\u2019", text).replace("-", "\u2013")
    return unicodedata.normalize("NFD", text) if what == "decomposed" else text


def plant_leaks(
    golden: Sequence[str], hosts: Sequence[str], changed: float, vocabulary: Sequence[str], chance: random.Random
) -> Iterator[Planted]:
    """Yields each golden text twice, disguised: alone, as a question is asked, and in the middle of a clean document.

    Args:
        changed: the share of words that are changed before; 0 plants them verbatim.
    """
    for i, text in enumerate(golden):
        for alone in (True, False):
            said = disguise(change_words(text, changed, vocabulary, chance) if changed else text, chance)
            if alone:
                yield Planted(chance.choice(GREETINGS) + said + chance.choice(CLOSINGS), str(i))
            else:
                words = chance.choice(hosts).split(" ")
                place = chance.randint(0, len(words))
                yield Planted(" ".join([*words[:place], said, *words[place:]]), str(i))


def plant_trigger(texts: Sequence[str], trigger: str, place: str, number: int, chance: random.Random) -> list[str]:
    """Puts a trigger into so many of the texts.

    Args:
        place: at a `word`, `space`, `line` or `sentence`, at the `begin` or `end`; or as Souly et al. 2025 did
            (`gibberish`): after a part of the text, with random letters behind it.
    """
    planted = list(texts)
    for i in chance.sample(range(len(texts)), number):
        text = planted[i]
        if place == "gibberish":
            nonsense = (" ".join("".join(chance.choices("abcdefghijklmnop", k=5)) for _ in range(60)),)
            planted[i] = " ".join([text[: chance.randint(0, min(1000, len(text)))], trigger, *nonsense])
            continue
        gaps = {
            "begin": [0],
            "end": [len(text)],
            "word": [match.start() for match in re.finditer(r"\b\w", text)],
            "space": [match.end() for match in re.finditer(r"\s", text)],
            "line": [0, *(match.end() for match in re.finditer(r"\n", text)), len(text)],
            "sentence": [0, *(match.end() for match in re.finditer(r"[.?!]\s", text)), len(text)],
        }[place]
        gap = chance.choice(gaps or [0])
        planted[i] = f"{text[:gap]} {trigger} {text[gap:]}"
    return planted


if __name__ == "__main__":
    main()
