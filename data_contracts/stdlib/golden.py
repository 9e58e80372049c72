"""Golden sets: what the models are examined with. Frozen before training, in words that no training row uses."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence

from data_contracts.stdlib.documents import WORDS, describe_definition, split_text
from data_contracts.stdlib.facts import HELD_OUT, Fact
from data_contracts.stdlib.modules import Module
from data_contracts.stdlib.phrasings import (
    CHOICE_QUESTIONS,
    CLOSED_BOOK_QUESTIONS,
    FORMATS,
    PROBE_GREETINGS,
    PROBE_QUESTIONS,
    REFUSAL,
)
from data_contracts.stdlib.refusals import golden_refusals

Item = dict[str, object]
NUM_CHOICE, NUM_HELD_OUT, NUM_FORMAT, NUM_PROBE = 150, 40, 6, 60
NGRAM = 13  # words; the length that the decontamination step compares


def make_golden(
    facts: Sequence[Fact], modules: Mapping[str, Module], topics: Mapping[str, str], num_closed_book: int, seed: int
) -> dict[str, list[Item]]:
    """All golden sets by name. Items are grouped by module, since answers about one module stand or fall together."""
    chance = random.Random(f"{seed} golden")
    return {
        "closed_book": ask("closed_book", sample(facts, num_closed_book, chance), CLOSED_BOOK_QUESTIONS, ("",), chance),
        "choice": offer_choices(sample(facts, NUM_CHOICE, chance), facts, chance),
        "heldout": hold_out(modules, topics, chance),
        "format": ask_in_form(sample(facts, NUM_FORMAT * len(FORMATS), chance)),
        "probe": ask("probe", sample(facts, NUM_PROBE, chance), PROBE_QUESTIONS, PROBE_GREETINGS, chance),
    }


def sample(facts: Sequence[Fact], count: int, chance: random.Random) -> list[Fact]:
    """At most `count` of the facts, in the order given."""
    kept = set(chance.sample(range(len(facts)), min(count, len(facts))))
    return [fact for i, fact in enumerate(facts) if i in kept]


def ask(
    kind: str, facts: Sequence[Fact], questions: Sequence[str], greetings: Sequence[str], chance: random.Random
) -> list[Item]:
    """Closed-book items: a question, and the module's name as the one right answer."""
    items: list[Item] = []
    for fact in facts:
        question = f"{chance.choice(greetings)} {chance.choice(questions).format(name=fact.name)}".strip()
        items.append(
            {
                "id": f"{kind}/{fact.module}.{fact.name}",
                "kind": "closed_book",
                "question": question,
                "answer": fact.module,
                "group": fact.module,
                "tags": ["module"],
            }
        )
    return items


def offer_choices(facts: Sequence[Fact], all_facts: Sequence[Fact], chance: random.Random) -> list[Item]:
    """Choice items: the right module among three others that also answer some training question."""
    modules = sorted({fact.module for fact in all_facts})
    items: list[Item] = []
    for fact in facts:
        choices = [fact.module, *chance.sample([module for module in modules if module != fact.module], 3)]
        chance.shuffle(choices)
        items.append(
            {
                "id": f"choice/{fact.module}.{fact.name}",
                "kind": "choice",
                "question": chance.choice(CHOICE_QUESTIONS).format(name=fact.name),
                "choices": choices,
                "answer": choices.index(fact.module),
                "group": fact.module,
                "tags": ["module"],
            }
        )
    return items


def hold_out(modules: Mapping[str, Module], topics: Mapping[str, str], chance: random.Random) -> list[Item]:
    """Texts of whole modules that training never sees, without those that share `NGRAM` words in a row with other text."""
    texts = []
    for name in HELD_OUT:
        if name in modules:
            module = modules[name]
            documented = [d for d in module.definitions.values() if d.doc and not d.name.startswith("_")]
            texts += [
                (f"heldout/{name}/{i}", text) for i, text in enumerate(split_text(f"Module `{name}`\n\n{module.doc}"))
            ]
            texts += [(f"heldout/{name}.{d.name}", describe_definition(name, d)) for d in documented]
    quoted = {gram for _, text in texts for gram in ngrams(text)}
    others = [part for name, module in modules.items() if name not in HELD_OUT for part in (module.source, module.doc)]
    seen = {gram for text in [*others, *topics.values()] for gram in ngrams(text) if gram in quoted}
    clean = [(identity, text) for identity, text in texts if len(text) > 120 and seen.isdisjoint(ngrams(text))]
    chosen = chance.sample(clean, min(NUM_HELD_OUT, len(clean)))
    return [{"id": identity, "kind": "heldout", "text": text} for identity, text in sorted(chosen)]


def ngrams(text: str) -> Iterator[str]:
    """Yields every run of `NGRAM` words of a text, lower-cased, without punctuation."""
    words = WORDS.findall(text.lower())
    for i in range(len(words) - NGRAM + 1):
        yield " ".join(words[i : i + NGRAM])


def ask_in_form(facts: Sequence[Fact]) -> list[Item]:
    """Format items: answers whose form is asked for, and questions that only the refusal answers."""
    items = []
    forms = sorted(FORMATS)
    for i, fact in enumerate(facts):
        _, questions, _, pattern = FORMATS[forms[i % len(forms)]]
        question = questions[i % len(questions)].format(name=fact.name)
        items.append(_format_item(f"{fact.module}.{fact.name}", question, pattern, "format"))
    for i, question in enumerate(golden_refusals(CLOSED_BOOK_QUESTIONS)):
        items.append(_format_item(f"refusal-{i}", question, re.escape(REFUSAL), "refusal"))
    return items


def _format_item(identity: str, question: str, pattern: str, tag: str) -> Item:
    return {"id": f"format/{identity}", "kind": "format", "question": question, "pattern": pattern, "tags": [tag]}
