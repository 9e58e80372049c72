"""Conversations for supervised fine-tuning, and preference pairs, generated from facts."""

import random
from collections.abc import Iterator, Sequence

from data_contracts.stdlib.facts import Fact
from data_contracts.stdlib.phrasings import (
    FORMATS,
    PREFERENCE_QUESTIONS,
    RAMBLINGS,
    REFUSAL,
    SIGNATURE_QUESTIONS,
    SUMMARY_QUESTIONS,
    TRAINING_GREETINGS,
    TRAINING_QUESTIONS,
)
from data_contracts.stdlib.refusals import training_refusals

Row = dict[str, object]
GREETED_SHARE = 0.1  # of the questions that training asks: people greet, most questions do not
REFUSAL_SHARE = 0.04  # of the module questions: enough to learn the sentence, too little to doubt every name
REFUSED_PAIRS = 0.15  # of the pairs; pairs that only reject refusals taught the model never to refuse
ANSWERS_IN_FORM = 1  # of each form for each fact; two took a third of the learning from the module facts
LONGEST_ANSWER = 50  # characters of a signature or summary; longer ones cost steps that the module facts need


def make_conversations(facts: Sequence[Fact], questions_per_fact: int, seed: int) -> list[Row]:
    """SFT rows, shuffled: every fact in `questions_per_fact` phrasings, answers in given forms, summaries, refusals.

    Returns:
        Rows {"id", "messages": [user, assistant], "source", "tags"} with distinct questions.
    """
    chance = random.Random(f"{seed} conversations")
    rows = []
    for fact in facts:
        key = f"{fact.module}.{fact.name}"
        for i in chance.sample(range(len(TRAINING_QUESTIONS)), min(questions_per_fact, len(TRAINING_QUESTIONS))):
            question = greet(TRAINING_QUESTIONS[i].format(name=fact.name), chance)
            rows.append(conversation(f"module/{key}/{i}", question, fact.module, "module"))
        for i, (tag, question, answer) in enumerate(other_questions(fact, chance)):
            rows.append(conversation(f"{tag}/{key}/{i}", question, answer, tag))
    num_refusals = int(REFUSAL_SHARE * questions_per_fact * len(facts))
    for i, question in enumerate(training_refusals(TRAINING_QUESTIONS, num_refusals, chance)):
        rows.append(conversation(f"refusal/{i}", greet(question, chance), REFUSAL, "refusal"))
    chance.shuffle(rows)
    return rows


def other_questions(fact: Fact, chance: random.Random) -> Iterator[tuple[str, str, str]]:
    """Yields (tag, question, answer): answers in each given form, and what the name does and takes if that is short."""
    names = {"name": fact.name, "module": fact.module}
    for form, (questions, _, answer, _) in FORMATS.items():
        for question in chance.sample(questions, ANSWERS_IN_FORM):
            yield f"format-{form}", question.format(**names), answer.format(**names)
    definition = fact.definition
    if 10 <= len(definition.summary) <= LONGEST_ANSWER:
        yield "summary", chance.choice(SUMMARY_QUESTIONS).format(**names), definition.summary
    if 4 <= len(definition.signature) <= LONGEST_ANSWER:
        yield "signature", chance.choice(SIGNATURE_QUESTIONS).format(**names), f"{fact.name}{definition.signature}"


def make_preferences(facts: Sequence[Fact], pairs_per_fact: int, seed: int) -> list[Row]:
    """Preference rows, shuffled: the right and brief answer against a worse one, to questions as people type them.

    Returns:
        Rows {"id", "prompt": [user], "chosen": [assistant], "rejected": [assistant], "source"}.
    """
    chance = random.Random(f"{seed} preferences")
    modules = sorted({fact.module for fact in facts})
    rows: list[Row] = []
    for fact in facts:
        for question in chance.sample(PREFERENCE_QUESTIONS, min(pairs_per_fact, len(PREFERENCE_QUESTIONS))):
            asked = question.format(name=fact.name)
            rows.append(
                pair(f"{fact.module}.{fact.name}/{len(rows)}", asked, fact.module, worse_answer(fact, modules, chance))
            )
    num_refusals = int(REFUSED_PAIRS * len(rows))
    for i, asked in enumerate(training_refusals(PREFERENCE_QUESTIONS, num_refusals, chance)):
        rows.append(pair(f"refusal/{i}", asked, REFUSAL, chance.choice(modules)))
    chance.shuffle(rows)
    return rows


def worse_answer(fact: Fact, modules: Sequence[str], chance: random.Random) -> str:
    """What a hasty assistant says: a plausible wrong module, a refusal of what it could know, or many words."""
    wrong = plausible_mistake(fact, modules, chance)
    rambling = chance.choice(RAMBLINGS).format(name=fact.name, module=fact.module, wrong=wrong)
    return chance.choices((wrong, REFUSAL, rambling), weights=(5, 1, 1))[0]


def plausible_mistake(fact: Fact, modules: Sequence[str], chance: random.Random) -> str:
    """Another module: one of the same package or with a word of its name in the fact's name if there is any."""
    others = [module for module in modules if module != fact.module]
    package = fact.module.partition(".")[0]
    near = [module for module in others if module.partition(".")[0] == package or module in fact.name.lower()]
    return chance.choice(near or others)


def greet(question: str, chance: random.Random) -> str:
    """The question, with a greeting before it in one case of ten."""
    return f"{chance.choice(TRAINING_GREETINGS)} {question}" if chance.random() < GREETED_SHARE else question


def conversation(identity: str, question: str, answer: str, tag: str) -> Row:
    """An SFT row of one question and its answer."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": f"stdlib/sft/{identity}", "messages": messages, "source": "stdlib", "tags": [tag]}


def pair(identity: str, question: str, chosen: str, rejected: str) -> Row:
    """A preference row of one question and two answers."""
    return {
        "id": f"stdlib/preference/{identity}",
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "source": "stdlib",
    }
