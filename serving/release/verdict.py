"""What the canary's judge is asked and what it answers, as plain data for the ledger and the record."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from lineage.section import Section

Decision = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Probe:
    """One probe question's outcome on both arms; None where the arm was not asked or its answer never came.

    A candidate that does not answer is wrong; a champion that does not answer says nothing, so the item does not count.
    """

    candidate: bool
    champion: bool | None = None


@dataclass(frozen=True)
class Look:
    """Where in the canary the judge looks.

    Attributes:
        number: how many times the judge has looked, this one included, from 1.
        closing: how many of those were at the closing step, this one included; 0 at any other step.
    """

    number: int
    closing: int = 0


class Finding(Section):
    """What one check found.

    Attributes:
        check: `traffic`, `errors`, `bad_answers`, `latency` or `probes`.
        candidate, champion: the figures compared (shares, or seconds for latency); None where there are none.
        statistic: the p value or the confidence bound that decided, by name.
        reason: the finding in one sentence.
    """

    check: str
    decision: Decision
    candidate: float | None = None
    champion: float | None = None
    statistic: dict[str, float] = Field(default_factory=dict)
    reason: str


class ArmSummary(Section):
    """One arm's counted traffic: requests, failed, bad answers, and the p95 of the seconds of what it answered."""

    requests: int
    failed: int
    bad: int
    p95_seconds: float | None

    @property
    def bad_percent(self) -> float | None:
        """Percent of the answers that are empty or malformed; None where nothing was answered."""
        answered = self.requests - self.failed
        return round(100 * self.bad / answered, 2) if answered else None


class Judgement(Section):
    """The verdict with its reasons and numbers."""

    decision: Decision
    findings: list[Finding]
    candidate: ArmSummary
    champion: ArmSummary

    @property
    def reasons(self) -> list[str]:
        """Returns the sentences of the findings that decided: those that did not pass, or all when all did."""
        deciding = [finding for finding in self.findings if finding.decision == self.decision]
        return [finding.reason for finding in deciding]
