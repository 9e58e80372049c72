"""Published rules of thumb that tell text worth learning from the rest of the web, one name a rule.

- `gopher`: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", appendix A.1.1
  and table A1: length, mean word length, symbols, bullets, ellipses, alphabetic words, stop words, repetition;
- `c4`: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", section
  2.2: sentences, `lorem ipsum`, curly brackets. The paper also rewrites documents line by line; here a document is kept as
  it is or taken out, so it is judged by the lines that C4 would keep;
- `fineweb`: Penedo et al. 2024, "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale", section 3.6:
  lines without punctuation, repeated lines, short lines, lists.

They were made for English web pages. Code and lists break most of them by nature, so none is on unless a recipe names it.
Words are what stands between white space. Apart from that, thresholds and arithmetic are those of datatrove 0.10.1, the
library that FineWeb was made with; a test compares the two.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

RuleSet = Literal["gopher", "c4", "fineweb"]
Broken = tuple[str, str]  # (the rule's name, a sentence for a person)

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}  # share of the characters that the commonest run of so many words may take
REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # … and that all repeated ones may take
BULLETS, ELLIPSES = ("•", "-"), ("...", "…")
C4_ENDS = (".", "?", "!", '"', "'")
C4_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
FINEWEB_ENDS = (".", "!", "?", "。", "！", "？", "．", "｡", "؟", "۔", "।", "॥", "။", "።", "։", "‼", "‽", "⁇", "⁈", "⁉")  # noqa: RUF001
_PARAGRAPH, _LINES, _CITATION = re.compile(r"\n{2,}"), re.compile(r"\n+"), re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_SENTENCE = re.compile(r"[.?!]+[\"')\]]*(?:\s+|$)")


def check_quality(text: str, rule_sets: Sequence[RuleSet]) -> Broken | None:
    """Returns the first rule that a document breaks; None where it keeps all."""
    words = text.split()
    for name in rule_sets:
        for rule in _RULE_SETS[name]:
            for broken in rule(text, words):
                return broken
    return None


def _gopher_words(text: str, words: Sequence[str]) -> Iterator[Broken]:
    wordy = [word for word in words if any(letter.isalnum() for letter in word)]
    if not 50 <= len(wordy) <= 100_000:
        yield "gopher_words", f"has {len(wordy)} words, not 50 to 100,000"
        return
    mean = sum(map(len, wordy)) / len(wordy)
    if not 3 <= mean <= 10:
        yield "gopher_word_length", f"its words have {mean:.1f} letters on average, not 3 to 10"
    if text.count("#") / len(words) > 0.1:
        yield "gopher_hashes", "has more than one # in ten words"
    if sum(map(text.count, ELLIPSES)) / len(words) > 0.1:
        yield "gopher_ellipses", "has more than one ellipsis in ten words"
    lines = text.splitlines()
    if sum(line.lstrip().startswith(BULLETS) for line in lines) / len(lines) > 0.9:
        yield "gopher_bullet_lines", "more than 90 % of its lines begin with a bullet"
    if sum(line.rstrip().endswith(ELLIPSES) for line in lines) / len(lines) > 0.3:
        yield "gopher_ellipsis_lines", "more than 30 % of its lines end with an ellipsis"
    if sum(any(letter.isalpha() for letter in word) for word in words) / len(words) < 0.8:
        yield "gopher_alphabetic_words", "fewer than 80 % of its words have a letter"
    if len(STOP_WORDS.intersection(words)) < 2:
        yield "gopher_stop_words", f"has fewer than two of the words {', '.join(sorted(STOP_WORDS))}"


def _gopher_repetition(text: str, words: Sequence[str]) -> Iterator[Broken]:
    if not words:
        return
    for name, parts in (("paragraph", _PARAGRAPH.split(text.strip())), ("line", _LINES.split(text))):
        number, size = _repeated(parts)
        if number / len(parts) > 0.3:
            yield f"gopher_repeated_{name}s", f"more than 30 % of its {name}s repeat earlier ones"
        if size / len(text) > 0.2:
            yield f"gopher_repeated_{name}_characters", f"more than 20 % of its characters are in repeated {name}s"
    for length, share in TOP_NGRAMS.items():
        runs = Counter(" ".join(words[i : i + length]) for i in range(len(words) - length + 1))
        if runs:
            run, number = runs.most_common(1)[0]
            if len(run) * number / len(text) > share:
                yield f"gopher_top_{length}_gram", f"more than {share:.0%} of its characters say “{run}”"
    for length, share in REPEATED_NGRAMS.items():
        if _repeated_runs(words, length) / len(text) > share:
            yield f"gopher_repeated_{length}_grams", f"more than {share:.0%} of it are repeated runs of {length} words"


def _c4(text: str, words: Sequence[str]) -> Iterator[Broken]:
    sentences = 0
    for line in map(str.strip, text.splitlines()):
        said, low, line = line.split(), line.lower(), _CITATION.sub("", line)
        if any(len(word) > 1000 for word in said) or len(said) < 3 or not line.endswith(C4_ENDS) or line.endswith("..."):
            continue
        if "lorem ipsum" in low:
            yield "c4_lorem_ipsum", "holds the filler text “lorem ipsum”"
        if "javascript" in low:
            continue
        if "{" in line:
            yield "c4_curly_bracket", "holds a curly bracket"
        if not any(policy in low for policy in C4_POLICIES):
            sentences += max(1, len(_SENTENCE.findall(line)))
    if sentences < 5:
        yield "c4_sentences", f"has {sentences} sentences in whole lines, fewer than 5"


def _fineweb(text: str, words: Sequence[str]) -> Iterator[Broken]:
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        yield "fineweb_empty", "has no text"
        return
    if sum(line.endswith(FINEWEB_ENDS) for line in lines) / len(lines) < 0.12:
        yield "fineweb_line_ends", "fewer than 12 % of its lines end with punctuation"
    if sum(len(line) <= 30 for line in lines) / len(lines) > 0.67:
        yield "fineweb_short_lines", "more than 67 % of its lines have at most 30 characters"
    if _repeated(lines)[1] / len(text.replace("\n", "")) > 0.01:
        yield "fineweb_repeated_lines", "more than 1 % of its characters are in repeated lines"
    if text.count("\n") / len(words) > 0.3:
        yield "fineweb_list", "has more than three line ends in ten words"


def _repeated(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts repeat earlier ones, and how many characters these have."""
    seen: set[str] = set()
    number = size = 0
    for part in parts:
        if part in seen:
            number, size = number + 1, size + len(part)
        seen.add(part)
    return number, size


def _repeated_runs(words: Sequence[str], length: int) -> int:
    """How many characters are in runs of words that repeat an earlier one, none of them counted twice."""
    seen: set[str] = set()
    size = at = 0
    while at + length <= len(words):
        run = "".join(words[at : at + length])
        if run in seen:
            size, at = size + len(run), at + length
        else:
            seen.add(run)
            at += 1
    return size


_RULE_SETS: dict[RuleSet, tuple[Callable[[str, Sequence[str]], Iterator[Broken]], ...]] = {
    "gopher": (_gopher_words, _gopher_repetition),
    "c4": (_c4,),
    "fineweb": (_fineweb,),
}
