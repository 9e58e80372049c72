"""The published rules, against the library that FineWeb was made with; languages; toxicity."""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.data_planted import library_documents
from data_contracts.config import DataConfig
from data_contracts.quality import RuleSet, check_quality
from data_contracts.rows import Conversation, Document
from data_contracts.screen import check_row, screen_quality
from data_contracts.toxicity import load_toxicity
from lineage.errors import BadInput

PROSE = (
    "The river rose in the night, and by morning it had reached the lower meadow. We carried what we could to the barn. "
    "Nobody had seen such a flood in forty years. The old miller said that the bridge would hold, but he moved his family "
    "to the hill with all of their things. In the afternoon the rain stopped and the water began to fall again."
)
WORDS = [
    "river",
    "meadow",
    "barn",
    "flood",
    "miller",
    "bridge",
    "family",
    "hill",
    "rain",
    "water",
    "the",
    "of",
    "and",
    "to",
]


def lines(*texts: str) -> str:
    return "\n".join(texts)


BROKEN: dict[str, tuple[RuleSet, str]] = {
    "gopher_words": ("gopher", "Too short a text."),
    "gopher_word_length": ("gopher", " ".join(["a b of to it"] * 20)),
    "gopher_hashes": ("gopher", PROSE.replace("the", "# the").replace("and", "## and").replace("he ", "# he ")),
    "gopher_ellipses": ("gopher", PROSE.replace("the ", "the... ").replace(". ", "... ")),
    "gopher_bullet_lines": ("gopher", lines(*(f"- {part}" for part in PROSE.split(". ")))),
    "gopher_ellipsis_lines": ("gopher", PROSE.replace(". ", "...\n")),
    "gopher_alphabetic_words": ("gopher", PROSE + " 12345" * 30),
    "gopher_stop_words": ("gopher", re.sub(r"\b(the|and|to|of|be|that|have|with)\b", "une", PROSE)),
    "gopher_repeated_paragraphs": ("gopher", "\n\n".join([PROSE, *["Read on, please."] * 2])),
    "gopher_repeated_lines": ("gopher", lines(PROSE, *["Read on, please."] * 2)),
    "gopher_repeated_line_characters": ("gopher", lines(PROSE, "One.", "Two.", "Three.", PROSE)),
    "gopher_top_2_gram": ("gopher", PROSE + " grey herons" * 12),
    "gopher_repeated_10_grams": ("gopher", f"{PROSE} old miller said that the bridge would hold, but he"),
    "c4_lorem_ipsum": ("c4", "Lorem ipsum dolor sit amet."),
    "c4_curly_bracket": ("c4", "This is { no code at all }."),
    "c4_sentences": ("c4", "One sentence is here.\nThis line has no end\nUses cookies on this page."),
    "fineweb_line_ends": ("fineweb", PROSE.replace(".", "").replace(",", "\n")),
    "fineweb_short_lines": ("fineweb", lines(PROSE, *(f"Line {i} is short." for i in range(9)))),
    "fineweb_repeated_lines": ("fineweb", lines(PROSE, PROSE)),
    "fineweb_list": ("fineweb", lines(*(f"{i}{'x' * 40}." for i in range(9)))),
}


def test_prose_breaks_no_rule() -> None:
    assert check_quality(PROSE, ["gopher", "c4", "fineweb"]) is None


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_has_its_own_name(rule: str) -> None:
    rule_set, text = BROKEN[rule]
    broken = check_quality(text, [rule_set])
    assert broken is not None
    assert broken[0] == rule


@pytest.mark.parametrize("text", ["", " ", "\n\n", "-", "#" * 200, "\u3000", "a" * 100_000])
@pytest.mark.parametrize("rule_set", ["gopher", "c4", "fineweb"])
def test_odd_texts_break_a_rule_and_nothing_else(text: str, rule_set: RuleSet) -> None:
    assert check_quality(text, [rule_set]) is not None


def made_up_texts() -> list[str]:
    """Documents of the library, and prose that was spoilt at random so that rules meet both sides of their thresholds."""
    chance, texts = random.Random(5), library_documents()[::9]
    for _ in range(1500):
        parts = []
        for _ in range(chance.randint(1, 25)):
            part = " ".join(chance.choices(WORDS, k=chance.randint(1, 20)))
            parts += [chance.choice(("", "- ", "# ")) + part + chance.choice((".", "", "...", "!", " {", "?"))]
            if chance.random() < 0.2:
                parts.append(chance.choice(parts))
        texts.append(chance.choice(("\n", "\n\n", " ")).join(parts))
    return texts


