"""How much real traffic a canary's step has seen, and whether it came in the intended share."""

from dataclasses import dataclass
from math import sqrt

from serving.config import CanaryPolicy

CHANCE = 4.0  # standard deviations of the share that are put down to chance


@dataclass
class StepTraffic:
    """Counts one step's traffic.

    Attributes:
        weight: percent of the traffic that the candidate should get.
        has_champion: whether there is a stable arm to share with.
        silence: what the gateway last failed to answer, "" while it answers.
    """

    weight: float
    policy: CanaryPolicy
    has_champion: bool
    candidate: int = 0
    champion: int = 0
    silence: str = ""

    def add(self, candidate: int, champion: int) -> None:
        """Counts newly observed requests of both arms."""
        self.candidate += candidate
        self.champion += champion
        self.silence = ""

    def enough(self, seconds: float) -> bool:
        """Returns whether a step that lasted this long has seen what it needs before the judge may let it pass."""
        return (
            seconds >= self.policy.minimum_seconds
            and self.candidate >= self.policy.minimum_requests
            and self._share_as_intended()
        )

    def doubts(self) -> list[str]:
        """Returns what stands against letting the step pass, in words."""
        found = [self.silence] if self.silence else []
        if self.candidate < self.policy.minimum_requests:
            found.append(f"{self.candidate} requests reached the candidate, {self.policy.minimum_requests} are needed")
        elif not self._share_as_intended():
            found.append(f"the candidate got {self._share():.0%} of the traffic instead of {self.weight:g} %")
        return found

    def _share(self) -> float:
        return self.candidate / max(1, self.candidate + self.champion)

    def _share_as_intended(self) -> bool:
        if not self.has_champion:
            return True
        intended, total = self.weight / 100, self.candidate + self.champion
        chance = CHANCE * sqrt(intended * (1 - intended) / max(1, total))
        return abs(self._share() - intended) <= self.policy.share_tolerance + chance
