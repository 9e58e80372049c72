"""Which champion a candidate is compared with, on which scores; the comparison itself is the evaluation room's."""

import json
from dataclasses import dataclass
from pathlib import Path

from flows.console import say
from flows.plan import champion_step, gate_step
from flows.recipe import Recipe
from flows.settings import Settings
from flows.tasks import stage_task
from lineage.errors import BadInput
from lineage.record import RECORD, Record, read_record
from serving.release.approval import gate_verdict
from serving.release.ledger import Ledger
from serving.release.states import NEXT_STEP, Release, State

# A version past these states was decided on: its gate verdict stands, even when the champion has changed since.
UNDECIDED = frozenset({State.REGISTERED, State.GATED, State.APPROVED})
AGAIN = frozenset({State.ROLLED_BACK, State.SUPERSEDED})  # states from which a person may release a version once more


@dataclass(frozen=True)
class Gate:
    """A finished gate: its folder, its record, what it said, and the champion's version that it compared with."""

    folder: Path
    record: Record
    verdict: str
    reasons: list[str]
    champion: str | None


def gate_against_champion(recipe: Recipe, settings: Settings, afresh: bool = False) -> Gate:
    """Gates a recipe's finished evaluation against the champion of the moment, and returns the verdict.

    A version that was already released (or rolled back, or rejected) is not gated again by itself: it would be compared
    with its successor, and the decision that was taken would lose its ground.

    Args:
        afresh: gate it all the same, because a person wants to release it once more.

    Raises:
        BadInput: there is no finished evaluation to judge, or `afresh` cannot lead to a release.
    """
    read_record(settings.runs / recipe.name / recipe.version / "evaluate")
    ledger = Ledger(settings.ledger)
    history = ledger.history(recipe.name)
    ledger.close()
    own, champion = history.releases.get(recipe.version), history.champion
    if own is not None and afresh and own.state not in UNDECIDED | AGAIN:
        raise BadInput(f"{recipe.name}@{recipe.version}", "", f"is {own.state}", NEXT_STEP[own.state])
    if own is not None and not afresh and own.state not in UNDECIDED and (standing := _standing(recipe, settings, own)):
        say("gate", f"stands: {recipe.name}@{recipe.version} is {own.state} since {own.entries[-1].at[:19]}")
        return standing
    scores = _scores_of(champion, recipe, settings) if champion else None
    step = gate_step(recipe, settings, champion.version if champion else None, scores)
    stage_task(step, settings)
    return _read(step.out, champion.version if champion else None)


def _scores_of(champion: Release, recipe: Recipe, settings: Settings) -> Path:
    """Returns the champion's scores on the candidate's golden sets; scores it afresh where the sets changed since."""
    own = settings.runs / recipe.name / champion.version / "evaluate"
    candidate = settings.runs / recipe.name / recipe.version / "evaluate"
    if (own / RECORD).is_file() and _scored(own) == champion.digest and _basis(own) == _basis(candidate):
        return own
    say("evaluate", f"scores the champion {champion.version} on the candidate's golden sets")
    bundle = settings.bundles / champion.digest.removeprefix("sha256:")
    step = champion_step(recipe, settings, champion.version, bundle)
    stage_task(step, settings)
    return step.out


def _scored(evaluation: Path) -> str:
    scores = json.loads((evaluation / "scores.json").read_text(encoding="utf-8"))
    return str(scores["models"]["candidate"]["digest"])


def _basis(evaluation: Path) -> tuple[object, object]:
    """What must be equal before scores may be compared: the golden sets' hashes and the harness."""
    scores = json.loads((evaluation / "scores.json").read_text(encoding="utf-8"))
    return scores["golden"], scores["harness"]


def _standing(recipe: Recipe, settings: Settings, release: Release) -> Gate | None:
    """Returns the gate whose verdict the ledger holds; None where its folder is gone."""
    sha256 = gate_verdict(release)[1]
    for path in (settings.runs / recipe.name / recipe.version).glob(f"gate*/{RECORD}"):
        if read_record(path.parent).outputs["verdict.json"].sha256 == sha256:
            return _read(path.parent, path.parent.name.partition("-")[2] or None)
    return None


def _read(folder: Path, champion: str | None) -> Gate:
    verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    return Gate(folder, read_record(folder), verdict["verdict"], verdict["reasons"], champion)
