"""Answers of the Messages API, made piece by piece, and what should be read from the common ones."""

from __future__ import annotations

import json
from typing import Any

from msgspec.structs import replace

from tproxy.protocol.sse import SSEParser
from tproxy.protocol.tokens import count_tokens
from tproxy.protocol.usage import Iteration, Outcome, Usage, UsageReader

Event = tuple[str, dict[str, Any]]

OPUS, SONNET = "claude-opus-5-5", "claude-sonnet-5-5"


def start(usage: object = None, **message: object) -> Event:
    made: dict[str, object] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": OPUS,
        "content": [],
        "stop_reason": None,
    }
    return "message_start", {"message": made | {"usage": usage or {"input_tokens": 25, "output_tokens": 1}} | message}


def block(index: int = 0, **block: object) -> Event:
    return "content_block_start", {"index": index, "content_block": block or {"type": "text", "text": ""}}


def delta(index: int = 0, **delta: object) -> Event:
    return "content_block_delta", {"index": index, "delta": delta}


def text(text: str) -> Event:
    return delta(type="text_delta", text=text)


def end(stop_reason: str | None = "end_turn", **usage: object) -> Event:
    return "message_delta", {"delta": {"stop_reason": stop_reason, "stop_sequence": None}} | (
        {"usage": usage} if usage else {}
    )


BLOCK_STOP: Event = ("content_block_stop", {"index": 0})
STOP: Event = ("message_stop", {})
PING: Event = ("ping", {})


def stream(*events: Event) -> bytes:
    return b"".join(f"event: {name}\ndata: {json.dumps({'type': name} | data)}\n\n".encode() for name, data in events)


def read(*pieces: bytes) -> Outcome:
    parser, reader = SSEParser(), UsageReader()
    for piece in pieces:
        for event in parser.feed(piece):
            reader.feed_event(event.event, event.data)
    return reader.outcome()


def read_json(body: object) -> Outcome:
    reader = UsageReader()
    reader.feed_json(body if isinstance(body, bytes) else json.dumps(body).encode())
    return reader.outcome()


NOTHING = Outcome(
    usage=None,
    model=None,
    message_id=None,
    stop_reason=None,
    refused_unbilled=False,
    error_type=None,
    started=False,
    stopped=False,
    final=False,
    delivered_tokens=0,
    first_content_seen=False,
    odd=0,
    odd_usage=False,
)
STARTED = replace(NOTHING, usage=Usage(input_tokens=25, output_tokens=1), model=OPUS, message_id="msg_1", started=True)
ANSWERED = replace(
    STARTED,
    usage=Usage(input_tokens=25, output_tokens=8),
    stop_reason="end_turn",
    stopped=True,
    final=True,
    delivered_tokens=count_tokens("Hello there!", OPUS),
    first_content_seen=True,
)

FULL_START = {
    "input_tokens": 377,
    "cache_creation_input_tokens": 1200,
    "cache_read_input_tokens": 8000,
    "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 1000},
    "output_tokens": 1,
    "service_tier": "standard",
    "inference_geo": "global",
    "speed": "fast",
    "server_tool_use": None,
}
FULL = Usage(
    input_tokens=377,
    output_tokens=65,
    cache_read_tokens=8000,
    cache_write_5m_tokens=200,
    cache_write_1h_tokens=1000,
    service_tier="standard",
    geo="global",
    speed="fast",
)
HELLO = (block(), text("Hello"), PING, text(" there!"), BLOCK_STOP)
ITERATIONS = [
    {"type": "message", "model": OPUS, "input_tokens": 20, "output_tokens": 0, "cache_creation": None},
    {"type": "compaction", "input_tokens": 900, "output_tokens": 50},
    {
        "type": "fallback_message",
        "model": SONNET,
        "input_tokens": 25,
        "output_tokens": 8,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 7,
        "cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 2},
    },
]
READ_ITERATIONS = (
    Iteration(kind="message", model=OPUS, input_tokens=20, output_tokens=0),
    Iteration(kind="compaction", input_tokens=900, output_tokens=50),
    Iteration(
        kind="fallback_message",
        model=SONNET,
        input_tokens=25,
        output_tokens=8,
        cache_read_tokens=3,
        cache_write_5m_tokens=5,
        cache_write_1h_tokens=2,
    ),
)
FALLBACK = block(type="fallback", to={"model": SONNET}, trigger={"type": "refusal", "category": None})
