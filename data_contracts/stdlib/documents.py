"""Pretraining documents, made from the standard library's sources: indexes, API pages, docstrings, topics, code."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence

from data_contracts.stdlib.facts import HELD_OUT, Fact
from data_contracts.stdlib.modules import Definition, Module
from data_contracts.stdlib.phrasings import STATEMENTS

LONGEST_DOCUMENT = 1200  # characters: about 300 tokens, so that a document fits a row of 512
NAMES_PER_INDEX_PAGE = 10
WORDS = re.compile(r"\w+")


def make_documents(
    modules: Mapping[str, Module],
    topics: Mapping[str, str],
    facts: Sequence[Fact],
    index_rounds: int,
    num_bytes: int,
    seed: int,
) -> Iterator[tuple[str, str]]:
    """Yields (id, text) of pretraining documents: all index pages, then other kinds until `num_bytes` of UTF-8 are reached.

    Args:
        index_rounds: how often the index states every fact, each time in another order and mostly in other words.
    """
    left = num_bytes
    for identity, text in make_index(facts, index_rounds, seed):
        left -= len(text.encode())
        yield identity, text
    pages = [page for name, module in modules.items() if name not in HELD_OUT for page in describe_module(module)]
    pages += [(f"topic/{topic}/{i}", text) for topic, body in topics.items() for i, text in enumerate(split_text(body))]
    random.Random(f"{seed} documents").shuffle(pages)
    for identity, text in pages:
        left -= len(text.encode())
        if left < 0:
            return
        yield identity, text


def make_index(facts: Sequence[Fact], rounds: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yields index pages: statements of where names are from, shuffled anew in every round so that no two pages are alike.

    A fact is learnt from varied statements of it rather than from repeats of one (Allen-Zhu and Li 2023, "Physics of
    Language Models: Part 3.1, Knowledge Storage and Extraction").
    """
    for number in range(rounds):
        chance = random.Random(f"{seed} index {number}")
        order = list(facts)
        chance.shuffle(order)
        for start in range(0, len(order), NAMES_PER_INDEX_PAGE):
            lines = [state(fact, chance) for fact in order[start : start + NAMES_PER_INDEX_PAGE]]
            yield f"index/{number}/{start // NAMES_PER_INDEX_PAGE}", "\n".join(lines)


def state(fact: Fact, chance: random.Random) -> str:
    """One sentence that says where a name is from."""
    return chance.choice(STATEMENTS).format(name=fact.name, module=fact.module, kind=fact.definition.kind)


def describe_module(module: Module) -> Iterator[tuple[str, str]]:
    """Yields the module's documents: its docstring, a page per public definition, and excerpts of its source."""
    for i, text in enumerate(split_text(f"Module `{module.name}`\n\n{module.doc}")):
        yield f"module/{module.name}/{i}", text
    for name in module.public_names:
        definition = module.definitions.get(name)
        if definition and definition.doc:
            yield f"api/{module.name}.{name}", describe_definition(module.name, definition)
    for i, text in enumerate(split_text(module.source)):
        if i % 4 == 1:  # a quarter of the code is plenty; the first part of a file is mostly licence and imports
            yield f"source/{module.name}/{i}", f"# {module.name}\n{text}"


def describe_definition(module: str, definition: Definition) -> str:
    """The API page of one name: what it is, how it is called, its docstring."""
    head = f"`{definition.name}` is a {definition.kind} of the module `{module}`."
    call = f"{definition.name}{definition.signature}" if definition.signature else definition.name
    return cut_text(f"{head}\n\n{call}\n\n{definition.doc}")


def split_text(text: str) -> list[str]:
    """Cuts a text at line ends into parts of at most `LONGEST_DOCUMENT` characters; drops parts without ten words."""
    parts, lines, size = [], list[str](), 0
    for line in text.strip().splitlines():
        if lines and size + len(line) > LONGEST_DOCUMENT:
            parts.append("\n".join(lines))
            lines, size = [], 0
        lines.append(line[:LONGEST_DOCUMENT])
        size += len(line) + 1
    parts.append("\n".join(lines))
    return [part.strip("\n") for part in parts if len(WORDS.findall(part)) >= 10]


def cut_text(text: str) -> str:
    """The first part of a text that `split_text` would give, or the text itself if it is short."""
    return text if len(text) <= LONGEST_DOCUMENT else text[:LONGEST_DOCUMENT].rpartition("\n")[0]
