from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic._streaming import SSEDecoder

from tests.cuts import every_cut
from tproxy.sandbox.asked import read
from tproxy.sandbox.body import Body
from tproxy.sandbox.cache import Prompt
from tproxy.sandbox.events import streamed
from tproxy.sandbox.messages import answer
from tproxy.sandbox.script import Script

SCRIPTS = [
    "tokens=30",
    "thinking=9;tokens=9",
    "web_search=1;fallback=claude-opus-5;compaction=4",
    "tool=x",
    "refusal=1",
]


def stream(script: str, **members: Any) -> Body:
    request = {"model": "claude-opus-5-5", "max_tokens": 99, "messages": [{"role": "user", "content": "Hello"}]}
    told = Script().with_(script)
    return streamed(answer(read(request | members), told, Prompt(7), "01x"), told, "req_1")


def decoded(body: Body) -> list[tuple[str | None, Any]]:
    """The events that the official SDK knows, as its decoder reads them."""
    events = SSEDecoder().iter_bytes(iter([b"".join(body.pieces)]))
    known = [(event.event, event.data) for event in events if event.event not in {"weather_report", "nothing"}]
    return [(name, json.loads(data)) for name, data in known]


def plainly(value: Any) -> Any:
    """Without the members that odd events add."""
    if isinstance(value, dict):
        return {name: plainly(member) for name, member in value.items() if name != "x_unknown"}
    return [plainly(member) for member in value] if isinstance(value, list | tuple) else value


def test_the_bytes_of_a_short_stream() -> None:
    pieces = stream("tokens=2;seed=5;per=1").pieces
    assert pieces[1:] == [
        b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        b'"content_block":{"type":"text","text":""}}\n\n',
        b'event: ping\ndata: {"type": "ping"}\n\n',
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":"On"}}\n\n',
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":" the"}}\n\n',
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n',
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null,'
        b'"stop_details":null},"usage":{"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,'
        b'"output_tokens":2}}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ]
    assert pieces[0].startswith(b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_01x",')


@pytest.mark.parametrize("script", SCRIPTS)
def test_deltas_carry_all_output_tokens(script: str) -> None:
    body = stream(script)
    final = next(event for name, event in decoded(body) if name == "message_delta")
    assert sum(body.tokens) == final["usage"]["output_tokens"]
    for piece, tokens in zip(body.pieces, body.tokens, strict=True):
        assert not tokens or b"content_block_delta" in piece


@pytest.mark.parametrize("eol", ["lf", "crlf", "cr"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_odd_events_say_the_same(script: str, eol: str) -> None:
    plain, odd = stream(script), stream(f"{script};odd=1;eol={eol}")
    assert plainly(decoded(odd)) == plainly(decoded(plain))
    assert odd.tokens == plain.tokens
    assert decoded(odd) != decoded(plain)


def test_odd_events_are_odd_in_every_way() -> None:
    wire = b"".join(stream("tokens=30;odd=1").pieces)
    for oddity in (
        b"\xef\xbb\xbf: a comment\n",  # a byte order mark and a comment
        b"typ\\u0065",  # an escape in a name
        b"\ndata:{",  # no space
        b"}\nevent:content_block_delta\n\n",  # the data first
        b"\nid: ",
        b"retry: 3000\n",
        b"data: {\ndata:  ",  # data on several lines
        b"event: nothing\n\n",  # no data
        b"event: other\nfield: x\nevent: content_block_delta\n",  # the name twice, a field nobody knows
        b"data:   {",
        b"} \n\n",
        b" 7.0",  # a whole number as a float
    ):
        assert oddity in wire, oddity


def test_context_management_is_told_at_the_end() -> None:
    events = decoded(stream("tokens=1", context_management={"edits": []}))
    assert [name for name, event in events if "context_management" in event] == ["message_delta"]


def test_the_same_delta_is_the_same_object() -> None:
    one, other = stream("tokens=30;seed=3"), stream("tokens=30;seed=3")
    assert one.pieces[5] is other.pieces[5]


def test_a_cut_stream_of_plain_events_has_whole_events_before_the_cut() -> None:
    """The books count on it: pieces are events."""
    for pieces in every_cut(b"".join(stream("tokens=30").pieces), random_cuts=5):
        got = b"".join(pieces)
        assert got.count(b"\n\n") == len(stream("tokens=30").pieces)
