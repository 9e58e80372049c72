"""Questions that have no answer in the standard library, so that the assistant learns to say so in one fixed sentence.

Training and golden items are drawn from disjoint lists: what is tested is the habit, not the memory of a row.
"""

import random
from collections.abc import Iterator

# Each row: a question, then what training puts in it, then what the golden set puts in it.
OUTSIDE = (
    (
        "What is the capital of {}?",
        ("France", "Spain", "Kenya", "Japan", "Peru", "Chile", "Norway", "Greece", "Egypt", "Cuba", "Nepal", "Ghana"),
        ("Italy", "Brazil", "India", "Poland"),
    ),
    (
        "How do I cook {}?",
        ("rice", "pasta", "soup", "eggs", "beans", "lentils", "curry", "risotto", "pancakes", "noodles", "carrots", "tofu"),
        ("potatoes", "spinach", "porridge"),
    ),
    (
        "Who painted {}?",
        ("Guernica", "Olympia", "Nighthawks", "Primavera", "Ophelia", "Sunflowers", "Relativity", "Whaam"),
        ("Starlight", "Nightfall"),
    ),
    (
        "How far is it to {}?",
        ("London", "Paris", "Tokyo", "Lima", "Oslo", "Cairo", "Delhi", "Dakar", "Quito", "Sydney", "Vienna", "Prague"),
        ("Rome", "Berlin", "Madrid"),
    ),
    (
        "Will it rain in {} tomorrow?",
        ("April", "Boston", "Dublin", "Kyoto", "Lagos", "Milan", "Naples", "Porto", "Riga", "Seoul", "Turin", "Zurich"),
        ("Geneva", "Hamburg", "Lisbon"),
    ),
)
# Names that no module defines, put together from two parts; a quarter of the combinations is kept for the golden set.
INVENTED_STARTS = ("banana", "onion", "wombat", "turnip", "gargle", "snorkel", "mumble", "flamingo", "cactus", "waffle")
INVENTED_ENDS = ("ifier", "spinner", "washer", "juggler", "blaster", "wobbler", "tickler", "grinder", "slicer", "hugger")
NUM_GOLDEN_INVENTED = 12


def training_refusals(questions: tuple[str, ...], count: int, chance: random.Random) -> Iterator[str]:
    """Yields distinct questions to refuse: at most half about the world outside, the others about invented names."""
    outside = [question.format(item) for question, items, _ in OUTSIDE for item in items]
    invented = [question.format(name=name) for question in questions for name in invent_names(golden=False)]
    chance.shuffle(outside)
    chance.shuffle(invented)
    yield from outside[: count // 2]
    yield from invented[: count - count // 2]


def golden_refusals(questions: tuple[str, ...]) -> list[str]:
    """The questions of the golden set: other places and dishes, other invented names in other words."""
    outside = [question.format(item) for question, _, items in OUTSIDE for item in items]
    names = invent_names(golden=True)[:NUM_GOLDEN_INVENTED]
    return outside + [questions[i % len(questions)].format(name=name) for i, name in enumerate(names)]


def invent_names(golden: bool) -> list[str]:
    """The invented names of the golden set, or those of training."""
    combinations = [(start, end) for start in enumerate(INVENTED_STARTS) for end in enumerate(INVENTED_ENDS)]
    return [f"{start}_{end}" for (i, start), (j, end) in combinations if ((i + j) % 4 == 0) == golden]