def test_decisions_are_those_of_datatrove() -> None:
    """Given the same words and sentences (its own need language packs), datatrove takes out the same documents."""
    filters = pytest.importorskip("datatrove.pipeline.filters")
    from datatrove.data import Document as Theirs
    from datatrove.utils.word_tokenizers import WordTokenizer

    from data_contracts.quality import _SENTENCE

    class Plain(WordTokenizer):  # type: ignore[misc,no-any-unimported]
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return _SENTENCE.findall(text)

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [match.span() for match in _SENTENCE.finditer(text)] or [(0, len(text))]

    plain = Plain()
    theirs: dict[RuleSet, Sequence[Any]] = {
        "gopher": [filters.GopherQualityFilter(language=plain), filters.GopherRepetitionFilter(language=plain)],
        "c4": [filters.C4QualityFilter(language=plain)],
        "fineweb": [filters.FineWebQualityFilter(language=plain)],
    }
    for rule_set, steps in theirs.items():
        kept = 0
        for text in made_up_texts():
            outcomes = [step.filter(Theirs(text=text, id="x")) for step in steps]
            ours = check_quality(text, [rule_set])
            assert (ours is None) == all(outcome is True for outcome in outcomes), (rule_set, ours, outcomes, text)
            kept += ours is None
        assert 20 < kept < 1500, rule_set


def config(**settings: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": [{"kind": "stdlib"}], **settings})


def test_rules_are_for_documents_and_off_by_default() -> None:
    chat = {
        "id": "c",
        "source": "t",
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}],
    }
    rows = [Document(id="d", text="Too short.", source="t"), Conversation.model_validate(chat)]
    assert screen_quality(rows, config()) == {}
    assert {i: reason.rule for i, reason in screen_quality(rows, config(quality=["gopher"])).items()} == {0: "gopher_words"}


def test_languages() -> None:
    pytest.importorskip("py3langid")
    german = (
        "Der Fluss stieg in der Nacht, und am Morgen hatte er die untere Wiese erreicht. Niemand hatte je so etwas gesehen."
    )
    only_english = config(languages=["en"])
    assert check_row(Document(id="d", text=PROSE, source="t"), only_english) is None
    assert check_row(Document(id="d", text="OK, 12 + 3 = 15", source="t"), only_english) is None
    reason = check_row(Document(id="d", text=german, source="t"), only_english)
    assert reason is not None
    assert (reason.rule, reason.text) == ("language", "is in the language `de`")
    assert check_row(Document(id="d", text=german, source="t"), config(languages=["en", "de"])) is None
    with pytest.raises(BadInput, match="`xx` cannot be told"):
        screen_quality([], config(languages=["xx"]))


def test_the_shipped_phrases_find_abuse_and_no_documentation() -> None:
    judge = load_toxicity("phrases")
    assert judge("Well... YOU ARE AN IDIOT, and that is that!") == 1
    assert judge(PROSE) == 0
    assert sum(map(judge, library_documents())) == 0


def test_toxicity_by_a_list_or_by_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words.txt").write_text("# mine\nGrey  herons\n")
    assert load_toxicity(str(tmp_path / "words.txt"))("grey-herons fly") == 1
    (tmp_path / "my_filters.py").write_text("def judge(text):\n    return len(text) / 10\nname = 'x'\n")
    monkeypatch.syspath_prepend(tmp_path)
    row = Document(id="d", text="12345", source="t")
    reason = check_row(row, config(toxicity="my_filters:judge"))
    assert reason is not None
    assert reason.text == "has a toxicity of 0.50 by `my_filters:judge`"
    assert check_row(row, config(toxicity="my_filters:judge", toxicity_threshold=0.6)) is None
    with pytest.raises(BadInput, match=r"gave 1\.1, no number from 0 to 1"):
        load_toxicity("my_filters:judge")("12345678901")


@pytest.mark.parametrize(
    ("name", "said"),
    [("no_such_module:f", "cannot be imported"), ("json:nothing", "json has no nothing"), ("none.txt", "cannot be read")],
)
def test_a_classifier_that_is_not_there(name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        load_toxicity(name)
