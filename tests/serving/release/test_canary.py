"""Whole canaries: real bundles behind the real gateway, real traffic, real kills."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from release_house import NAME, House, write_probes
from tiny_assistants import ANSWER, GREETED, PLAIN, make_assistant

from flows.traffic import Traffic
from lineage.errors import ExitCode, GoldpathError
from lineage.files import write_atomic
from lineage.job import Job, dump_job
from lineage.record import read_record
from serving.config import CanaryPolicy
from serving.release.gateway_client import GatewaySilent
from serving.release.probes import ProbeItem
from serving.release.promote import rollback, run_canary
from serving.release.reconcile import Driven, reconcile
from serving.release.states import Event, IllegalTransition, State
from serving.routes import read_routes

DEADLINE = 90.0
QUESTIONS = [*PLAIN, *GREETED]
PROBES = [ProbeItem(id=f"p{n}", question=question, answer=ANSWER) for n, question in enumerate(GREETED)]
# Quick steps, and margins that this many requests can show; latency is left out of it: the tests share their processors.
POLICY = CanaryPolicy(
    steps=[25, 50, 100],
    minimum_seconds=0.5,
    minimum_requests=5,
    maximum_seconds=45,
    error_margin=0.1,
    bad_answer_margin=0.2,
    latency_slack_seconds=5,
    probes_per_step=3,
    probe_tokens=8,
    share_tolerance=0.4,
)


@pytest.fixture(scope="session")
def good_bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp(f"good-{number}") / "bundle" for number in range(2)]
    for seed, folder in enumerate(folders):
        make_assistant(folder, rambles=False, seed=seed)
    return folders


@pytest.fixture(scope="session")
def rambling_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rambling") / "bundle"
    make_assistant(folder, rambles=True)
    return folder


@contextmanager
def gateway_at(routes: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    command = [sys.executable, "-m", "serving", "gateway", "--routes", str(routes), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"], process
    finally:
        process.terminate()
        process.wait(DEADLINE)
        process.stdout.close()


@pytest.fixture
def live(make_house: Callable[..., House], tmp_path: Path) -> Iterator[House]:
    """A house with a running gateway."""
    with gateway_at(tmp_path / "serving" / "routes.json") as (url, _):
        yield make_house(gateway=url)


@pytest.fixture
def served(live: House, good_bundles: list[Path]) -> House:
    """A house whose champion 1.0.0 answers."""
    live.crown("1.0.0", good_bundles[0])
    reconcile(live.ledger, live.places, NAME)
    until(lambda: stable_of(live).get("ready"), "the champion answers")
    return live


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.05)


def stable_of(house: House) -> dict[str, Any]:
    models = httpx.get(f"{house.places.gateway}/goldpath/status", trust_env=False).json()["models"]
    return dict((models.get(NAME) or {}).get("stable") or {})


def release(house: House, version: str, policy: CanaryPolicy = POLICY) -> tuple[str, list[dict[str, Any]]]:
    """Runs a canary in this process; returns its verdict and its timeline."""
    timeline: list[dict[str, Any]] = []
    outcome = run_canary(house.ledger, house.places, NAME, version, policy, PROBES, "ada", timeline.append)
    return outcome.verdict, timeline


def assert_consistent(house: House, champion: str) -> None:
    """Ledger, routes and gateway agree on the champion, and nothing is left to repair."""
    history = house.ledger.history(NAME)
    assert history.canary is None
    assert history.champion
    assert history.champion.version == champion
    assert reconcile(house.ledger, house.places, NAME) == []
    route = read_routes(house.places.routes).routes[NAME]
    assert route.canary is None
    until(lambda: stable_of(house).get("digest") == history.champion.digest, f"{champion} serves")


def test_a_first_release_becomes_champion_by_absolute_limits(live: House, good_bundles: list[Path]) -> None:
    live.approved("1.0.0", good_bundles[0])
    with Traffic(live.places.gateway, NAME, QUESTIONS, served=False):
        verdict, timeline = release(live, "1.0.0")
    assert verdict == "champion"
    assert [event["weight"] for event in timeline if event["event"] == "step"] == [100]
    assert_consistent(live, "1.0.0")


def test_a_healthy_candidate_takes_over_and_no_request_fails(served: House, good_bundles: list[Path]) -> None:
    served.approved("1.1.0", good_bundles[1])
    with Traffic(served.places.gateway, NAME, QUESTIONS, served=True) as traffic:
        verdict, timeline = release(served, "1.1.0")
    assert verdict == "champion", timeline
    assert [event["weight"] for event in timeline if event["event"] == "step"] == [25, 50, 100]
    assert not traffic.failures
    assert_consistent(served, "1.1.0")
    assert release(served, "1.1.0")[0] == "champion"  # again: the same answer, no second canary
    assert sum(entry.event is Event.CANARY_STARTED for entry in served.ledger.story(NAME, "1.1.0")) == 1
    rollback(served.ledger, served.places, NAME, "carol", "users complain")
    assert_consistent(served, "1.0.0")


def test_a_rambling_candidate_is_rolled_back_and_no_request_fails(served: House, rambling_bundle: Path) -> None:
    served.approved("1.1.0", rambling_bundle)
    with Traffic(served.places.gateway, NAME, QUESTIONS, served=True) as traffic:
        verdict, timeline = release(served, "1.1.0")
        assert verdict == "rolled_back"
        champion = served.ledger.champion(NAME)
        assert champion
        before = traffic.answers[champion.digest]
        until(lambda: traffic.answers[champion.digest] > before + 20, "the champion answers everybody again")
    assert not traffic.failures
    looks = [event for event in timeline if event["event"] == "look"]
    assert looks[-1]["decision"] == "fail"
    assert looks[-1]["weight"] in (25, 50)  # how fast the questions come decides when the evidence is enough
    assert looks[-1]["canary_bad"] > 20 > looks[-1]["stable_bad"]
    assert_consistent(served, "1.0.0")
    assert release(served, "1.1.0")[0] == "rolled_back"


def test_without_traffic_nothing_is_promoted(served: House, good_bundles: list[Path]) -> None:
    served.approved("1.1.0", good_bundles[1])
    verdict, timeline = release(served, "1.1.0", POLICY.model_copy(update={"maximum_seconds": 2.0}))
    assert verdict == "rolled_back"
    assert "0 requests reached the candidate" in timeline[-1]["reason"]
    assert_consistent(served, "1.0.0")


def test_a_bundle_tampered_with_after_approval_never_serves(served: House, good_bundles: list[Path]) -> None:
    digest = served.approved("1.1.0", good_bundles[1]).digest
    config = served.places.bundles / digest.removeprefix("sha256:") / "config.json"
    config.chmod(0o644)
    config.write_text(config.read_text() + " ")
    with pytest.raises(GoldpathError, match=r"config\.json: was changed"):
        release(served, "1.1.0")
    assert served.ledger.history(NAME).release("1.1.0").state is State.APPROVED


def test_without_a_gateway_nothing_begins(house: House) -> None:
    house.approved("1.0.0")
    with pytest.raises(GatewaySilent):
        release(house, "1.0.0")
    assert house.ledger.history(NAME).release("1.0.0").state is State.APPROVED


def test_a_gateway_that_dies_during_the_canary_means_rollback(
    make_house: Callable[..., House], tmp_path: Path, good_bundles: list[Path]
) -> None:
    with gateway_at(tmp_path / "serving" / "routes.json") as (url, process):
        house = make_house(gateway=url)
        house.crown("1.0.0", good_bundles[0])
        reconcile(house.ledger, house.places, NAME)
        house.approved("1.1.0", good_bundles[1])
        timeline: list[dict[str, Any]] = []

        def note(event: dict[str, Any]) -> None:
            timeline.append(event)
            if event["event"] == "step":
                process.kill()

        policy = POLICY.model_copy(update={"maximum_seconds": 3.0})
        outcome = run_canary(house.ledger, house.places, NAME, "1.1.0", policy, PROBES, "ada", note)
    assert outcome.verdict == "rolled_back"
    assert "gateway did not answer" in outcome.reason
    assert read_routes(house.places.routes).routes[NAME].canary is None


def test_twenty_threads_release_and_there_is_one_champion(served: House, good_bundles: list[Path]) -> None:
    versions = [f"2.{number}.0" for number in range(4)]
    for version in versions:
        served.approved(version, good_bundles[1])
    won: list[str] = []
    refused: list[GoldpathError] = []

    def contend(version: str) -> None:
        try:
            won.append(release(served, version)[0])
        except (Driven, IllegalTransition) as error:
            refused.append(error)

    with Traffic(served.places.gateway, NAME, QUESTIONS, served=True) as traffic:
        threads = [threading.Thread(target=contend, args=(versions[number % 4],)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(won) + len(refused) == 20
    assert set(won) == {"champion"}
    assert not traffic.failures
    history = served.ledger.history(NAME)
    assert [entry.state for entry in history.releases.values()].count(State.CHAMPION) == 1
    assert served.ledger.verify()
    assert history.champion
    assert_consistent(served, history.champion.version)


def job_file(house: House, version: str, policy: CanaryPolicy = POLICY) -> Path:
    data = house.root / "data"
    write_probes(data / "golden" / "probe.jsonl", dict.fromkeys(GREETED, ANSWER))
    job = Job(
        name=NAME,
        version=version,
        stage="canary",
        config=policy.model_dump(mode="json"),
        parents={"data": data},
        reads={"data": ["golden/probe.jsonl"]},
        resources=house.places.model_dump(mode="json") | {"requester": "ada"},
    )
    path = house.root / "jobs" / f"{version}.yaml"
    write_atomic(path, dump_job(job))
    return path


def start_stage(house: House, version: str, out: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "serving", "canary", "--config", str(job_file(house, version)), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_stage_waits_for_approval_with_its_own_exit_code(house: House, tmp_path: Path) -> None:
    house.gated("1.0.0")
    done = start_stage(house, "1.0.0", tmp_path / "out")
    _, said = done.communicate(timeout=DEADLINE)
    assert done.returncode == ExitCode.AWAITING_APPROVAL
    assert b"approve or reject it" in said
    assert not (tmp_path / "out" / "record.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["started", "look"])
def test_a_killed_canary_is_continued_to_its_end(
    served: House, good_bundles: list[Path], tmp_path: Path, moment: str
) -> None:
    served.approved("1.1.0", good_bundles[1])
    out = tmp_path / "out"
    with Traffic(served.places.gateway, NAME, QUESTIONS, served=True) as traffic:
        kill_at(start_stage(served, "1.1.0", out), out / "timeline.jsonl", moment)
        assert served.ledger.history(NAME).canary
        done = start_stage(served, "1.1.0", out)
        said, errors = done.communicate(timeout=DEADLINE)
    assert done.returncode == ExitCode.OK, errors.decode()
    assert not traffic.failures
    assert json.loads(said)["metrics"]["verdict"] == "champion"
    record = read_record(out)
    assert (record.metrics["verdict"], record.metrics["weight"]) == ("champion", 100)
    assert {"timeline.jsonl", "canary.json"} <= set(record.outputs)
    assert '"resumed"' in (out / "timeline.jsonl").read_text()
    assert_consistent(served, "1.1.0")


@pytest.mark.slow
def test_a_killed_canary_is_rolled_back_by_reconcile(served: House, rambling_bundle: Path, tmp_path: Path) -> None:
    served.approved("1.1.0", rambling_bundle)
    out = tmp_path / "out"
    kill_at(start_stage(served, "1.1.0", out), out / "timeline.jsonl", "step")
    repairs = reconcile(served.ledger, served.places, NAME)
    assert [text.split(":")[0] for text in repairs[:2]] == ["ledger", "routes"]
    assert_consistent(served, "1.0.0")
    done = start_stage(served, "1.1.0", out)
    done.communicate(timeout=DEADLINE)
    assert done.returncode == ExitCode.ROLLED_BACK
    assert read_record(out).metrics["verdict"] == "rolled_back"


def test_a_person_ends_a_canary_under_way(served: House, good_bundles: list[Path]) -> None:
    served.approved("1.1.0", good_bundles[1])
    ended: list[str] = []
    thread = threading.Thread(target=lambda: ended.append(release(served, "1.1.0")[0]))
    thread.start()
    until(lambda: served.ledger.history(NAME).canary, "the canary begins")
    rollback(served.ledger, served.places, NAME, "carol", "a complaint came in")
    thread.join(DEADLINE)
    assert ended == ["rolled_back"]
    assert_consistent(served, "1.0.0")


def kill_at(process: "subprocess.Popen[bytes]", timeline: Path, event: str) -> None:
    """Kills a process with SIGKILL as soon as its timeline tells of an event."""
    until(lambda: timeline.exists() and f'"event": "{event}"' in timeline.read_text(), event)
    process.send_signal(signal.SIGKILL)
    process.communicate()
