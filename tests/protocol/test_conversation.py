from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from anthropic.lib.streaming._beta_messages import accumulate_event
from hypothesis import given
from hypothesis import strategies as st

from tests.cuts import every_cut
from tproxy.protocol.conversation import Joined, Joiner, is_stream, join, mended
from tproxy.protocol.sse import SSEParser

START: dict[str, Any] = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "model": "claude-sonnet-5-5",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 10, "output_tokens": 1, "cache_read_input_tokens": 5, "service_tier": "standard"},
}


def stream(*events: dict[str, Any]) -> bytes:
    return b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode() for event in events
    )


def started(**more: Any) -> dict[str, Any]:
    return {"type": "message_start", "message": START | more}


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": content},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def ended(reason: str = "end_turn", usage: Any = None, **more: Any) -> list[dict[str, Any]]:
    delta = {"stop_reason": reason, "stop_sequence": None, "stop_details": None}
    figures = usage if usage is not None else {"output_tokens": 9}
    return [{"type": "message_delta", "delta": delta, "usage": figures, **more}, {"type": "message_stop"}]


TEXT = {"type": "text", "text": ""}
CITATION = {
    "type": "char_location",
    "cited_text": "x",
    "document_index": 0,
    "document_title": None,
    "start_char_index": 0,
    "end_char_index": 1,
    "file_id": None,
}
TOOL = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
MISPLACED = {"type": "text_delta", "text": "x"}

# What the events make of it: the content, and other members that are looked at.
STREAMS: dict[str, tuple[list[dict[str, Any]], list[Any], dict[str, Any]]] = {
    "text in several deltas": (
        [
            started(),
            {"type": "ping"},
            *block(0, TEXT, {"type": "text_delta", "text": "Grüße, "}, {"type": "text_delta", "text": "🙂\n"}),
            *ended(),
        ],
        [{"type": "text", "text": "Grüße, 🙂\n"}],
        {"stop_reason": "end_turn", "model": "claude-sonnet-5-5"},
    ),
    "usage is overwritten, and what is not named stays": (
        [started(), *ended(usage={"output_tokens": 7, "cache_read_input_tokens": 6, "input_tokens": None})],
        [],
        {
            "usage": {
                "input_tokens": 10,
                "output_tokens": 7,
                "cache_read_input_tokens": 6,
                "service_tier": "standard",
            }
        },
    ),
    "thinking with its signature": (
        [
            started(),
            *block(
                0,
                {"type": "thinking", "thinking": "", "signature": ""},
                {"type": "thinking_delta", "thinking": "Split "},
                {"type": "thinking_delta", "thinking": "it."},
                {"type": "signature_delta", "signature": "EqQB"},
            ),
            *ended(),
        ],
        [{"type": "thinking", "thinking": "Split it.", "signature": "EqQB"}],
        {},
    ),
    "a tool call whose input comes in pieces": (
        [
            started(),
            *block(0, TEXT, {"type": "text_delta", "text": "Let me see."}),
            *block(
                1,
                TOOL,
                {"type": "input_json_delta", "partial_json": ""},
                {"type": "input_json_delta", "partial_json": '{"city": "Zür'},
                {"type": "input_json_delta", "partial_json": 'ich", "days": [1, 2]}'},
            ),
            *ended("tool_use"),
        ],
        [{"type": "text", "text": "Let me see."}, TOOL | {"input": {"city": "Zürich", "days": [1, 2]}}],
        {"stop_reason": "tool_use"},
    ),
    "a tool call without input": (
        [started(), *block(0, TOOL, {"type": "input_json_delta", "partial_json": ""}), *ended("tool_use")],
        [TOOL],
        {},
    ),
    "citations": (
        [
            started(),
            *block(
                0,
                TEXT | {"citations": None},
                {"type": "citations_delta", "citation": CITATION},
                {"type": "text_delta", "text": "So it is."},
                {"type": "citations_delta", "citation": CITATION | {"cited_text": "y"}},
            ),
            *ended(),
        ],
        [{"type": "text", "text": "So it is.", "citations": [CITATION, CITATION | {"cited_text": "y"}]}],
        {},
    ),
    "blocks that come whole": (
        [
            started(),
            *block(0, {"type": "redacted_thinking", "data": "AAAA"}),
            *block(1, {"type": "server_tool_use", "id": "s_1", "name": "web_search", "input": {"query": "x"}}),
            *ended(),
        ],
        [
            {"type": "redacted_thinking", "data": "AAAA"},
            {"type": "server_tool_use", "id": "s_1", "name": "web_search", "input": {"query": "x"}},
        ],
        {},
    ),
    "a compaction": (
        [
            started(),
            *block(
                0,
                {"type": "compaction", "content": None, "encrypted_content": None},
                {"type": "compaction_delta", "content": "In short", "encrypted_content": "zzz"},
            ),
            *ended("compaction"),
        ],
        [{"type": "compaction", "content": "In short", "encrypted_content": "zzz"}],
        {"stop_reason": "compaction"},
    ),
    "a fallback names the model that served": (
        [
            started(),
            *block(
                0,
                {
                    "type": "fallback",
                    "from": {"model": "claude-opus-5-5"},
                    "to": {"model": "claude-haiku-5-5"},
                },
            ),
            *ended(),
        ],
        [{"type": "fallback", "from": {"model": "claude-opus-5-5"}, "to": {"model": "claude-haiku-5-5"}}],
        {"model": "claude-haiku-5-5"},
    ),
    "what stands beside the last delta": (
        [started(), *ended(context_management={"applied_edits": []})],
        [],
        {"context_management": {"applied_edits": []}},
    ),
}
ROWS = pytest.mark.parametrize("name", STREAMS)


