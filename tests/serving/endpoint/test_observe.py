import json

import pytest

from serving.endpoint.observe import Reading


def chunk(text: str | None = None, finish: str | None = None, **more: object) -> bytes:
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


def body(text: str, finish: str = "stop") -> bytes:
    choices = [{"index": 0, "message": {"content": text}, "finish_reason": finish}]
    return json.dumps({"choices": choices, "usage": {"completion_tokens": 9}}).encode()


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_reads_the_same_wherever_it_is_cut(size: int) -> None:
    stream = chunk("") + chunk("ü") + chunk(" b") + chunk(None, "stop") + b"data: [DONE]\n\n"
    reading = Reading()
    for at in range(0, len(stream), size):
        reading.chunk(stream[at : at + size])
    assert (reading.tokens, reading.finish_reason, reading.empty, reading.malformed) == (2, "stop", False, False)


@pytest.mark.parametrize(
    ("content", "finish", "empty", "malformed"),
    [
        (body("fine"), "stop", False, False),
        (body("  \n"), "stop", True, False),
        (body("and so on and", "length"), "length", False, True),
        (body("half a ch\ufffd"), "stop", False, True),
        (b"not json", "", True, True),
        (b'{"choices": "no"}', "", True, True),
        (b"\xff\xfe", "", True, True),
        (b"[]", "", True, True),
    ],
)
def test_what_a_client_could_not_use_is_seen(content: bytes, finish: str, empty: bool, malformed: bool) -> None:
    reading = Reading()
    reading.body(content)
    assert (reading.finish_reason, reading.empty, reading.malformed) == (finish, empty, malformed)


def test_a_stream_without_an_end_is_malformed() -> None:
    reading = Reading()
    reading.chunk(chunk("half"))
    assert reading.malformed


def test_usage_counts_more_than_chunks() -> None:
    reading = Reading()
    reading.chunk(chunk("a") + chunk("", "stop") + b'data: {"choices": [], "usage": {"completion_tokens": 5}}\n\n')
    assert (reading.tokens, reading.malformed) == (5, False)


def test_an_error_inside_a_stream_is_kept() -> None:
    reading = Reading()
    reading.chunk(b'data: {"error": {"message": "the engine failed"}}\n\n')
    assert reading.error == "the engine failed"
