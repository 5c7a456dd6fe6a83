"""What a body demands, and what cannot be bounded."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tproxy.protocol.contents import Advisor
from tproxy.protocol.demand import Demand, Fallback, read_demand

HELLO = {"role": "user", "content": "Hello"}
PLAIN: dict[str, Any] = {"model": "claude-opus-5-5", "max_tokens": 100, "messages": [HELLO]}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
ADVISOR = {"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-5-5", "max_uses": 2}


def body(**members: Any) -> bytes:
    return json.dumps(PLAIN | members).encode()


def seen(whole: bytes) -> int:
    """The bytes of what the model may see of it, in its shortest spelling."""
    members = {name: value for name, value in json.loads(whole).items() if name not in ("model", "max_tokens")}
    return len(json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode())


def demand(**members: Any) -> Demand:
    found = read_demand(body(**members))
    assert found.unbounded is None, found.unbounded
    return found


def block(**members: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [members]}]}


def image(**source: Any) -> dict[str, Any]:
    return {"type": "image", "source": source}


def test_a_plain_request() -> None:
    assert demand() == Demand(model="claude-opus-5-5", max_tokens=100, text_bytes=seen(body()))


def test_what_the_model_does_not_see_and_white_space_are_no_text() -> None:
    more = {"metadata": {"user_id": "u" * 200}, "stream": True, "temperature": 0.5, "stop_sequences": ["x" * 50]}
    whole = json.dumps(PLAIN | more, indent=8).encode()
    assert read_demand(whole).text_bytes == seen(body())


def test_half_a_character_is_counted_as_it_is_spelled() -> None:
    whole = body().replace(b"Hello", b"\\ud83d")
    assert read_demand(whole).text_bytes >= seen(body()) + 1


def test_a_request_of_claude_codes_kind() -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    found = demand(
        model="claude-opus-4-8",
        max_tokens=64_000,
        stream=True,
        system=[{"type": "text", "text": "x" * 10_000, "cache_control": mark}],
        tools=[{"name": f"Tool{n}", "description": "y" * 3_000, "input_schema": {"type": "object"}} for n in range(25)],
        thinking={"type": "adaptive"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "high"},
        metadata={"user_id": "{}"},
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "…", "signature": "EqQB"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "Tool1", "input": {"a": [1]}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "done"}]},
        ],
    )
    assert (found.tools, found.cached, found.cached_1h) == (True, True, True)
    assert (found.whole_window, found.server_tools, found.images) == (None, False, 0)


PNG = base64.b64encode(b"\x89PNG" + bytes(30_000)).decode()
IMAGES = {
    "in a message": block(**image(type="base64", media_type="image/png", data=PNG)),
    "in a tool's result": block(
        type="tool_result", tool_use_id="1", content=[image(type="base64", media_type="image/png", data=PNG)]
    ),
    "in a document made of blocks": block(
        type="document",
        source={"type": "content", "content": [image(type="base64", media_type="image/png", data=PNG)]},
    ),
}


@pytest.mark.parametrize("members", IMAGES.values(), ids=IMAGES)
def test_an_image_counts_as_one_and_its_data_not_as_text(members: dict[str, Any]) -> None:
    found = demand(**members)
    assert (found.images, found.text_bytes) == (1, seen(body(**members)) - len(PNG))


def test_what_looks_like_an_image_in_a_tools_input_is_text() -> None:
    members = block(type="tool_use", id="1", name="x", input=image(type="base64", data=PNG))
    found = demand(**members)
    assert (found.images, found.text_bytes) == (0, seen(body(**members)))


def test_data_is_told_from_its_neighbours() -> None:
    """Several images, data that is escaped as PHP does it, and a text that only looks like data."""
    escaped = PNG.replace("A", "/")
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A" * 20_000}}
    blocks = [
        image(type="base64", data=PNG),
        text,
        image(type="base64", data=escaped),
        image(type="base64", data="AA=="),
    ]
    whole = body(messages=[{"role": "user", "content": blocks}]).replace(
        escaped.encode(), escaped.replace("/", "\\/").encode()
    )
    found = read_demand(whole)
    assert (found.images, found.text_bytes) == (3, seen(whole) - 2 * len(PNG) - 4)


@pytest.mark.parametrize("name", [b"#0", b"\\u00230", b"#\\u0030", b"\\u0023\\u0030"])
def test_no_image_is_taken_for_a_text(name: bytes) -> None:
    """Not even one whose data is what long data is called while it is read."""
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A" * 20_000}}
    blocks = [text, image(type="base64", data="NAME")]
    whole = body(messages=[{"role": "user", "content": blocks}]).replace(b"NAME", name)
    assert read_demand(whole).text_bytes == seen(whole) - 2


@pytest.mark.parametrize("how", ["url", "file"])
def test_an_image_elsewhere_counts_as_one(how: str) -> None:
    assert demand(**block(**image(type=how, url="https://example.com/a.png"))).images == 1


WINDOW = {
    "a PDF": block(type="document", source={"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}),
    "a document by URL": block(type="document", source={"type": "url", "url": "https://example.com/a.pdf"}),
    "a document by id": block(type="document", source={"type": "file", "file_id": "file_1"}),
    "citations": block(
        type="document",
        source={"type": "text", "media_type": "text/plain", "data": "One. Two."},
        citations={"enabled": True},
    ),
    "results of a search": block(type="web_search_tool_result", tool_use_id="1", content=[]),
    "a fetched PDF": block(
        type="web_fetch_tool_result",
        tool_use_id="1",
        content={
            "type": "web_fetch_result",
            "content": {"type": "document", "source": {"type": "base64", "data": "JVBERi0="}},
        },
    ),
    "a tool that is named": block(
        type="tool_result", tool_use_id="1", content=[{"type": "tool_reference", "tool_name": "x"}]
    ),
    "a tool of Anthropic's": {"tools": [{"type": "bash_20250124", "name": "bash"}]},
    "a thread": {"thread": {"type": "continue", "previous_message_id": "msg_1"}},
}


@pytest.mark.parametrize("members", WINDOW.values(), ids=WINDOW)
def test_these_may_fill_the_window(members: dict[str, Any]) -> None:
    assert demand(**members).whole_window is not None


def test_only_a_thread_cannot_be_counted() -> None:
    assert [name for name, members in WINDOW.items() if not demand(**members).countable] == ["a thread"]
    assert demand(thread={"type": "create"}).whole_window is None


MARK = {"type": "ephemeral"}
CACHE = {
    "nowhere": ({}, (False, False)),
    "at the top": ({"cache_control": MARK}, (True, False)),
    "at the top, five minutes": ({"cache_control": MARK | {"ttl": "5m"}}, (True, False)),
    "at the top, an hour": ({"cache_control": MARK | {"ttl": "1h"}}, (True, True)),
    "at the top, a time unknown to us": ({"cache_control": MARK | {"ttl": "24h"}}, (True, True)),
    "on a block": (block(type="text", text="x", cache_control=MARK), (True, False)),
    "both": (
        block(type="text", text="x", cache_control=MARK | {"ttl": "5m"}) | {"cache_control": MARK | {"ttl": "1h"}},
        (True, True),
    ),
    "spoken of in a text": (block(type="text", text='{"cache_control": {"ttl": "1h"}}'), (False, False)),
    "a thread that goes on": ({"thread": {"type": "continue", "previous_message_id": "m"}}, (True, True)),
}


@pytest.mark.parametrize(("members", "expected"), CACHE.values(), ids=CACHE)
def test_use_of_the_prompt_cache(members: dict[str, Any], expected: tuple[bool, bool]) -> None:
    found = demand(**members)
    assert (found.cached, found.cached_1h) == expected


def test_a_mark_that_is_spelled_with_escapes_counts_as_one_of_an_hour() -> None:
    hidden = body(cache_control=MARK).replace(b"cache_control", b"cache\\u005fcontrol")
    found = read_demand(hidden)
    assert (found.cached, found.cached_1h) == (True, True)


def test_escapes_that_encoders_write_are_no_disguise() -> None:
    assert not read_demand(body(system="\x1b[1m <b> & ünïcödé '")).cached


def test_server_tools() -> None:
    found = demand(tools=[SEARCH, SEARCH | {"max_uses": 2}, {"type": "web_fetch_20250910", "name": "web_fetch"}])
    assert (found.server_tools, found.searches) == (True, 7)
    newer = SEARCH | {"type": "web_search_20260318", "allowed_callers": ["direct"]}
    assert demand(tools=[newer]).searches == 5
    assert demand(tools=[{"type": "tool_search_tool_regex_20251119", "name": "t"}]).server_tools
    assert demand(tools=[ADVISOR | {"max_tokens": 2_048}]).advisors == (Advisor("claude-opus-5-5", 2, 2_048),)


def test_a_tool_that_is_added_later() -> None:
    found = demand(**block(type="tool_addition", tool={"type": "tool_definition", "definition": SEARCH}))
    assert found.searches == 5


def test_fallbacks() -> None:
    entries = [
        {"model": "claude-opus-5"},
        {"model": "claude-sonnet-5", "max_tokens": 7, "speed": "fast", "thinking": {"budget_tokens": 9}},
    ]
    assert demand(fallbacks=entries).fallbacks == (
        Fallback("claude-opus-5", None, 0, False),
        Fallback("claude-sonnet-5", 7, 9, True),
    )


def test_what_else_is_asked_for() -> None:
    found = read_demand(
        body(speed="fast", inference_geo="us", thinking={"type": "enabled", "budget_tokens": 5_000}),
        "interleaved-thinking-2025-05-14,context-1m-2025-08-07",
    )
    assert (found.fast, found.geo, found.thinking_tokens, found.long_context) == (True, "us", 5_000, True)


def nested(depth: int) -> bytes:
    return body(metadata={"deep": 0}).replace(b'"deep": 0', b'"deep": ' + b"[" * depth + b"]" * depth)


DOUBTFUL = {
    "no JSON": b"{",
    "empty": b"",
    "no object": b"[]",
    "NaN": body(top_p=1).replace(b'"top_p": 1', b'"top_p": NaN'),
    "not UTF-8": body(system="x").replace(b'"x"', b'"\xff"'),
    "too deep": nested(100_000),
    "a member twice": body().replace(b"{", b'{"model": "claude-haiku-5-5", ', 1),
    "a member twice, deep inside": body(tools=[SEARCH]).replace(b'"max_uses": 5', b'"max_uses": 5, "max_uses": 1'),
    "a member twice in two spellings": body().replace(b"{", b'{"max\\u005ftokens": 1, ', 1),
    "no model": b'{"max_tokens": 1, "messages": []}',
    "model of a wrong type": body(model=["claude-opus-5-5"]),
    "unknown member": body(best_of=3),
    "messages of a wrong type": body(messages="Hello"),
    "message of a wrong type": body(messages=["Hello"]),
    "content of a wrong type": body(messages=[{"role": "user", "content": [7]}]),
    "block of no kind": body(**block(text="x")),
    "block of a kind of a wrong type": body(**block(type=["text"])),
    "unknown block": body(**block(type="video")),
    "unknown source": body(**block(type="image", source={"type": "s3"})),
    "no source": body(**block(type="document")),
    "max_tokens as text": body(max_tokens="100"),
    "max_tokens below zero": body(max_tokens=-1),
    "max_tokens with a point": body(max_tokens=100.0),
    "max_tokens true": body(max_tokens=True),
    "max_tokens without end": body(max_tokens=10**400),
    "a file for a container": body(**block(type="container_upload", file_id="f")),
    "a container": body(container="container_1"),
    "code execution": body(tools=[{"type": "code_execution_20250825", "name": "code_execution"}]),
    "MCP servers": body(mcp_servers=[{"type": "url", "url": "https://example.com", "name": "x"}]),
    "an MCP toolset": body(tools=[{"type": "mcp_toolset", "mcp_server_name": "x"}]),
    "searches without max_uses": body(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
    "searches from code": body(tools=[SEARCH | {"type": "web_search_20260209"}]),
    "searches also from code": body(
        tools=[SEARCH | {"type": "web_search_20260318", "allowed_callers": ["direct", "code_execution_20260120"]}]
    ),
    "an advisor without max_uses": body(tools=[{**ADVISOR, "max_uses": None}]),
    "an advisor without a model": body(tools=[{**ADVISOR, "model": None}]),
    "unknown tool": body(tools=[{"type": "video_20270101", "name": "video"}]),
    "tool of a wrong type": body(tools=["x"]),
    "tool of a kind of a wrong type": body(tools=[{"type": {}}]),
    "code execution that is added later": body(
        **block(
            type="tool_addition", tool={"type": "tool_definition", "definition": {"type": "code_execution_20250825"}}
        )
    ),
    "compaction at a threshold": body(context_management={"edits": [{"type": "compact_20260112"}]}),
    "unknown edit": body(context_management={"edits": [{"type": "expand_20270101"}]}),
    "edits of a wrong type": body(context_management="compact"),
    "compaction on demand": body(compaction={"type": "summarize"}),
    "many fallbacks": body(fallbacks=[{"model": "claude-opus-5"}] * 17),
    "many advisors": body(tools=[ADVISOR] * 17),
    "any fallback": body(fallbacks="default"),
    "fallback without a model": body(fallbacks=[{"max_tokens": 1}]),
    "fallback with an unknown member": body(fallbacks=[{"model": "claude-opus-5", "best_of": 3}]),
    "unknown speed": body(speed="faster"),
    "region of a wrong type": body(inference_geo=["us"]),
}


@pytest.mark.parametrize("doubtful", DOUBTFUL.values(), ids=DOUBTFUL)
def test_no_bound(doubtful: bytes) -> None:
    found = read_demand(doubtful)
    assert found == Demand(unbounded=found.unbounded)
    assert found.unbounded


OBJECT = b'{"a":{"b":1}}'
EXCESS = {
    "values": (b"[" + b",".join([OBJECT] * 50_000) + b"]", "values"),
    "values beside quotes in a text": (b'["\\"\\\\\\"",' + b",".join([OBJECT] * 50_000) + b"]", "values"),
    "lists in lists": (b"[" * 100_001 + b"]" * 100_001, "values"),
    "one name again and again": (b"{" + b",".join([b'"a":1'] * 100_001) + b"}", "values"),
    "short texts": (b"[" + b",".join([b'""'] * 100_001) + b"]", "values"),
    "escapes": (b'"' + b"\\n" * 3_000_001 + b'"', "escapes"),
    "text": (b'"' + b"x" * 16 * 1024 * 1024 + b'"', "text"),
}


@pytest.mark.parametrize(("value", "what"), EXCESS.values(), ids=EXCESS)
def test_what_would_take_long_is_not_read(value: bytes, what: str) -> None:
    whole = body(metadata=0).replace(b'"metadata": 0', b'"metadata": ' + value)
    assert (read_demand(whole).unbounded or "").startswith(f"it holds more {what} than ")


def test_a_long_text_may_hold_what_looks_like_values() -> None:
    whole = body(system='\\"{"a": [1,2,3,"x\\\\"]},' * 60_000)
    assert read_demand(whole).text_bytes == seen(whole)


@pytest.mark.parametrize("digits", ["7" * 5_000, "-0." + "1" * 5_000, "1e999"])
def test_a_long_number_is_text_as_it_is_spelled(digits: str) -> None:
    whole = body(**block(type="tool_use", id="1", name="x", input={"n": 0})).replace(
        b'"n": 0', b'"n": %b' % digits.encode()
    )
    assert read_demand(whole).text_bytes >= seen(whole.replace(digits.encode(), b"0")) + len(digits) - 1


def test_thousands_of_images() -> None:
    """More than are looked for in the raw bytes."""
    data = "A" * 1_024
    whole = body(messages=[{"role": "user", "content": [image(type="base64", data=data)] * 4_100}])
    found = read_demand(whole)
    assert (found.images, found.text_bytes) == (4_100, seen(whole) - 4_100 * len(data))


def test_reasons_are_for_people_and_hold_little_of_the_body() -> None:
    assert read_demand(body(**{"x" * 1_000: 1})).unbounded == f"the member {'x' * 40!r} is not known"
    assert read_demand(body(fallbacks="default")).unbounded == ("it leaves to the upstream which model to fall back to")


names = st.sampled_from(
    [*("type", "content", "source", "tools", "tool", "definition", "edits", "thread", "max_uses"), *PLAIN]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        [*("text", "image", "document", "tool_result", "base64", "content", "tool_addition", "advisor_20260301")]
    )
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*PLAIN, "tools", "system", "fallbacks", "thinking", "thread"]), values))
def test_it_never_raises(members: dict[str, Any]) -> None:
    assert isinstance(read_demand(body(**members)), Demand)


@settings(deadline=None)
@given(st.binary(max_size=50))
def test_nor_over_any_bytes(raw: bytes) -> None:
    assert read_demand(raw).unbounded is not None