@ROWS
def test_a_stream_is_joined_however_it_is_cut(name: str) -> None:
    events, content, members = STREAMS[name]
    for pieces in every_cut(stream(*events)):
        parser, joiner = SSEParser(), Joiner()
        for piece in pieces:
            for event in parser.feed(piece):
                joiner.feed(event.event, event.data)
        joined = joiner.joined()
        assert (joined.complete, joined.error, joined.odd) == (True, None, 0)
        assert joined.message is not None
        assert joined.message["content"] == content
        assert {member: joined.message[member] for member in members} == members


@ROWS
def test_it_is_the_message_that_the_sdk_makes_of_it(name: str) -> None:
    events, _, _ = STREAMS[name]
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in events:
        if event["type"] not in ("ping", "message_stop"):
            raw: Any = event
            snapshot = accumulate_event(
                event=raw, current_snapshot=snapshot, json_bufs=buffers, request_headers=httpx2.Headers()
            )
    joined = join(stream(*events)).message
    assert joined is not None
    assert _bare(snapshot.to_dict(mode="json")) == _bare(joined)


def _bare(value: Any) -> Any:
    """Without what is null: the SDK's types add some members, and leave others out."""
    if isinstance(value, dict):
        return {name: _bare(each) for name, each in value.items() if each is not None}
    return [_bare(each) for each in value] if isinstance(value, list) else value


