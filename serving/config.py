"""What a release needs to know: the canary's policy, which is part of the recipe, and the places that it works on."""

from pathlib import Path

from pydantic import Field, field_validator

from lineage.section import Section


class CanaryPolicy(Section):
    """How a candidate meets real traffic, and what stops it. There is no way to switch a check off.

    A share (`error_margin`, …) is a fraction between 0 and 1; a weight (`steps`) is percent of the traffic.

    Attributes:
        steps: the candidate's weights, rising, the last one 100; a first release has one step, at 100. At the last
            weight below 100 the candidate must be shown to be no worse than the margins allow.
        minimum_requests: finished requests of the canary arm in a step before the judge looks at it.
        minimum_seconds: how long a step lasts at least.
        maximum_seconds: how long a step may wait for enough traffic or for a clear verdict; then it is rolled back.
        ready_seconds: how long the candidate's endpoint may take to load and verify its bundle.
        alpha: the chance that an equal candidate is rolled back for harm that it does not do, over all looks and
            checks together; also the chance that a candidate worse than a margin is promoted.
        error_margin: how much higher the share of failed requests may be than the champion's.
        bad_answer_margin: the same for answers that are empty or malformed (cut by the token limit).
        latency_ratio: how many times the champion's p95 latency the candidate's may be.
        latency_slack_seconds: a slow-down below this does not count, whatever the ratio says.
        probe_margin: how much lower the share of right probe answers may be.
        probes_per_step: probe questions asked of both arms in each step.
        probe_tokens: the longest probe answer, in tokens.
        probe_seconds: how long one probe answer may take.
        share_tolerance: how far the canary's share of the traffic may be from its weight, beyond chance (sticky
            sessions come in lumps).
        first_error_ceiling, first_bad_answer_ceiling, first_latency_seconds, first_probe_floor: the absolute limits for
            a first release, which has no champion to be compared with.
    """

    steps: list[float] = Field(default=[5, 25, 50, 100], min_length=2)
    minimum_requests: int = Field(default=8, ge=1)
    minimum_seconds: float = Field(default=5.0, ge=0)
    maximum_seconds: float = Field(default=120.0, gt=0)
    ready_seconds: float = Field(default=120.0, gt=0)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    error_margin: float = Field(default=0.03, gt=0, lt=1)
    bad_answer_margin: float = Field(default=0.05, gt=0, lt=1)
    latency_ratio: float = Field(default=1.3, ge=1)
    latency_slack_seconds: float = Field(default=0.1, ge=0)
    probe_margin: float = Field(default=0.15, gt=0, lt=1)
    probes_per_step: int = Field(default=12, ge=1)
    probe_tokens: int = Field(default=48, ge=1)
    probe_seconds: float = Field(default=30.0, gt=0)
    share_tolerance: float = Field(default=0.15, gt=0, lt=1)
    first_error_ceiling: float = Field(default=0.05, gt=0, lt=1)
    first_bad_answer_ceiling: float = Field(default=0.2, gt=0, lt=1)
    first_latency_seconds: float = Field(default=10.0, gt=0)
    first_probe_floor: float = Field(default=0.05, ge=0, lt=1)

    @field_validator("steps")
    @classmethod
    def _rise_to_all(cls, steps: list[float]) -> list[float]:
        if steps != sorted(set(steps)) or steps[0] <= 0 or steps[-1] != 100:
            raise ValueError("must rise from above 0 to 100, such as [5, 25, 50, 100]")
        return steps


class Places(Section):
    """Where release state lives. Every function of `serving.release` takes it; none looks up a setting.

    Attributes:
        ledger: SQLAlchemy URL of the ledger, such as `sqlite:////srv/goldpath/ledger.db`.
        bundles: the content store; a bundle's folder there is its digest's 64 hex digits.
        routes: the routes file that the gateway watches.
        gateway: the gateway's base URL, such as `http://127.0.0.1:8100`.
        mlflow: MLflow's tracking URI.
    """

    ledger: str
    bundles: Path
    routes: Path
    gateway: str
    mlflow: str


class CanaryResources(Places):
    """The canary stage's `resources:`; `requester` is who asked for the release."""

    requester: str = Field(min_length=1)
