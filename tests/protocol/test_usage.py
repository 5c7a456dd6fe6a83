"""What a stream says that it cost, through the SSE parser at every cut."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from tests.cuts import every_cut
from tests.protocol.answers import (
    ANSWERED,
    BLOCK_STOP,
    FALLBACK,
    FULL,
    FULL_START,
    HELLO,
    ITERATIONS,
    NOTHING,
    OPUS,
    PING,
    READ_ITERATIONS,
    SONNET,
    STARTED,
    STOP,
    Event,
    block,
    delta,
    end,
    read,
    start,
    stream,
    text,
)
from tproxy.protocol.tokens import count_tokens
from tproxy.protocol.usage import Outcome, Usage, UsageReader

STREAMS: dict[str, tuple[tuple[Event, ...], Outcome]] = {
    "nothing": ((), NOTHING),
    "a plain answer": ((start(), *HELLO, end(output_tokens=8), STOP), ANSWERED),
    "only its start": ((start(), PING), STARTED),
    "cut while it spoke": (
        (start(), *HELLO[:2]),
        replace(STARTED, delivered_tokens=count_tokens("Hello", OPUS), first_content_seen=True),
    ),
    "cut between the last word and the stop": (
        (start(), *HELLO, end(output_tokens=8)),
        replace(ANSWERED, stopped=False),
    ),
    "no usage in the message_delta": (
        (start(), *HELLO, end(), STOP),
        replace(ANSWERED, usage=Usage(input_tokens=25, output_tokens=1), final=False),
    ),
    "a usage without output": (
        (start(), *HELLO, end(input_tokens=26), STOP),
        replace(ANSWERED, usage=Usage(input_tokens=26, output_tokens=1), final=False),
    ),
    "every field, the delta names few": (
        (start(FULL_START), *HELLO, end(output_tokens=65), STOP),
        replace(ANSWERED, usage=FULL),
    ),
    "nulls overwrite nothing": (
        (
            start(FULL_START),
            *HELLO,
            end(
                output_tokens=65,
                input_tokens=None,
                cache_read_input_tokens=None,
                cache_creation_input_tokens=None,
                server_tool_use=None,
                output_tokens_details=None,
                iterations=None,
            ),
            STOP,
        ),
        replace(ANSWERED, usage=FULL),
    ),
    "values overwrite and are never added": (
        (
            start(FULL_START),
            *HELLO,
            end(input_tokens=400, output_tokens=65, cache_read_input_tokens=0, cache_creation_input_tokens=1200),
            STOP,
        ),
        replace(ANSWERED, usage=replace(FULL, input_tokens=400, cache_read_tokens=0)),
    ),
    "several message_deltas, the last counts": (
        (start(), *HELLO, end(None, output_tokens=5), end("max_tokens", output_tokens=8), end(None), STOP),
        replace(ANSWERED, stop_reason="max_tokens"),
    ),
    "content after the word of the upstream": (
        (start(), end("pause_turn", output_tokens=8), *HELLO),
        replace(ANSWERED, stop_reason="pause_turn", final=False, stopped=False),
    ),
    "more of a block after the word of the upstream": (
        (start(), *HELLO[:2], end("pause_turn", output_tokens=8), *HELLO[2:]),
        replace(ANSWERED, stop_reason="pause_turn", final=False, stopped=False),
    ),
    "a word of the upstream after each part": (
        (start(), *HELLO[:2], end(None, output_tokens=2), *HELLO[2:], end(output_tokens=8), STOP),
        ANSWERED,
    ),
    "more cache writes than their split": (
        (start(FULL_START), *HELLO, end(output_tokens=65, cache_creation_input_tokens=1500), STOP),
        replace(ANSWERED, usage=replace(FULL, cache_write_5m_tokens=500)),
    ),
    "fewer cache writes than their split": (
        (start(FULL_START), *HELLO, end(output_tokens=65, cache_creation_input_tokens=900), STOP),
        replace(ANSWERED, usage=replace(FULL, cache_write_5m_tokens=0, cache_write_1h_tokens=900)),
    ),
    "cache writes without a split": (
        (start({"input_tokens": 1, "cache_creation_input_tokens": 40}), *HELLO, end(output_tokens=8), STOP),
        replace(
            ANSWERED,
            usage=Usage(input_tokens=1, output_tokens=8, cache_write_5m_tokens=40, cache_write_1h_tokens=0),
        ),
    ),
    "a split without a total": (
        (start({"cache_creation": {"ephemeral_1h_input_tokens": 9}}), *HELLO, end(output_tokens=8), STOP),
        replace(ANSWERED, usage=Usage(output_tokens=8, cache_write_1h_tokens=9), odd_usage=True),
    ),
    "server tools and thinking": (
        (
            start(),
            *HELLO,
            end(
                output_tokens=8,
                output_tokens_details={"thinking_tokens": 3},
                server_tool_use={"web_search_requests": 2, "web_fetch_requests": 1, "code_execution_requests": 4},
            ),
            STOP,
        ),
        replace(
            ANSWERED,
            usage=Usage(input_tokens=25, output_tokens=8, thinking_tokens=3, web_searches=2, web_fetches=1),
        ),
    ),
    "a refusal before any output": (
        (start(), block(), BLOCK_STOP, end("refusal", output_tokens=3), STOP),
        replace(
            ANSWERED,
            usage=Usage(input_tokens=25, output_tokens=3),
            stop_reason="refusal",
            refused_unbilled=True,
            delivered_tokens=0,
        ),
    ),
    "a refusal in the midst": (
        (start(), *HELLO, end("refusal", output_tokens=8), STOP),
        replace(ANSWERED, stop_reason="refusal"),
    ),
    "a refusal after thinking that is not shown": (
        (
            start(),
            block(type="thinking", thinking="", signature=""),
            delta(type="signature_delta", signature="EqQB"),
            end("refusal", output_tokens=8),
            STOP,
        ),
        replace(ANSWERED, stop_reason="refusal", delivered_tokens=0),
    ),
    "a refusal after a call that has no input yet": (
        (start(), block(type="tool_use", id="toolu_1", name="look", input={}), end("refusal", output_tokens=8), STOP),
        replace(ANSWERED, stop_reason="refusal", delivered_tokens=40),
    ),
    "a refusal after a block that came whole": (
        (start(), block(type="redacted_thinking", data="Eq"), end("refusal", output_tokens=8), STOP),
        replace(ANSWERED, stop_reason="refusal", delivered_tokens=0),
    ),
    "a refusal by the fallback too": (
        (start(), FALLBACK, BLOCK_STOP, end("refusal", output_tokens=8), STOP),
        replace(ANSWERED, stop_reason="refusal", model=SONNET, refused_unbilled=True, delivered_tokens=0),
    ),
    "a fallback in the midst": (
        (start(), FALLBACK, BLOCK_STOP, *HELLO, end(output_tokens=8), STOP),
        replace(ANSWERED, model=SONNET),
    ),
    "two fallbacks": (
        (start(), FALLBACK, block(type="fallback", to={"model": "m-3"}), *HELLO, end(output_tokens=8), STOP),
        replace(ANSWERED, model="m-3", delivered_tokens=count_tokens("Hello there!", "m-3")),
    ),
    "a fallback that only the iterations tell": (
        (start(), *HELLO, end(output_tokens=8, iterations=ITERATIONS), STOP),
        replace(
            ANSWERED,
            usage=Usage(input_tokens=25, output_tokens=8, iterations=READ_ITERATIONS),
            model=SONNET,
        ),
    ),
    "iterations are replaced": (
        (
            start({"input_tokens": 25, "iterations": ITERATIONS[:2]}),
            *HELLO,
            end(output_tokens=8, iterations=ITERATIONS[1:2]),
            STOP,
        ),
        replace(ANSWERED, usage=Usage(input_tokens=25, output_tokens=8, iterations=READ_ITERATIONS[1:2])),
    ),
    "iterations before the last word": (
        (start({"input_tokens": 25, "output_tokens": 1, "iterations": ITERATIONS}),),
        STARTED,
    ),
    "no iterations are none": (
        (start(), *HELLO, end(output_tokens=8, iterations=[]), STOP),
        ANSWERED,
    ),
    "an error midway": (
        (start(), *HELLO[:4], ("error", {"error": {"type": "overloaded_error", "message": "Overloaded"}})),
        replace(
            STARTED,
            error_type="overloaded_error",
            first_content_seen=True,
            delivered_tokens=count_tokens("Hello there!", OPUS),
        ),
    ),
    "an error at once": (
        (("error", {"error": {"details": None, "type": "api_error", "message": "…"}, "request_id": "req_1"}),),
        replace(NOTHING, error_type="api_error"),
    ),
    "tools, thinking and a compaction": (
        (
            start(model="claude-sonnet-4-5"),
            block(type="compaction", content=None, encrypted_content=None),
            delta(type="compaction_delta", content="They spoke of boats.", encrypted_content="EpwB" * 50),
            delta(type="compaction_delta", content=None, encrypted_content="EpwB"),
            block(1, type="thinking", thinking="", signature=""),
            delta(1, type="thinking_delta", thinking="Ask for the weather"),
            delta(1, type="signature_delta", signature="EqQB" * 50),
            block(2, type="tool_use", id="toolu_1", name="get_weather", input={}),
            delta(2, type="input_json_delta", partial_json=""),
            delta(2, type="input_json_delta", partial_json='{"city": "Zür'),
            delta(2, type="input_json_delta", partial_json='ich"}'),
            block(3, type="web_search_tool_result", content=[{"type": "web_search_result", "title": "words " * 500}]),
            block(4, type="text", text="", citations=[]),
            delta(4, type="citations_delta", citation={"cited_text": "words " * 500, "url": "https://example.org"}),
        ),
        replace(
            STARTED,
            model="claude-sonnet-4-5",
            first_content_seen=True,
            delivered_tokens=61,  # of which 38 are the frame of the call
        ),
    ),
    "the older API of completions": (
        (
            ("completion", {"completion": " Hello", "stop_reason": None, "model": "claude-2.1"}),
            PING,
            ("completion", {"completion": "", "stop_reason": "stop_sequence"}),
        ),
        replace(NOTHING, odd=2),
    ),
    "a session's events": ((("session.status_idle", {}), ("agent.message", {"content": [1]})), replace(NOTHING, odd=2)),
    "events from the future": (
        (
            ("message", {"usage": {"input_tokens": 99, "output_tokens": 99}}),
            start(),
            *HELLO,
            ("content_block_future", {"delta": {"text": "?"}}),
            delta(type="future_delta", data=[1]),
            end(output_tokens=8),
            STOP,
            ("message", {"usage": {"output_tokens": 99}}),
        ),
        replace(ANSWERED, odd=3),
    ),
}


@pytest.mark.parametrize(("events", "outcome"), STREAMS.values(), ids=STREAMS.keys())
def test_reads_a_stream(events: tuple[Event, ...], outcome: Outcome) -> None:
    for pieces in every_cut(stream(*events)):
        assert read(*pieces) == outcome


def test_first_content_is_seen_as_it_comes() -> None:
    reader = UsageReader()
    seen = []
    for name, data in (start(), PING, block(), text("Hello")):
        reader.feed_event(name, json.dumps(data).encode())
        seen.append(reader.first_content_seen)
    assert seen == [False, False, True, True]


def test_may_be_asked_midway_and_again() -> None:
    reader = UsageReader()
    events = (start(FULL_START), *HELLO, end(output_tokens=65, iterations=ITERATIONS), STOP)
    for name, data in events:
        reader.feed_event(name, json.dumps(data).encode())
        assert reader.outcome() == reader.outcome()
    assert reader.outcome() == read(stream(*events))


def test_texts_are_bounded() -> None:
    long = "x" * 5_000
    outcome = read(stream(start({"service_tier": long}, id=long, model=long, stop_reason=long)))
    assert outcome.usage == Usage(service_tier="x" * 256)
    assert outcome.message_id == outcome.model == outcome.stop_reason == "x" * 256


def test_the_text_that_is_counted_of_one_delta_is_bounded() -> None:
    for long in (text("word " * 50_000), delta(type="thinking_delta", thinking="w " * 99_000)):
        assert 0 < read(stream(start(), block(), long)).delivered_tokens < 60_000
    assert 0 < read(stream(start(), block(type="text", text="word " * 50_000))).delivered_tokens < 30_000
