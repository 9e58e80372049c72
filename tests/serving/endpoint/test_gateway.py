"""The gateway with real endpoints behind it: splitting, swapping, dying."""

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from serving_processes import DEADLINE, Running, running, wait_until

from serving.endpoint.sticky import choose_arm
from serving.routes import Arm, Route, set_route

CHAT = "/v1/chat/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, **fields}


def wait_ready(gateway: Running, *arms: str) -> None:
    wait_until(lambda: all((gateway.status().get(arm) or {}).get("ready") for arm in arms), f"{arms} ready")


def wait_in_force(gateway: Running, digest: str) -> None:
    wait_until(lambda: (gateway.status().get("stable") or {}).get("digest") == digest, "the new stable arm is in force")


def test_sessions_split_by_weight_and_stick(gateway: Running, routes_file: Path, bundle_a: Arm, bundle_b: Arm) -> None:
    route = Route(model="m", token=1, stable=bundle_a, canary=bundle_b, weight=25)
    set_route(routes_file, route)
    wait_ready(gateway, "stable", "canary")
    num_sessions = 1000

    async def ask(http: httpx.AsyncClient, turn: asyncio.Semaphore, session: int) -> str:
        async with turn:
            answer = await http.post(CHAT, json=body(max_tokens=1), headers={"x-session-id": str(session)})
        assert answer.status_code == 200
        assert answer.headers["x-goldpath-digest"] == answer.json()["system_fingerprint"]
        return answer.headers["x-goldpath-arm"]

    async def ask_all() -> list[str]:
        turn = asyncio.Semaphore(24)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=DEADLINE) as http:
            return await asyncio.gather(*(ask(http, turn, session % num_sessions) for session in range(num_sessions + 100)))

    arms = asyncio.run(ask_all())
    share = arms[:num_sessions].count("canary") / num_sessions
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / num_sessions) ** 0.5
    assert arms[num_sessions:] == arms[:100], "a session changed its arm"
    seen = gateway.observations()
    assert [o["seq"] for o in seen] == list(range(1, num_sessions + 101))
    assert sum(o["arm"] == "canary" for o in seen) == arms.count("canary")
    assert all(o["status"] == 200 and o["completion_tokens"] == 1 and not o["probe"] for o in seen)
    metrics = gateway.http.get("/metrics").text
    assert (
        f'goldpath_requests_total{{arm="canary",digest="{bundle_b.digest}",model="m",probe="false",status="200"}}'
        in metrics
    )


def test_openai_client_probes_and_errors(gateway: Running, routes_file: Path, bundle_a: Arm, bundle_b: Arm) -> None:
    set_route(routes_file, Route(model="m", token=1, stable=bundle_a, canary=bundle_b, weight=0))
    wait_ready(gateway, "stable", "canary")
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["m"]
    plain = client.chat.completions.create(**body())
    probe = client.chat.completions.create(**body(), extra_headers={"x-goldpath-arm": "canary"})
    assert (plain.system_fingerprint, probe.system_fingerprint) == (bundle_a.digest, bundle_b.digest)
    assert [(o["arm"], o["probe"]) for o in gateway.observations()] == [("stable", False), ("canary", True)]
    streamed = client.chat.completions.create(**body(stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == plain.choices[0].message.content
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**body(model="other"))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**body(max_tokens=9999))
    assert caught.value.code == "context_length_exceeded"
    last = gateway.observations()[-1]
    assert (last["status"], last["error"]) == (400, ""), "a client's mistake was blamed on the arm"
    for header, status in (("green", 400), ("canary", 404)):
        if header == "canary":
            set_route(routes_file, Route(model="m", token=1, stable=bundle_a))
            wait_until(lambda: gateway.status()["canary"] is None, "the canary is withdrawn")
        assert gateway.http.post(CHAT, json=body(), headers={"x-goldpath-arm": header}).status_code == status
    assert gateway.http.get("/goldpath/observations?after=x").status_code == 400
    assert gateway.http.post(CHAT, content=b"{").status_code == 400


@pytest.mark.slow
def test_hot_swaps_under_streams_fail_no_request(gateway: Running, routes_file: Path, bundle_a: Arm, bundle_b: Arm) -> None:
    set_route(routes_file, Route(model="m", token=0, stable=bundle_a))
    wait_ready(gateway, "stable")
    done = asyncio.Event()
    answers: list[tuple[str, set[str]]] = []

    async def stream_on(http: httpx.AsyncClient, client: int) -> None:
        while not done.is_set():
            ask = body(stream=True, max_tokens=60, temperature=2, seed=client)
            async with http.stream("POST", CHAT, json=ask) as answer:
                assert answer.status_code == 200
                lines = [line[6:] async for line in answer.aiter_lines() if line]
            assert lines[-1] == "[DONE]"
            fingerprints = {json.loads(line)["system_fingerprint"] for line in lines[:-1]}
            answers.append((answer.headers["x-goldpath-digest"], fingerprints))

    async def swap() -> None:
        try:
            for token, arm in enumerate([bundle_b, bundle_a, bundle_b, bundle_a, bundle_b], start=1):
                set_route(routes_file, Route(model="m", token=token, stable=arm))
                await asyncio.to_thread(wait_in_force, gateway, arm.digest)
                async with asyncio.timeout(DEADLINE):  # each arm is met by whole streams, however slow the machine is
                    before = len(answers)
                    while not any(digest == arm.digest for digest, _ in answers[before:]):
                        await asyncio.sleep(0.02)
        finally:
            done.set()

    async def run() -> None:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=DEADLINE) as http, asyncio.TaskGroup() as group:
            for client in range(10):
                group.create_task(stream_on(http, client))
            group.create_task(swap())

    asyncio.run(run())
    assert {digest for digest, _ in answers} == {bundle_a.digest, bundle_b.digest}
    assert all(fingerprints == {digest} for digest, fingerprints in answers), "two bundles spoke in one answer"
    assert not [o for o in gateway.observations() if o["error"] or o["status"] != 200]
    wait_until(lambda: len(_endpoints(gateway)) == 1, "the retired endpoint is stopped")


