"""Questions that have no answer in the standard library, so that the assistant learns to say so in one fixed sentence.

Training and golden items are drawn from disjoint lists: what is tested is the habit, not the memory of a row.
"""

import random
from collections.abc import Iterator

# Each row: a question, then what training puts in it, then what the golden set puts in it.
OUTSIDE = (
    (
        "What is the capital of {}?",
        (
            "France",
            "Spain",
            "Kenya",
            "Japan",
            "Peru",
            "Chile",
            "Norway",
            "Greece",
            "Egypt",
            "Cuba",
            "Nepal",
            "Ghana",
            "Malta",
            "Qatar",
            "Samoa",
            "Tonga",
        ),
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
# Names that no module defines, put together from two parts.
INVENTED_STARTS = (
    "banana",
    "pickled_onion",
    "wombat",
    "turnip",
    "gargle",
    "snorkel",
    "zebra",
    "mumble",
    "flamingo",
    "porridge",
    "cactus",
    "waffle",
)
INVENTED_ENDS = ("ifier", "spinner", "washer", "juggler", "blaster", "wobbler", "tickler", "grinder", "slicer", "hugger")


def training_refusals(questions: tuple[str, ...], count: int, chance: random.Random) -> Iterator[str]:
    """Yields distinct questions to refuse, half about the world outside, half about invented names."""
    outside = [question.format(item) for question, items, _ in OUTSIDE for item in items]
    names = [
        f"{start}_{end}" for i, start in enumerate(INVENTED_STARTS) for j, end in enumerate(INVENTED_ENDS) if (i + j) % 4
    ]
    invented = [question.format(name=name) for question in questions for name in names]
    chance.shuffle(outside)
    chance.shuffle(invented)
    yield from outside[: count // 2]
    yield from invented[: count - count // 2]


def golden_refusals(questions: tuple[str, ...]) -> list[str]:
    """The questions of the golden set: other places and dishes, other invented names in other words."""
    outside = [question.format(item) for question, _, items in OUTSIDE for item in items]
    names = [
        f"{start}_{end}"
        for i, start in enumerate(INVENTED_STARTS)
        for j, end in enumerate(INVENTED_ENDS)
        if (i + j) % 4 == 0
    ]
    invented = [questions[i % len(questions)].format(name=name) for i, name in enumerate(names[:12])]
    return outside + invented
