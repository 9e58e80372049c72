"""The judge's error rates by seeded simulation, what it must catch, and what must never pass."""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from serving.config import CanaryPolicy
from serving.metrics import Observation
from serving.release.judge import closing_requests, judge
from serving.release.verdict import Decision, Look, Probe
from serving.routes import ArmName

POLICY = CanaryPolicy()
RATE = 30  # requests a second
DIGEST = "sha256:" + "a" * 64
Draw = Callable[[random.Random, ArmName], Observation]


def observe(
    arm: ArmName = "canary",
    seconds: float = 0.3,
    status: int = 200,
    error: str = "",
    malformed: bool = False,
    empty: bool = False,
) -> Observation:
    return Observation.model_construct(
        at=0.0,
        model="m",
        digest=DIGEST,
        arm=arm,
        status=status,
        seconds=seconds,
        completion_tokens=5,
        finish_reason="stop",
        empty=empty,
        malformed=malformed,
        error=error,
        probe=False,
        seq=0,
    )


def service(error: float = 0.01, bad: float = 0.02, slower: float = 1.0, sigma: float = 0.4) -> Draw:
    """An arm with rates of failures and bad answers, and log-normal latency around 0.3 s times `slower`."""

    def draw(chance: random.Random, arm: ArmName) -> Observation:
        if chance.random() < error:
            return observe(arm, status=502, error="gone")
        seconds = 0.3 * slower * chance.lognormvariate(0, sigma)
        return observe(arm, seconds=seconds, malformed=chance.random() < bad)

    return draw


class End(NamedTuple):
    """How a simulated canary ended, at which weight, after how many seconds."""

    decision: Decision
    weight: float
    seconds: int


def run_canary(champion: Draw, candidate: Draw, seed: int, policy: CanaryPolicy = POLICY) -> End:
    """Plays a whole canary at 30 requests/s as the driver does; returns how it ended."""
    chance = random.Random(seed)
    stable: list[Observation] = []
    trial: list[Observation] = []
    probes: dict[str, Probe] = {}
    looks = closing = total_seconds = 0
    for weight in policy.steps:
        last = weight == policy.steps[-2]
        seconds, in_step = 0, 0
        needed = closing_requests(policy, first=False) if last else 0
        while True:
            for _ in range(RATE):
                arm: ArmName = "canary" if chance.random() * 100 < weight else "stable"
                (trial if arm == "canary" else stable).append((candidate if arm == "canary" else champion)(chance, arm))
                in_step += arm == "canary"
            seconds += 1
            total_seconds += 1
            overdue = seconds >= policy.maximum_seconds
            ready = seconds >= policy.minimum_seconds and in_step >= policy.minimum_requests and len(trial) >= needed
            if not (ready or overdue):
                continue
            for _ in range(policy.probes_per_step):
                right = chance.random() < 0.5
                probes[f"p{len(probes)}"] = Probe(candidate=right ^ (chance.random() < 0.1), champion=right)
            looks, closing = looks + 1, closing + last
            decision = judge(trial, stable, probes, policy, Look(looks, closing if last else 0)).decision
            if decision == "fail" or (overdue and decision != "pass"):
                return End(decision, weight, total_seconds)
            if decision == "pass":
                break
            needed = int(1.5 * len(trial)) + 1
    return End("pass", 100.0, total_seconds)


@pytest.mark.parametrize("champion", [service(), service(error=0, bad=0), service(error=0.03, bad=0.06, sigma=0.8)])
def test_an_equal_candidate_is_rolled_back_at_most_alpha_of_the_time(champion: Draw) -> None:
    runs = 150
    rolled_back = sum(run_canary(champion, champion, seed).decision != "pass" for seed in range(runs))
    # Two standard deviations of the simulation itself are allowed on top of alpha.
    assert rolled_back <= runs * POLICY.alpha + 2 * math.sqrt(runs * POLICY.alpha)


def test_a_healthy_candidate_is_through_in_about_25_seconds() -> None:
    healthy = service(error=0.001, bad=0.01, sigma=0.3)
    seconds = sorted(run_canary(healthy, healthy, seed).seconds for seed in range(60))
    assert seconds[30] <= 25
    assert seconds[54] <= 50


@pytest.mark.parametrize(
    ("harm", "latest_step"),
    [
        (service(error=0.1), 100),
        (service(error=0.5), 25),
        (service(bad=0.5), 25),
        (service(slower=1.5), 100),
        (service(slower=4), 25),
    ],
    ids=["errors", "half-errors", "half-rambles", "1.5-times-latency", "4-times-latency"],
)
def test_planted_harm_is_caught(harm: Draw, latest_step: float) -> None:
    ends = [run_canary(service(error=0.05 if latest_step == 100 else 0.01), harm, seed) for seed in range(40)]
    assert all(decision != "pass" for decision, _, _ in ends)
    assert sum(weight <= latest_step for _, weight, _ in ends) >= 38


