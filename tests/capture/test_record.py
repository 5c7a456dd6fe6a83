from __future__ import annotations

import json
from typing import Any

import pytest

from tests.protocol.test_conversation import START, TEXT, block, ended, started, stream
from tproxy.capture.record import Kept, Taken, develop, shown
from tproxy.protocol.redact import MASK, Redactor

KEY = "sk-ant-api03-abcdefghij"
REQUEST = b'{"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "hello"}]}'
DELTAS = ({"type": "text_delta", "text": "the key is sk-ant-"}, {"type": "text_delta", "text": "api03-abcdefghij"})
STREAM = stream(started(), *block(0, TEXT, *DELTAS), *ended())
ERROR = {"type": "overloaded_error", "message": f"not with {KEY}"}
FAILED = stream(started(), *block(0, TEXT, {"type": "text_delta", "text": "half"}), {"type": "error", "error": ERROR})


def taken(**fields: Any) -> Taken:
    values: dict[str, Any] = {
        "id": "x",
        "at_us": 1,
        "caller": "anonymous",
        "caller_alias": None,
        "model": "claude-sonnet-5-5",
        "path": "/v1/messages",
        "status": 200,
        "ended": "finished",
        "error_type": None,
        "why": "sample",
        "request": REQUEST,
        "answer": None,
        "answer_lost": False,
    } | fields
    values.setdefault("request_bytes", len(values["request"] or b""))
    values.setdefault("answer_bytes", sum(map(len, values["answer"] or ())))
    return Taken(**values)


def made(max_bytes: int = 10_000, **fields: Any) -> Kept:
    return develop(taken(**fields), Redactor(), max_bytes)


def test_a_stream_is_joined_before_it_is_redacted() -> None:
    kept = made(answer=[STREAM[:100], STREAM[100:]])
    answer = shown(kept.answer, kept.answer_kind)
    assert (kept.answer_kind, kept.answer_whole, kept.answer_cut, kept.answer_error) == ("message", True, False, None)
    assert answer["content"] == [TEXT | {"text": f"the key is {MASK}"}]
    assert kept.redacted == 1
    assert shown(kept.request, kept.request_kind) == json.loads(REQUEST)
    assert kept.size == len(kept.request or "") + len(kept.answer or "")


# What is there of an answer: its kind, whether it is whole, whether it was cut, what is kept.
ANSWERS: dict[str, tuple[dict[str, Any], tuple[Any, ...], Any]] = {
    "none": ({"answer": None}, (None, None, False), None),
    "JSON": ({"answer": [b'{"a":', b' "x"}']}, ("json", None, False), {"a": "x"}),
    "JSON of which there is a part": ({"answer": [b'{"a": "x'], "answer_bytes": 99}, ("json", None, True), {"a": "x"}),
    "a page": ({"answer": [b"<html>"]}, ("text", None, False), "<html>"),
    "an error in the stream": (
        {"answer": [FAILED]},
        ("message", False, False),
        START | {"content": [TEXT | {"text": "half"}]},
    ),
    "a stream of which there is a part": (
        {"answer": [FAILED[:-10]], "answer_bytes": len(FAILED)},
        ("message", False, True),
        START | {"content": [TEXT | {"text": "half"}]},
    ),
    "a stream that the tap gave up on": (
        {"answer": [FAILED[:-10]], "answer_lost": True},
        ("message", False, True),
        START | {"content": [TEXT | {"text": "half"}]},
    ),
    "a stream without a message": ({"answer": [b"event: ping\ndata: {}\n\n"]}, ("text", False, False), None),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name: str) -> None:
    fields, (kind, whole, cut), value = ANSWERS[name]
    kept = made(**fields)
    assert (kept.answer_kind, kept.answer_whole, kept.answer_cut) == (kind, whole, cut)
    assert shown(kept.answer, kept.answer_kind) == (value if value is not None or kind is None else kept.answer)


def test_the_error_of_a_stream_is_kept_and_redacted() -> None:
    kept = made(answer=[FAILED])
    assert kept.answer_error is not None
    assert json.loads(kept.answer_error) == ERROR | {"message": f"not with {MASK}"}
    assert kept.redacted == 1


def test_bodies_are_kept_up_to_their_bound() -> None:
    request = json.dumps({"messages": ["x" * 500, "y" * 500]}).encode()
    kept = made(600, request=request, answer=[b"z " * 1000])
    assert (kept.request_cut, kept.answer_cut) == (True, True)
    assert (kept.request_bytes, kept.answer_bytes) == (len(request), 2000)
    messages = shown(kept.request, kept.request_kind)["messages"]
    assert messages[0] == "x" * 500
    assert 0 < len(messages[1]) < 500
    assert len(kept.answer or "") == 600


def test_a_request_that_was_streamed_through_is_not_there() -> None:
    kept = made(request=None, request_bytes=4000, answer=[b"{}"])
    assert (kept.request, kept.request_kind, kept.request_bytes, kept.request_cut) == (None, None, 4000, False)