def test_a_killed_endpoint_comes_back_and_no_client_notices(
    gateway: Running, routes_file: Path, bundle_a: Arm, bundle_b: Arm
) -> None:
    route = Route(model="m", token=1, stable=bundle_a, canary=bundle_b, weight=50)
    set_route(routes_file, route)
    wait_ready(gateway, "stable", "canary")
    theirs = next(s for s in map(str, range(99)) if choose_arm(route, s) == "canary")
    os.kill(int(str(gateway.status()["canary"]["pid"])), signal.SIGKILL)
    fallback = gateway.http.post(CHAT, json=body(user=theirs))
    assert (fallback.status_code, fallback.headers["x-goldpath-arm"]) == (200, "stable")
    failed, answered = gateway.observations()
    assert (failed["arm"], answered["arm"]) == ("canary", "stable")
    assert failed["error"]
    assert int(str(failed["status"])) in (502, 503)
    os.kill(int(str(gateway.status()["stable"]["pid"])), signal.SIGKILL)
    ours = next(s for s in map(str, range(99)) if choose_arm(route, s) == "stable")
    assert gateway.http.post(CHAT, json=body(user=ours)).status_code == 200, "the request did not wait for the restart"
    wait_ready(gateway, "stable", "canary")
    again = gateway.http.post(CHAT, json=body(user=theirs))
    assert again.headers["x-goldpath-arm"] == "canary"
    assert gateway.status()["canary"]["restarts"] == 1


def test_a_canary_with_other_bytes_never_serves(
    gateway: Running, routes_file: Path, bundle_a: Arm, bundle_b: Arm, tmp_path: Path
) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(bundle_a.bundle, forged)
    impostor = Arm(digest=bundle_b.digest, version="9", bundle=forged)
    set_route(routes_file, Route(model="m", token=1, stable=bundle_a, canary=impostor, weight=100))
    wait_ready(gateway, "stable")
    wait_until(lambda: gateway.status()["canary"]["error"], "the forged bundle is refused")
    answer = gateway.http.post(CHAT, json=body())
    assert (answer.status_code, answer.headers["x-goldpath-digest"]) == (200, bundle_a.digest)
    assert "digest" in str(gateway.observations()[0]["error"])
    probe = gateway.http.post(CHAT, json=body(), headers={"x-goldpath-arm": "canary"})
    assert (probe.status_code, probe.json()["error"]["code"]) == (503, "arm_unavailable")


def test_a_client_that_leaves_frees_the_endpoint(gateway: Running, routes_file: Path, bundle_a: Arm) -> None:
    set_route(routes_file, Route(model="m", token=1, stable=bundle_a))
    wait_ready(gateway, "stable")
    long = body(stream=True, temperature=2, max_tokens=240)
    for _ in range(5):
        with gateway.http.stream("POST", CHAT, json=long) as answer:
            next(answer.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        gateway.http.post(CHAT, json={**long, "stream": False}, timeout=httpx.Timeout(DEADLINE, read=0.02))
    wait_until(lambda: gateway.status()["stable"]["in_flight"] == 0, "nothing is in flight")
    wait_until(lambda: len(gateway.observations()) == 6, "all six are noted")
    assert not [o for o in gateway.observations() if o["error"]]


def test_a_broken_routes_file_leaves_the_last_good_routes(gateway: Running, routes_file: Path, bundle_a: Arm) -> None:
    set_route(routes_file, Route(model="m", token=1, stable=bundle_a))
    wait_ready(gateway, "stable")
    routes_file.write_text("{")
    assert gateway.http.post(CHAT, json=body()).status_code == 200
    routes_file.unlink()
    assert gateway.http.post(CHAT, json=body()).status_code == 200
    set_route(routes_file, Route(model="new", token=1, stable=bundle_a))
    wait_until(
        lambda: [m["id"] for m in gateway.http.get("/v1/models").json()["data"]] == ["new"], "the file is read again"
    )


def test_endpoints_die_with_a_killed_gateway(routes_file: Path, bundle_a: Arm, bundle_b: Arm) -> None:
    set_route(routes_file, Route(model="m", token=1, stable=bundle_a, canary=bundle_b, weight=5))
    with running("gateway", "--routes", str(routes_file), "--port", "0") as gateway:
        wait_ready(gateway, "stable", "canary")
        endpoints = _endpoints(gateway)
        assert len(endpoints) == 2
        gateway.process.kill()
        _, alive = psutil.wait_procs(endpoints, timeout=DEADLINE)
        assert not alive


def test_sigterm_ends_gateway_and_endpoints(routes_file: Path, bundle_a: Arm) -> None:
    set_route(routes_file, Route(model="m", token=1, stable=bundle_a))
    with running("gateway", "--routes", str(routes_file), "--port", "0") as gateway:
        wait_ready(gateway, "stable")
        endpoints = _endpoints(gateway)
        gateway.process.terminate()
        assert gateway.process.wait(DEADLINE) == 0
        assert not [endpoint for endpoint in endpoints if endpoint.is_running()]


def _endpoints(gateway: Running) -> list[psutil.Process]:
    return psutil.Process(gateway.process.pid).children()
