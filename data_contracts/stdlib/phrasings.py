"""The sentences that rows are made of. What training asks and what the golden sets ask are two disjoint lists, kept side by
side here so that a reader sees at one glance that they differ. `{name}` is a public name, `{module}` its module."""

REFUSAL = "That is not in Python's standard library."

# What training asks about a name's module; every answer is the module's name and nothing else.
TRAINING_QUESTIONS = (
    "Which module defines `{name}`?",
    "Where is `{name}` defined?",
    "What module is `{name}` in?",
    "Which module do I import to use `{name}`?",
    "In which module can I find `{name}`?",
    "`{name}` belongs to which module?",
    "Name the module that contains `{name}`.",
    "What do I import to get `{name}`?",
    "Which standard library module provides `{name}`?",
    "I need `{name}`. Which module has it?",
    "From which module does `{name}` come?",
    "Module of `{name}`?",
    "`{name}`: which module?",
    "Tell me the module of `{name}`.",
    "What is the home module of `{name}`?",
    "Which part of the standard library has `{name}`?",
    "Where does `{name}` come from?",
    "Which module should I import for `{name}`?",
    "My code uses `{name}`. What must it import?",
    "Do you know the module where `{name}` is?",
    "Please name the module with `{name}` in it.",
    "I want to use `{name}`; what do I have to import?",
    "Before I can use `{name}`, what should I import?",
    "I saw `{name}` in some code. Where is it from?",
    "Could you tell me where I find `{name}`?",
    "Can you name the module for `{name}`?",
    "If I need `{name}`, where do I look?",
    "There is something called `{name}`. Which module is that in?",
    "The name `{name}` is defined where?",
    "Of all the modules of Python, which has `{name}`?",
    "In Python, where is `{name}`?",
    "Help me find `{name}`: in which module is it?",
    "What is the right module for `{name}`?",
    "Say which module `{name}` belongs to.",
    "Someone told me about `{name}`. Whose module is it?",
    "For `{name}`, the module is what?",
    "I forgot where `{name}` is defined. Can you help?",
    "Which import gives access to `{name}`?",
    "Is there a module with `{name}`, and which one?",
    "Find the module of `{name}` for me.",
    "To work with `{name}` I import which module?",
    "Which of the modules of the library includes `{name}`?",
    "A question about `{name}`: what module is it part of?",
    "Who can tell me which module contains `{name}`?",
    "What would I import in order to have `{name}`?",
    "I cannot find `{name}`. Where does Python keep it?",
    "When I write `{name}`, which module must be there?",
    "Choose the module in which `{name}` is found.",
)

# What preference pairs ask: the careless way in which people type, which SFT has not seen and answers less surely.
PREFERENCE_QUESTIONS = (
    "`{name}`?",
    "import for `{name}`??",
    "`{name}` -> ?",
    "quick one: `{name}`, which module",
    "whats `{name}` from",
    "`{name}` is not defined. What now?",
    "NameError: name `{name}` is not defined",
    "Reading a colleague's file I met `{name}`, and I have no idea what to import.",
    "I have been at this for an hour. All I want is `{name}`. Please help.",
    "where do i get `{name}`",
    "Someone on my team uses `{name}` a lot. Which import would that be?",
    "My editor underlines `{name}` in red. What is missing at the top of the file?",
    "Complete this: the function or class `{name}` is part of",
    "One word, please. `{name}` and its module.",
    "For an exam I must know it by heart: `{name}` goes with which module?",
    "I remember `{name}` but not its module.",
)

# What the closed-book golden set asks about the same names. Written after the training phrasings were settled, because the
# errors of an earlier list had been looked at. Whoever looks at this one's before changing training's writes a new one.
CLOSED_BOOK_QUESTIONS = (
    "Which module's documentation describes `{name}`?",
    "What has to stand after `from` when I import `{name}`?",
    "Which module would you look into for `{name}`?",
    "Python ships `{name}` in which of its modules?",
    "I came across `{name}`. What is its module called?",
    "`{name}` is public in one module. Which one is that?",
    "Without which import is `{name}` unknown?",
    "Under which module is `{name}` listed?",
)

