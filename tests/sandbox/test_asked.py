from __future__ import annotations

from typing import Any

import pytest

from tproxy.sandbox.asked import read, read_json
from tproxy.sandbox.errors import ApiError

GOOD: dict[str, Any] = {
    "model": "claude-opus-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hello"}],
}


def message(**members: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello"} | members]}


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"litellm_metadata": {}}, 400, "litellm_metadata: Extra inputs are not permitted"),
        ({"unknown": None}, 400, "unknown: Extra inputs are not permitted"),
        ({"model": "gpt-5"}, 404, "model: gpt-5"),
        ({"model": None}, 400, "model: Input should be a valid string"),
        ({"max_tokens": "100"}, 400, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": True}, 400, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": -1}, 400, "max_tokens: Input should be greater than or equal to 0"),
        ({"messages": "Hello"}, 400, "messages: Input should be a valid list"),
        ({"messages": []}, 400, "messages: at least one message is required"),
        ({"messages": ["Hello"]}, 400, "messages.0: Input should be a valid object"),
        ({"messages": [{"content": "Hello"}]}, 400, "messages.0.role: Field required"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content: Field required"),
        (message(role="robot"), 400, "messages.0.role: Input should be 'user' or 'assistant'"),
        (message(content=5), 400, "messages.0.content: Input should be a valid string or list"),
        (message(content=["x"]), 400, "messages.0.content.0: Input should be a valid object"),
        (message(content=[{}]), 400, "messages.0.content.0.type: Field required"),
        (message(content=[{"type": "text"}]), 400, "messages.0.content.0.text: Field required"),
        ({"system": 1}, 400, "system: Input should be a valid string or list"),
        ({"stream": "yes"}, 400, "stream: Input should be a valid boolean"),
        ({"temperature": "hot"}, 400, "temperature: Input should be a valid integer or number"),
        ({"speed": "ludicrous"}, 400, "speed: Input should be 'standard' or 'fast'"),
        ({"stop_sequences": [1]}, 400, "stop_sequences.0: Input should be a valid string"),
        ({"tools": [1]}, 400, "tools.0: Input should be a valid object"),
        ({"tools": [{}]}, 400, "tools.0.name: Field required"),
        ({"thinking": "much"}, 400, "thinking: Input should be a valid object"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], status: int, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(GOOD | change)
    assert (caught.value.status, caught.value.message) == (status, message)


@pytest.mark.parametrize("missing", ["model", "max_tokens", "messages"])
def test_what_is_missing_is_named(missing: str) -> None:
    with pytest.raises(ApiError) as caught:
        read({name: value for name, value in GOOD.items() if name != missing})
    assert caught.value.message == f"{missing}: Field required"


def test_counting_takes_no_max_tokens() -> None:
    assert read({name: value for name, value in GOOD.items() if name != "max_tokens"}, counting=True).max_tokens == 0
    with pytest.raises(ApiError, match="max_tokens: Extra inputs"):
        read(GOOD, counting=True)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "should be a JSON object"),
    ],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(ApiError, match=message):
        read_json(body)


def test_a_string_is_short_for_a_text_block() -> None:
    asked = read(GOOD | {"system": "Be brief."})
    assert asked.system == [{"type": "text", "text": "Be brief."}]
    assert asked.messages == [("user", [{"type": "text", "text": "Hello"}])]
    assert asked.last_text == "Hello"
    assert asked.tool_result is None


def test_the_last_user_message_is_what_counts() -> None:
    asked = read(
        GOOD
        | {
            "messages": [
                {"role": "user", "content": "first"},
                {"role": "assistant", "content": "answer"},
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "42"}, {}]},
                        {"type": "text", "text": "second"},
                        {"type": "text", "text": "third"},
                    ],
                },
                {"role": "assistant", "content": "prefill"},
            ]
        }
    )
    assert asked.last_text == "third"
    assert asked.tool_result == "42 "


def test_members_that_are_null_are_not_there() -> None:
    asked = read(GOOD | dict.fromkeys(("system", "tools", "thinking", "speed", "inference_geo", "stop_sequences")))
    assert (asked.system, asked.tools, asked.thinking, asked.speed) == ([], [], None, None)
    assert asked.inference_geo == "global"