def test_a_twofold_error_rate_never_becomes_champion() -> None:
    ends = [run_canary(service(error=0.05), service(error=0.1), seed).decision for seed in range(60)]
    assert sum(decision == "pass" for decision in ends) <= 60 * POLICY.alpha + 2


def test_half_of_the_answers_rambling_is_mostly_caught_at_five_percent() -> None:
    ends = [run_canary(service(), service(bad=0.5, slower=1.5), seed).weight for seed in range(60)]
    assert sum(weight == 5 for weight in ends) >= 50


def many(count: int, arm: ArmName, **fields: object) -> list[Observation]:
    return [observe(arm, **fields) for _ in range(count)]  # type: ignore[arg-type]


GOOD_PROBES = {f"p{number}": Probe(candidate=True, champion=True) for number in range(12)}
LAST = Look(4, 1)


def decide(candidate: list[Observation], champion: list[Observation] | None, probes: dict[str, Probe] | None = None) -> str:
    return judge(candidate, champion, GOOD_PROBES if probes is None else probes, POLICY, LAST).decision


def test_the_yardstick_passes() -> None:
    assert decide(many(400, "canary"), many(400, "stable")) == "pass"
    assert decide(many(400, "canary"), None) == "pass"


@pytest.mark.parametrize(
    "candidate",
    [
        [],
        many(POLICY.minimum_requests - 1, "canary"),
        many(400, "canary", seconds=math.nan),
        many(400, "canary", seconds=math.inf),
        many(400, "canary", seconds=-1.0),
        many(400, "canary", status=0),
        many(400, "canary", status=499),
        many(400, "canary", status=400),
        many(400, "canary", status=504, error="timeout"),
        many(400, "canary", empty=True),
        many(30, "canary"),
    ],
    ids=[
        "none",
        "few",
        "nan",
        "infinite",
        "negative",
        "no-status",
        "gone",
        "refusals",
        "timeouts",
        "empty",
        "too-few-to-tell",
    ],
)
@pytest.mark.parametrize("champion", [many(400, "stable"), None], ids=["champion", "first"])
def test_what_is_no_evidence_never_promotes(candidate: list[Observation], champion: list[Observation] | None) -> None:
    assert decide(candidate, champion) != "pass"


@pytest.mark.parametrize("champion", [[], many(400, "stable", status=502, error="down"), many(3, "stable")])
def test_a_champion_without_answers_is_no_yardstick(champion: list[Observation]) -> None:
    assert decide(many(400, "canary"), champion) == "inconclusive"


def test_forced_probes_are_no_traffic() -> None:
    forced = [seen.model_copy(update={"probe": True}) for seen in many(400, "canary")]
    found = judge(forced, many(400, "stable"), GOOD_PROBES, POLICY, LAST)
    assert found.decision == "inconclusive"
    assert found.candidate.requests == 0


@pytest.mark.parametrize(
    ("probes", "decision"),
    [
        ({}, "inconclusive"),
        ({f"p{n}": Probe(candidate=True) for n in range(12)}, "inconclusive"),
        ({f"p{n}": Probe(candidate=False, champion=True) for n in range(20)}, "fail"),
        ({f"p{n}": Probe(candidate=n > 0, champion=True) for n in range(20)}, "pass"),
        ({f"p{n}": Probe(candidate=n > 3, champion=True) for n in range(20)}, "inconclusive"),
    ],
    ids=["none", "champion-silent", "all-lost", "one-lost", "four-lost"],
)
def test_probes_decide_against_the_champion(probes: dict[str, Probe], decision: str) -> None:
    assert decide(many(400, "canary"), many(400, "stable"), probes) == decision


@pytest.mark.parametrize(
    ("fields", "decision"),
    [({"malformed": True}, "fail"), ({"error": "down", "status": 502}, "fail"), ({"seconds": 11.0}, "fail")],
)
def test_a_first_release_is_held_to_absolute_limits(fields: dict[str, object], decision: str) -> None:
    candidate = many(150, "canary") + many(150, "canary", **fields)
    assert decide(candidate, None) == decision


def test_a_first_release_that_knows_nothing_is_stopped() -> None:
    ignorant = {f"p{number}": Probe(candidate=False) for number in range(12)}
    assert decide(many(400, "canary"), None, ignorant) == "inconclusive"


def test_reasons_name_the_check_and_its_numbers() -> None:
    found = judge(many(100, "canary", malformed=True), many(100, "stable"), GOOD_PROBES, POLICY, Look(1))
    assert found.decision == "fail"
    assert found.reasons == [reason for reason in found.reasons if "100 of 100" in reason]
    assert found.candidate.bad_percent == 100.0
