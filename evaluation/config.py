"""What the evaluation stages are told: what is scored and how, and the policy by which the gate decides."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from lineage.section import Section

Direction = Literal["higher", "lower"]


class EvaluationConfig(Section):
    """How models are scored. Every field can move a score, so every field is part of the identity.

    Attributes:
        suite: a shipped suite (`fast`), or the path of a suite file: which tasks on which golden sets.
        dtype: the precision of the weights and of all arithmetic while scoring.
        batch_size: how many prompts, or choices, are computed together.
        confidence: the level of the two-sided interval that is reported for each score.
        resamples, seed: of the bootstrap behind the intervals of scores that are no proportions.
    """

    suite: str = Field(default="fast", min_length=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = Field(default=64, gt=0)
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    resamples: int = Field(default=2000, ge=100)
    seed: int = Field(default=0, ge=0)


class MetricRule(Section):
    """What the gate asks of one metric.

    Attributes:
        metric: `<task>.<metric>` of the suite, such as `closed_book.exact_match`.
        direction: which way is better; it must be the way that the suite's task states.
        floor: the value that must be reached whoever the champion is (a ceiling where lower is better); null for none.
        margin: how much worse than the champion, in the metric's own unit, still counts as not worse.
    """

    metric: str = Field(pattern=r"^[a-z0-9_]+\.[a-z0-9_]+$")
    direction: Direction
    floor: float | None = None
    margin: float = Field(ge=0)


class GatePolicy(Section):
    """The offline decision. There is no default policy: a gate that nobody wrote lets everything through.

    Attributes:
        metrics: the rules; the gate passes only where every one of them does.
        alpha: the largest probability of letting a model through that is worse than the policy allows, and likewise of
            failing one that is not; over all rules together.
        resamples, seed: of the bootstrap.
        minimum_items: with fewer independent items (items of one `group` count once) a metric is never conclusive.
    """

    metrics: Annotated[list[MetricRule], Field(min_length=1)]
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    resamples: int = Field(default=10_000, ge=1000)
    seed: int = Field(default=0, ge=0)
    minimum_items: int = Field(default=30, ge=2)

    @field_validator("metrics")
    @classmethod
    def _one_rule_each(cls, rules: list[MetricRule]) -> list[MetricRule]:
        names = [rule.metric for rule in rules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two rules for {', '.join(sorted(twice))}: keep one")
        return rules

    @model_validator(mode="after")
    def _resolvable(self) -> Self:
        """The bootstrap cannot resolve a tail with fewer than about five resamples in it."""
        if (needed := round(5 * self.num_checks / self.alpha)) > self.resamples:
            raise ValueError(f"alpha {self.alpha} over {self.num_checks} checks needs at least {needed} resamples")
        return self

    @property
    def num_checks(self) -> int:
        """The most checks that the policy can make: one per rule against the champion, one per floor."""
        return len(self.metrics) + sum(rule.floor is not None for rule in self.metrics)
