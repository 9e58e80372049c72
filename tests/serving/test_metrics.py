from serving.metrics import Observation, TrafficLog
from serving.routes import ArmName


def seen(model: str = "m", arm: ArmName = "stable", **fields: object) -> Observation:
    values = {"at": 1.0, "model": model, "digest": "sha256:" + "a" * 64, "arm": arm, "status": 200, "seconds": 0.1}
    return Observation.model_validate({**values, **fields})


def test_a_page_begins_after_the_asked_number() -> None:
    log = TrafficLog()
    for model in ("m", "other", "m"):
        log.record(seen(model))
    assert [o.seq for o in log.page().observations] == [1, 2, 3]
    assert [o.seq for o in log.page("m").observations] == [1, 3]
    assert [o.seq for o in log.page("m", after=1).observations] == [3]
    assert log.page("m", after=3).observations == []
    assert log.page("m", after=3).dropped == 0
    assert log.page().epoch != TrafficLog().page().epoch


def test_a_page_says_how_many_observations_were_lost() -> None:
    log = TrafficLog(capacity=3)
    for _ in range(10):
        log.record(seen())
    page = log.page("m", after=2)
    assert page.dropped == 5
    assert [o.seq for o in page.observations] == [8, 9, 10]
    assert log.page("m", after=7).dropped == 0


def test_prometheus_sums_what_was_seen() -> None:
    log = TrafficLog()
    log.record(seen(completion_tokens=7))
    log.record(seen(arm="canary", status=502, error="died"))
    log.record(seen(malformed=True, empty=True, probe=True))
    counts = {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in log.exposition().decode().splitlines()
        if not line.startswith("#")
    }
    digest = "sha256:" + "a" * 64
    stable = f'arm="stable",digest="{digest}",model="m"'
    assert counts[f"goldpath_completion_tokens_total{{{stable}}}"] == 7
    assert counts[f"goldpath_request_seconds_count{{{stable}}}"] == 2
    assert counts[f'goldpath_faults_total{{arm="canary",digest="{digest}",kind="error",model="m"}}'] == 1
    assert counts[f'goldpath_faults_total{{arm="stable",digest="{digest}",kind="malformed",model="m"}}'] == 1
    assert counts[f'goldpath_requests_total{{{stable},probe="true",status="200"}}'] == 1
