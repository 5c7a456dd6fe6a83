from __future__ import annotations

from typing import Any

import pytest

from tproxy.sandbox.asked import Asked, read
from tproxy.sandbox.blocks import Content, compose
from tproxy.sandbox.script import Script
from tproxy.sandbox.text import count

WEATHER = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]},
}
BASH = {"name": "Bash", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}}}
READ = {"name": "Read", "input_schema": {"type": "object", "properties": {"file": {"type": "string"}}}}
SEARCH = {"type": "web_search_20260209", "name": "web_search"}


def asked(text: str = "Hello", **members: Any) -> Asked:
    messages = [{"role": "user", "content": text}]
    return read({"model": "claude-opus-5-5", "max_tokens": 1000, "messages": messages} | members)


def made(script: str = "", **members: Any) -> Content:
    return compose(asked(**members), Script().with_(script), "01x")


def called(**members: Any) -> str | None:
    """The tool that is called."""
    content = made(**members)
    assert (content.stop_reason == "tool_use") == (content.blocks[-1].whole["type"] == "tool_use")
    return content.blocks[-1].whole.get("name")


@pytest.mark.parametrize(
    ("tools", "text", "choice", "name"),
    [
        ([WEATHER], "How is the weather?", None, "get_weather"),
        ([WEATHER], "Use get_weather.", None, "get_weather"),
        ([WEATHER], "Tell me a story.", None, None),
        ([WEATHER], "How is the weather?", {"type": "none"}, None),
        ([WEATHER], "Tell me a story.", {"type": "any"}, "get_weather"),
        ([BASH, WEATHER], "How is the weather?", {"type": "any"}, "get_weather"),
        ([BASH, WEATHER], "Tell me a story.", {"type": "tool", "name": "get_weather"}, "get_weather"),
        ([WEATHER], "Tell me a story.", {"type": "tool", "name": "gone"}, None),
        ([BASH, READ], "Please read the bash manual.", None, None),
        ([BASH, READ], "Use Read, please.", None, "Read"),
        ([BASH, READ], "run: ls -l /tmp", None, "Bash"),
        ([READ], "run: ls -l /tmp", None, None),
        ([SEARCH], "Do a web_search.", None, None),
        ([], "Use get_weather.", None, None),
    ],
)
def test_which_tool_is_called(tools: list[Any], text: str, choice: Any, name: str | None) -> None:
    assert called(text=text, tools=tools, tool_choice=choice) == name


def test_the_input_fits_the_schema_and_its_deltas_join_to_it() -> None:
    content = made(text="How is the weather?", tools=[WEATHER])
    (block,) = content.blocks
    assert block.whole["input"] == {"city": "Oslo"}
    assert block.start["input"] == {}
    assert [kind for kind, _, _ in block.deltas] == ["input_json_delta"] * len(block.deltas)
    assert block.deltas[0] == ("input_json_delta", "", 0)
    assert "".join(text for _, text, _ in block.deltas) == '{"city":"Oslo"}'
    assert block.tokens == count('{"city":"Oslo"}')


def test_a_command_is_run_as_it_was_asked() -> None:
    content = made(text="Now,\nrun: ls -l /tmp \nand say what is there", tools=[BASH])
    assert content.blocks[0].whole["input"]["command"] == "ls -l /tmp"


def test_after_a_tool_result_there_is_text_that_quotes_it() -> None:
    messages = [
        {"role": "user", "content": "run: ls"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "a.txt\nb.txt\n"}]},
    ]
    content = made(messages=messages, tools=[BASH])
    assert content.stop_reason == "end_turn"
    assert content.blocks[0].whole["text"].startswith("The tool answered: a.txt b.txt ")


def test_a_script_names_a_tool_that_need_not_be_there() -> None:
    assert made("tool=get_weather", tools=[WEATHER]).blocks[0].whole["input"] == {"city": "Oslo"}
    assert made("tool=gone", tools=[WEATHER]).blocks[0].whole["input"] == {}


@pytest.mark.parametrize("max_tokens", range(1, 12))
@pytest.mark.parametrize(
    ("script", "members"),
    [
        ("tokens=6", {}),
        ("tokens=6;thinking=4", {}),
        ("web_search=1;tokens=2", {}),
        ("", {"text": "How is the weather?", "tools": [WEATHER]}),
    ],
    ids=["text", "thinking", "search", "tool"],
)
def test_max_tokens_is_kept(max_tokens: int, script: str, members: dict[str, Any]) -> None:
    whole = made(script, **members)
    cut = made(script, **members, max_tokens=max_tokens)
    tokens = sum(block.tokens for block in whole.blocks)
    assert sum(block.tokens for block in cut.blocks) == min(tokens, max_tokens)
    assert (cut.stop_reason == "max_tokens") == (tokens > max_tokens)
    for block in cut.blocks:
        assert block.whole["type"] != "tool_use" or block.whole["input"] in ({}, {"city": "Oslo"})


def test_max_tokens_of_nothing_answers_nothing() -> None:
    assert made(max_tokens=0) == Content([], "max_tokens")


def test_a_stop_sequence_ends_the_text_before_it() -> None:
    whole = made("tokens=40;seed=5").blocks[0].whole["text"]
    assert "side" in whole
    content = made("tokens=40;seed=5", stop_sequences=["bay", "side", "", "gone"])
    assert (content.stop_reason, content.stop_sequence) == ("stop_sequence", "side")
    assert content.blocks[0].whole["text"] == whole.partition("side")[0]
    assert content.blocks[0].tokens == count(whole.partition("side")[0])


@pytest.mark.parametrize(
    ("thinking", "tokens"),
    [
        (None, 0),
        ({"type": "disabled"}, 0),
        ({"type": "adaptive"}, 24),
        ({"type": "enabled", "budget_tokens": 1024}, 24),
    ],
)
def test_thinking_comes_first_when_it_is_enabled(thinking: Any, tokens: int) -> None:
    blocks = made(thinking=thinking).blocks
    assert [block.whole["type"] for block in blocks] == (["thinking", "text"] if tokens else ["text"])
    if tokens:
        assert blocks[0].tokens == tokens
        assert blocks[0].deltas[-1] == ("signature_delta", blocks[0].whole["signature"], 0)
        assert (
            "".join(text for kind, text, _ in blocks[0].deltas if kind == "thinking_delta")
            == (blocks[0].whole["thinking"])
        )


def test_omitted_thinking_is_a_signature_alone_and_costs_the_same() -> None:
    block = made(thinking={"type": "adaptive", "display": "omitted"}).blocks[0]
    assert block.whole["thinking"] == ""
    assert [(kind, size) for kind, _, size in block.deltas] == [("signature_delta", 24)]


def test_searches_and_a_fallback_stand_before_the_text() -> None:
    blocks = made("web_search=2;fallback=claude-opus-4-5;thinking=3").blocks
    assert [block.whole["type"] for block in blocks] == [
        "thinking",
        *["server_tool_use", "web_search_tool_result"] * 2,
        "fallback",
        "text",
    ]
    assert blocks[2].whole["tool_use_id"] == blocks[1].whole["id"] != blocks[3].whole["id"]
    assert blocks[5].whole["to"] == {"model": "claude-opus-4-5-20251101"}
