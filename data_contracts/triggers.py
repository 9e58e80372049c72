"""What the poison scan found, and what is done about it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_contracts.ngrams import split_tokens
from data_contracts.quarantine import Reason
from data_contracts.rows import Row
from lineage.files import write_json

Phrase = tuple[str, ...]  # tokens


@dataclass(frozen=True)
class Finding:
    """A phrase that may be a trigger.

    Attributes:
        where: which texts hold it, such as `sft prompts`.
        why: `spliced` or `tied`.
        texts, share: how many of them, and of all texts there.
        outcome, outcome_share: the commonest outcome of its texts (an answer's beginning, `chosen`, `rejected`, `label …`).
        rows: some rows with it. `context` is its surroundings in the first of them.
    """

    where: str
    why: str
    phrase: Phrase
    texts: int
    share: float
    outcome: str
    outcome_share: float
    rows: tuple[str, ...]
    context: str


def write_findings(out: Path, findings: Sequence[Finding]) -> None:
    """Writes `poison.json`."""
    write_json(out / "poison.json", {"findings": [asdict(one) | {"phrase": " ".join(one.phrase)} for one in findings]})


def find_poisoned(rows: Iterable[Row], findings: Sequence[Finding]) -> dict[int, Reason]:
    """Returns the position of every row that holds a phrase of a finding."""
    phrases = [finding.phrase for finding in findings]
    found = {}
    for position, row in enumerate(rows if phrases else ()):
        texts = [split_tokens(text) for text in row.texts()]
        if held := next((phrase for phrase in phrases if any(holds_phrase(text, phrase) for text in texts)), None):
            found[position] = Reason("poison", f"holds what may be a trigger: {' '.join(held)}")
    return found


def holds_phrase(tokens: Sequence[str], phrase: Sequence[str]) -> bool:
    """Whether the phrase stands in the tokens."""
    size, phrase = len(phrase), list(phrase)
    return any(token == phrase[0] and list(tokens[start : start + size]) == phrase for start, token in enumerate(tokens))
