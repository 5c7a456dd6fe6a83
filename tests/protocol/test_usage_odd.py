"""Answers that are no streams, and streams of what no one should send: all is read that can be, and nothing raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.protocol.answers import (
    FULL,
    FULL_START,
    HELLO,
    ITERATIONS,
    NOTHING,
    OPUS,
    READ_ITERATIONS,
    SONNET,
    STOP,
    end,
    read,
    read_json,
    start,
    stream,
)
from tproxy.protocol.usage import Iteration, Outcome, Usage, UsageReader

ODD: dict[str, tuple[tuple[tuple[str, bytes], ...], Outcome]] = {
    "no JSON": (
        (("message_start", b"{"), ("content_block_delta", b""), ("message_delta", b"\xff"), ("error", b"oops")),
        replace(NOTHING, first_content_seen=True, odd=4, odd_usage=True),
    ),
    "no objects": (
        (("message_start", b"[]"), ("content_block_start", b"1"), ("message_delta", b'"x"'), ("error", b"null")),
        replace(NOTHING, odd=4, odd_usage=True),
    ),
    "objects with nothing in them": (
        tuple((name, b"{}") for name in ("message_start", "content_block_start", "message_delta", "error", "ping")),
        replace(NOTHING, started=True, first_content_seen=True),
    ),
    "values of wrong types": (
        (
            ("message_start", b'{"message":{"id":5,"model":[],"stop_reason":{},"usage":[1]}}'),
            ("content_block_start", b'{"content_block":{"type":"fallback","to":"m"}}'),
            ("content_block_delta", b'{"delta":{"type":"text_delta","text":5}}'),
            ("error", b'{"error":{"type":5}}'),
        ),
        replace(NOTHING, started=True, first_content_seen=True, odd=7, odd_usage=True),
    ),
    "counts of wrong types": (
        (
            (
                "message_delta",
                b'{"usage":{"input_tokens":7,"output_tokens":true,"cache_read_input_tokens":-1,'
                b'"cache_creation_input_tokens":1.5,"cache_creation":3,"server_tool_use":{"web_search_requests":"4"},'
                b'"output_tokens_details":[],"service_tier":1,"speed":"fast","iterations":{}}}',
            ),
        ),
        replace(NOTHING, usage=Usage(input_tokens=7, speed="fast"), odd=9, odd_usage=True),
    ),
    "a count that no ledger could hold": (
        (("message_delta", b'{"usage":{"input_tokens":7,"output_tokens":' + b"9" * 400 + b"}}"),),
        replace(NOTHING, usage=Usage(input_tokens=7), odd=1, odd_usage=True),
    ),
    "counts that no answer has": (
        (
            (
                "message_delta",
                b'{"usage":{"input_tokens":4294967296,"output_tokens":4294967297,"cache_read_input_tokens":1e300}}',
            ),
        ),
        replace(NOTHING, usage=Usage(input_tokens=2**32), odd=2, odd_usage=True),
    ),
    "a count as a text": (
        (("message_delta", b'{"usage":{"input_tokens":"100","output_tokens":7.0}}'),),
        replace(NOTHING, usage=Usage(output_tokens=7), final=True, odd=1, odd_usage=True),
    ),
    "output without input": (
        (("message_delta", b'{"usage":{"output_tokens":7}}'),),
        replace(NOTHING, usage=Usage(output_tokens=7), final=True, odd_usage=True),
    ),
    "an iteration without its input": (
        (
            (
                "message_delta",
                b'{"usage":{"input_tokens":1,"output_tokens":7,"iterations":[{"type":"message","output_tokens":7}]}}',
            ),
        ),
        replace(
            NOTHING,
            usage=Usage(input_tokens=1, output_tokens=7, iterations=(Iteration(kind="message", output_tokens=7),)),
            final=True,
            odd_usage=True,
        ),
    ),
    "an iteration that cannot be read": (
        (("message_delta", b'{"usage":{"input_tokens":1,"output_tokens":7,"iterations":[5]}}'),),
        replace(NOTHING, usage=Usage(input_tokens=1, output_tokens=7), final=True, odd=1, odd_usage=True),
    ),
    "more iterations than any": (
        (
            (
                "message_delta",
                b'{"usage":{"input_tokens":1,"output_tokens":7,"iterations":[%s]}}'
                % b",".join([b'{"type":"message","input_tokens":1,"output_tokens":7}'] * 257),
            ),
        ),
        replace(NOTHING, usage=Usage(input_tokens=1, output_tokens=7), final=True, odd=1, odd_usage=True),
    ),
    "integral floats, which are counts": (
        (("message_delta", b'{"usage":{"input_tokens":5.0,"output_tokens":7.0}}'),),
        replace(NOTHING, usage=Usage(input_tokens=5, output_tokens=7), final=True),
    ),
    "an event of no usage that cannot be read": (
        (("message_delta", b'{"usage":{"input_tokens":1,"output_tokens":7}}'), ("content_block_start", b"{")),
        replace(NOTHING, usage=Usage(input_tokens=1, output_tokens=7), odd=1),
    ),
    "a usage larger than any": (
        (("message_delta", b'{"usage":{"output_tokens":7,"more":"' + b"x" * 70_000 + b'"}}'),),
        replace(NOTHING, odd=1, odd_usage=True),
    ),
    "iterations of wrong types": (
        (
            (
                "message_delta",
                b'{"usage":{"output_tokens":1,"iterations":[5,{"type":7},{"model":"m"},'
                b'{"type":"message","model":3,"input_tokens":"2","output_tokens":4}]}}',
            ),
        ),
        replace(
            NOTHING,
            usage=Usage(output_tokens=1, iterations=(Iteration(kind="message", output_tokens=4),)),
            final=True,
            odd=5,
            odd_usage=True,
        ),
    ),
    "a refusal after content that could not be read": (
        (
            ("content_block_delta", b'{"delta":{"type":"text_delta","text":"\\ud83d"}}'),
            ("message_delta", b'{"delta":{"stop_reason":"refusal"}}'),
        ),
        replace(NOTHING, stop_reason="refusal", first_content_seen=True, odd=1),
    ),
    "deep nesting": (
        (("message_start", b'{"message":' + b"[" * 100_000), ("content_block_delta", b'{"a":' * 100_000)),
        replace(NOTHING, first_content_seen=True, odd=2, odd_usage=True),
    ),
}


@pytest.mark.parametrize(("events", "outcome"), ODD.values(), ids=ODD.keys())
def test_passes_over_what_is_odd(events: tuple[tuple[str, bytes], ...], outcome: Outcome) -> None:
    reader = UsageReader()
    for name, data in events:
        reader.feed_event(name, data)
    assert reader.outcome() == outcome


MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": OPUS,
    "content": [{"type": "text", "text": "Hello there!"}],
    "stop_reason": "end_turn",
    "usage": FULL_START | {"output_tokens": 65},
}
WHOLE = replace(NOTHING, stopped=True, final=True)
READ_MESSAGE = replace(WHOLE, usage=FULL, model=OPUS, message_id="msg_1", stop_reason="end_turn")
REFUSED = replace(READ_MESSAGE, stop_reason="refusal")

BODIES: dict[str, tuple[object, Outcome]] = {
    "a message": (MESSAGE, READ_MESSAGE),
    "a message in spread-out JSON": (json.dumps(MESSAGE, indent=2).encode(), READ_MESSAGE),
    "a message without usage": (MESSAGE | {"usage": None}, replace(READ_MESSAGE, usage=None)),
    "a message after a fallback": (
        MESSAGE
        | {
            "usage": {"output_tokens": 8, "iterations": ITERATIONS},
            "content": [{"type": "fallback", "to": {"model": "m"}}],
        },
        replace(READ_MESSAGE, usage=Usage(output_tokens=8, iterations=READ_ITERATIONS), model=SONNET, odd_usage=True),
    ),
    "a message after a fallback, by its block": (
        MESSAGE | {"content": [{"type": "fallback", "to": {"model": SONNET}}, *MESSAGE["content"]]},
        replace(READ_MESSAGE, model=SONNET),
    ),
    "a refusal without content": (
        MESSAGE | {"content": [], "stop_reason": "refusal"},
        replace(REFUSED, refused_unbilled=True),
    ),
    "a refusal with empty content": (
        MESSAGE | {"content": [{"type": "text", "text": ""}, {"type": "fallback"}], "stop_reason": "refusal"},
        replace(REFUSED, refused_unbilled=True),
    ),
    "a refusal after some words": (MESSAGE | {"stop_reason": "refusal"}, REFUSED),
    "a refusal after thinking": (
        MESSAGE | {"content": [{"type": "thinking", "thinking": "", "signature": "Eq"}], "stop_reason": "refusal"},
        REFUSED,
    ),
    "a refusal with odd content": (MESSAGE | {"content": 5, "stop_reason": "refusal"}, replace(REFUSED, odd=1)),
    "a refusal with more content than any": (
        MESSAGE | {"content": [{}] * 100_001, "stop_reason": "refusal"},
        REFUSED,
    ),
    "an error": (
        {"type": "error", "error": {"type": "rate_limit_error", "message": "…"}, "request_id": "req_1"},
        replace(WHOLE, error_type="rate_limit_error"),
    ),
    "an error of another make": ({"error": "no"}, replace(WHOLE, odd=1)),
    "counted tokens, which are free": ({"input_tokens": 14}, WHOLE),
    "a batch": ({"id": "msgbatch_1", "type": "message_batch", "usage": {"input_tokens": 5}}, WHOLE),
    "an old completion": ({"type": "completion", "completion": "x", "model": "claude-2.1"}, WHOLE),
    "an array": ([1], replace(NOTHING, odd=1)),
    "nothing": (b"", replace(NOTHING, odd=1)),
    "HTML": (b"<html>", replace(NOTHING, odd=1)),
    "cut short": (json.dumps(MESSAGE).encode()[:-1], replace(NOTHING, odd=1)),
    "deep nesting": (b'{"content":' + b"[" * 100_000, replace(NOTHING, odd=1)),
}


@pytest.mark.parametrize(("body", "outcome"), BODIES.values(), ids=BODIES.keys())
def test_reads_a_body(body: object, outcome: Outcome) -> None:
    assert read_json(body) == outcome


def test_a_stream_and_a_body_of_the_same_message_agree() -> None:
    streamed = read(stream(start(FULL_START), *HELLO, end(output_tokens=65), STOP))
    whole = read_json(MESSAGE)
    assert replace(whole, started=True, delivered_tokens=7, first_content_seen=True) == replace(
        streamed, delivered_tokens=7
    )


NAMES = (
    "type message usage delta content content_block error model to text name id stop_reason iterations input_tokens "
    "output_tokens cache_creation ephemeral_5m_input_tokens cache_creation_input_tokens server_tool_use"
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES.split()), inner, max_size=5),
    max_leaves=15,
)
event_names = st.sampled_from(
    ["message_start", "content_block_start", "content_block_delta", "message_delta", "message_stop", "error", "?"]
)


@given(st.lists(st.tuples(event_names, anything.map(json.dumps).map(str.encode) | st.binary(max_size=9)), max_size=8))
def test_never_raises(events: list[tuple[str, bytes]]) -> None:
    reader = UsageReader()
    for name, data in events:
        reader.feed_event(name, data)
        UsageReader().feed_json(data)
    reader.outcome()