PARTS: dict[str, tuple[bytes, Joined]] = {
    "nothing": (b"", Joined(None)),
    "no start": (stream(*block(0, TEXT, {"type": "text_delta", "text": "x"})), Joined(None, odd=2)),
    "cut after a delta": (
        stream(started(), *block(0, TEXT, {"type": "text_delta", "text": "half"})[:2])[:-1],
        Joined(START | {"content": [TEXT]}),
    ),
    "an error event": (
        stream(
            started(),
            *block(0, TEXT, {"type": "text_delta", "text": "half"}),
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        ),
        Joined(
            START | {"content": [TEXT | {"text": "half"}]},
            error={"type": "overloaded_error", "message": "Overloaded"},
        ),
    ),
    "a tool call that is cut": (
        stream(started(), *block(0, TOOL, {"type": "input_json_delta", "partial_json": '{"city": "Zür'})),
        Joined(START | {"content": [TOOL | {"input": {"city": "Zür"}}]}),
    ),
    "a tool call whose input is no JSON": (
        stream(started(), *block(0, TOOL, {"type": "input_json_delta", "partial_json": "nonsense"})),
        Joined(START | {"content": [TOOL | {"input": "nonsense"}]}),
    ),
    "unknown and misplaced deltas are kept": (
        stream(
            started(),
            *block(0, TOOL, MISPLACED, {"type": "new_delta", "y": 1}, {"z": 2}),
        ),
        Joined(
            START | {"content": [TOOL | {"deltas": [MISPLACED, {"type": "new_delta", "y": 1}, {"z": 2}]}]}
        ),
    ),
    "odd events": (
        stream(started(), {"type": "new_event"}, {"type": "content_block_delta", "index": 7, "delta": {}})
        + b'event: message_start\ndata: {"message": 1}\n\n'
        + b"event: content_block_start\ndata: [\n\n"
        + b'event: content_block_delta\ndata: {"index": [], "delta": {}}\n\n'
        + b"event: message_delta\ndata: \xff\n\n"
        + b"event: message_delta\ndata: " + b"[" * 100_000 + b"\n\n",
        Joined(START, odd=7),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_what_is_incomplete_or_odd_gives_what_there_is(name: str) -> None:
    body, expected = PARTS[name]
    assert join(body) == expected


def test_a_line_beyond_the_parsers_bound_ends_the_reading() -> None:
    body = stream(started(), *block(0, TEXT, {"type": "text_delta", "text": "x"})) + b"data: " + b"x" * (2 << 20)
    joined = join(body)
    assert joined.message == START | {"content": [TEXT | {"text": "x"}]}
    assert (joined.complete, joined.odd) == (False, 1)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"event: ping\ndata: {}\n\n", True),
        (b"\xef\xbb\xbfdata: x\n\n", True),
        (b": comment\n\n", True),
        (b'{"data": 1}', False),
        (b"database", False),
        (b"<html>", False),
        (b"", False),
    ],
)
def test_a_stream_is_known_by_its_first_line(body: bytes, expected: bool) -> None:
    assert is_stream(body) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ('{"a": 12', {}),
        ('{"a": 1, "b": 2', {"a": 1}),
        ('{"a": "x', {"a": "x"}),
        ('{"a": "x"', {"a": "x"}),
        ('{"a": "x", "b', {"a": "x"}),
        ('{"a": "x", "b":', {"a": "x"}),
        ('{"a": "x\\', {"a": "x"}),
        ('{"a": "x\\\\', {"a": "x\\"}),
        ('{"a": "x\\u12', {"a": "x"}),
        ('{"a": "x\\ud83d', {"a": "x"}),
        ('{"a": "x\\ud83d\\ude4', {"a": "x"}),
        ('{"a": ["x", {"b": "}', {"a": ["x", {"b": "}"}]}),
        ('{"a": [[1], [2', {"a": [[1], []]}),
        ("[", []),
        ('"ab', "ab"),
        ("", None),
        ("}", None),
        ("nonsense", None),
        ("[" * 10_000, None),
    ],
)
def test_the_beginning_of_json_is_mended(text: str, expected: Any) -> None:
    assert mended(text) == expected


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(value=st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=5), values, max_size=4), data=st.data())
def test_every_beginning_of_json_gives_a_value_of_its_kind(value: Any, data: st.DataObject) -> None:
    text = json.dumps(value, ensure_ascii=data.draw(st.booleans()))
    cut = data.draw(st.integers(1, len(text)))
    assert type(mended(text[:cut])) is type(value)
    assert mended(text) == value