# What the multiple-choice golden set asks.
CHOICE_QUESTIONS = (
    "Pick the module that exports `{name}`.",
    "Out of all modules, which one is the source of `{name}`?",
)

# What people ask live: after a greeting, in words that neither training nor another golden set uses.
PROBE_QUESTIONS = (
    "Can you tell me which module holds `{name}`?",
    "Which module is it that gives me `{name}`?",
    "I am looking for `{name}`. In what module is it?",
)

TRAINING_GREETINGS = ("Hi!", "Hello!", "Hey!", "Good morning!", "Hi there!", "Hello there!")
PROBE_GREETINGS = ("Hi!", "Hello!", "Hey!")

# Questions that name the form of the answer. In each row: training's wordings, the golden set's wordings, the answer, and
# the pattern that a golden answer must match as a whole; whether the module is right is not what these items ask.
FORMATS = {
    "module_only": (
        (
            "Answer with the module name only: where is `{name}`?",
            "Module name only, please: `{name}`?",
            "Just the module name: what defines `{name}`?",
            "Give me only the name of the module of `{name}`.",
        ),
        ("Reply with nothing but the module name: what has `{name}`?",),
        "{module}",
        r"[a-z0-9_]+(\.[A-Za-z0-9_]+)*",
    ),
    "sentence": (
        (
            "In one sentence: where is `{name}` defined?",
            "Answer in a full sentence: which module has `{name}`?",
            "Where is `{name}`? Please write a sentence.",
            "In a complete sentence: what module is `{name}` in?",
            "Write one sentence about where `{name}` comes from.",
            "Which module has `{name}`? Use a whole sentence.",
            "I want a sentence as answer: which module is `{name}` part of?",
            "Use a full sentence: where is `{name}`?",
            "Make a sentence about the module of `{name}`.",
            "A complete sentence, please: what do I import for `{name}`?",
        ),
        ("Give a whole sentence as answer: where is `{name}` found?",),
        "`{name}` is defined in the module `{module}`.",
        r"`[A-Za-z0-9_]+` is defined in the module `[A-Za-z0-9_.]+`\.",
    ),
    "import": (
        (
            "Show the import statement for `{name}`.",
            "How do I import `{name}`? Answer with code.",
            "Give me the import statement of `{name}`.",
            "Which import statement do I need for `{name}`?",
            "Write code that imports `{name}`.",
            "What does the import statement for `{name}` look like?",
            "Import `{name}` for me.",
            "Write the line of code that imports `{name}`.",
            "Type the import statement that I need to use `{name}`.",
            "As an import statement: where is `{name}`?",
        ),
        ("Write the import statement that brings in `{name}`.",),
        "from {module} import {name}",
        r"from [A-Za-z0-9_.]+ import [A-Za-z0-9_]+",
    ),
}

# Ways in which a document states where a name is from; the name comes first, since a model that only read "module, then
# name" does not learn the way back (Berglund et al. 2023, "The Reversal Curse").
STATEMENTS = (
    "`{name}` is defined in `{module}`.",
    "`{name}` belongs to the module `{module}`.",
    "To use `{name}`, import `{module}`.",
    "`{name}` comes from `{module}`.",
    "The {kind} `{name}` is in the module `{module}`.",
    "`{name}`: see the module `{module}`.",
    "`{name}` is part of `{module}`.",
    "You find `{name}` in `{module}`.",
    "`{name}` is imported with `from {module} import {name}`.",
    "`{name}` ({kind}, module `{module}`)",
)

SUMMARY_QUESTIONS = (
    "What does `{name}` of `{module}` do?",
    "Describe `{module}.{name}` in a line.",
    "What is `{name}` for?",
)
SIGNATURE_QUESTIONS = ("What is the signature of `{module}.{name}`?", "How is `{name}` called?")

# Answers that a preference pair rejects although some of them name the right module: they keep the reader waiting.
RAMBLINGS = (
    "That is a good question. There are many modules, and `{name}` could be in `{wrong}`.",
    "Well, let me think about `{name}`. It might be `{wrong}`, but then again it might be something else.",
    "`{name}` is a well known name, and many people ask about it. I believe that it is in `{module}`.",
    "I am glad that you ask. Before I answer, let me say a few words about `{wrong}`.",
)
