"""The endpoint as its clients meet it: the unmodified `openai` package, and plain HTTP for what that hides."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from serving_processes import DEADLINE, Running, running, wait_until

from serving.routes import Arm

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "which module defines quote?"}]


@pytest.fixture
def client(endpoint: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="none", max_retries=0)


def test_models_lists_the_one_that_is_served(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["m"]


def test_chat_streamed_and_whole_are_the_same_answer(client: openai.OpenAI, bundle_a: Arm) -> None:
    whole = client.chat.completions.create(model="m", messages=HELLO, max_tokens=40)
    stream = client.chat.completions.create(
        model="m", messages=HELLO, max_tokens=40, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert whole.choices[0].message.content
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 10
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert whole.system_fingerprint == bundle_a.digest


def test_the_answer_is_what_generate_gives_for_the_rendered_conversation(client: openai.OpenAI, bundle_a: Arm) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundle_a.bundle)
    model = AutoModelForCausalLM.from_pretrained(bundle_a.bundle)
    ids = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)[0, ids.shape[1] :]
    said = client.chat.completions.create(model="m", messages=HELLO, max_tokens=30)
    assert said.choices[0].message.content == tokenizer.decode(out, skip_special_tokens=True)
    assert said.usage is not None
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (ids.shape[1], len(out))


def test_completions_take_text_and_tokens_one_or_many(client: openai.OpenAI) -> None:
    one = client.completions.create(model="m", prompt="which module", max_tokens=5)
    many = client.completions.create(model="m", prompt=["which module", "a str"], max_tokens=5)
    assert len(many.choices) == 2
    assert many.choices[0].text == one.choices[0].text
    assert one.choices[0].finish_reason == "length"
    echoed = client.completions.create(model="m", prompt=[10, 20, 30], max_tokens=1, echo=True, logprobs=2)
    logprobs = echoed.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) == 4
    assert logprobs.token_logprobs[0] is None
    streamed = client.completions.create(model="m", prompt="which module", max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == one.choices[0].text


def test_stop_seed_and_temperature_are_honoured(client: openai.OpenAI) -> None:
    def say(**settings: Any) -> str:
        answer = client.chat.completions.create(model="m", messages=HELLO, max_tokens=30, **settings)
        return answer.choices[0].message.content or ""

    greedy = say()
    stop = greedy[5:8]
    assert say(stop=stop) == greedy[: greedy.index(stop)]
    assert say(temperature=1.5, seed=3) == say(temperature=1.5, seed=3) != greedy
    assert say(temperature=1.5, seed=3) != say(temperature=1.5, seed=4)


@pytest.mark.parametrize(
    ("change", "kind", "param", "code"),
    [
        ({"model": "other"}, openai.NotFoundError, "model", "model_not_found"),
        ({"max_tokens": 5000}, openai.BadRequestError, "messages", "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": "far too long " * 200_000}]},
            openai.BadRequestError,
            "messages",
            "context_length_exceeded",
        ),
        ({"messages": []}, openai.BadRequestError, "messages", None),
        ({"temperature": 9}, openai.BadRequestError, "temperature", None),
        ({"n": 2}, openai.BadRequestError, "n", None),
        ({"presence_penalty": 1}, openai.BadRequestError, "presence_penalty", None),
        ({"extra_body": {"best_of": 2}}, openai.BadRequestError, "best_of", None),
    ],
)
def test_errors_have_openais_form(
    client: openai.OpenAI, change: dict[str, Any], kind: type[openai.APIStatusError], param: str, code: str | None
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "m", "messages": HELLO, "max_tokens": 5, **change})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"


def test_what_is_no_json_or_no_path_is_a_clean_error_too(endpoint: Running) -> None:
    for path, content, status in (("/v1/completions", b"{", 400), ("/v1/nothing", b"{}", 404)):
        answer = endpoint.http.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(endpoint: Running, stream: bool) -> None:
    body = {"model": "m", "messages": HELLO, "stream": stream, "temperature": 2, "max_tokens": 200, "stop": []}

    def running_requests() -> int:
        return int(endpoint.http.get("/healthz").json()["running"])

    wait_until(lambda: running_requests() == 0, "the endpoint is idle")
    leavers = [threading.Thread(target=_ask_and_leave, args=(endpoint.url, body)) for _ in range(20)]
    for leaver in leavers:
        leaver.start()
    for leaver in leavers:
        leaver.join()
    wait_until(lambda: running_requests() == 0, "the slots are free")
    assert endpoint.http.get("/healthz").json()["waiting"] == 0
    assert endpoint.http.post("/v1/chat/completions", json={**body, "stream": False, "max_tokens": 1}).status_code == 200


def _ask_and_leave(url: str, body: dict[str, Any]) -> None:
    with httpx.Client(base_url=url, timeout=DEADLINE) as http:
        if body["stream"]:
            with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/chat/completions", json=body, timeout=httpx.Timeout(DEADLINE, read=0.01))


def test_a_changed_bundle_is_refused_in_one_line(tmp_path: Path, bundle_a: Arm) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_a.bundle, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    done = subprocess.run(
        [sys.executable, "-m", "serving", "endpoint", "--bundle", str(folder), "--port", "0"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "config.json: was changed after the bundle was sealed" in done.stderr


def test_a_port_in_use_is_refused_with_the_fix(endpoint: Running, bundle_a: Arm) -> None:
    port = endpoint.url.rpartition(":")[2]
    command = [sys.executable, "-m", "serving", "endpoint", "--bundle", str(bundle_a.bundle), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: --port: {port}: port in use. Fix: choose another port, or `--port 0` for a free one\n"


def test_sigterm_answers_what_has_begun(bundle_a: Arm) -> None:
    arguments = ["--bundle", str(bundle_a.bundle), "--port", "0", "--model", "m", "--threads", "1"]
    with running("endpoint", *arguments) as started:
        body = {"model": "m", "messages": HELLO, "max_tokens": 200, "stream": True, "temperature": 2, "seed": 1}
        with started.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(started.process.pid, signal.SIGTERM)
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert started.process.wait(DEADLINE) == 0
