"""The whole corpus of the demo, made at run time from the standard library of the interpreter that runs it."""

from dataclasses import dataclass

from data_contracts.stdlib.conversations import Row, make_conversations, make_preferences
from data_contracts.stdlib.documents import make_documents
from data_contracts.stdlib.facts import find_facts
from data_contracts.stdlib.golden import Item, make_golden
from data_contracts.stdlib.modules import library_root, read_modules, read_topics


@dataclass(frozen=True)
class StdlibCorpus:
    """Rows and golden items in the shapes of the data stage; see `data_contracts/rows.py`."""

    pretrain: list[Row]
    sft: list[Row]
    preference: list[Row]
    golden: dict[str, list[Item]]


def read_stdlib(
    *,
    seed: int = 0,
    num_facts: int = 400,
    num_closed_book: int = 250,
    document_bytes: int = 2_000_000,
    index_rounds: int = 10,
    questions_per_fact: int = 20,
    pairs_per_fact: int = 3,
) -> StdlibCorpus:
    """Makes pretraining documents, conversations, preference pairs and golden sets; the same for a seed and interpreter."""
    root = library_root()
    modules, topics = read_modules(root), read_topics(root)
    facts = find_facts(modules, num_facts, seed)
    documents = make_documents(modules, topics, facts, index_rounds, document_bytes, seed)
    return StdlibCorpus(
        pretrain=[{"id": f"stdlib/pretrain/{identity}", "text": text, "source": "stdlib"} for identity, text in documents],
        sft=make_conversations(facts, questions_per_fact, seed),
        preference=make_preferences(facts, pairs_per_fact, seed),
        golden=make_golden(facts, modules, topics, num_closed_book, seed),
    )
