from __future__ import annotations

from typing import Any

from tproxy.sandbox.asked import read
from tproxy.sandbox.books import Bill
from tproxy.sandbox.cache import Prompt
from tproxy.sandbox.messages import Answer, answer
from tproxy.sandbox.script import Script

PROMPT = Prompt(10, write_5m=20, write_1h=30, read=40)
SHARED: dict[str, Any] = {
    "model": "claude-opus-5-5",
    "cache_write_5m_tokens": 20,
    "cache_write_1h_tokens": 30,
    "cache_read_tokens": 40,
}


def made(script: str = "tokens=8", *, tier: str = "standard", **members: Any) -> Answer:
    request = {"model": "claude-opus-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}
    return answer(read(request | members), Script().with_(script), PROMPT, "01x", tier=tier)


def test_a_plain_answer() -> None:
    plain = made()
    assert plain.usage_start == {
        "input_tokens": 10,
        "cache_creation_input_tokens": 50,
        "cache_read_input_tokens": 40,
        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
        "output_tokens": 1,
        "service_tier": "standard",
        "inference_geo": "global",
    }
    assert plain.usage_delta == {
        "input_tokens": 10,
        "cache_creation_input_tokens": 50,
        "cache_read_input_tokens": 40,
        "output_tokens": 8,
    }
    message = plain.message()
    assert message["usage"] == plain.usage_start | {"output_tokens": 8}
    assert list(message)[:5] == ["id", "type", "role", "model", "content"]
    assert (message["id"], message["stop_reason"], message["stop_details"]) == ("msg_01x", "end_turn", None)
    assert plain.opening() | {"usage": None} == {
        "id": "msg_01x",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-5-5",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "usage": None,
    }
    assert plain.bills == [Bill(**SHARED, input_tokens=10, output_tokens=8)]


def test_an_alias_is_answered_by_its_id() -> None:
    assert made(model="claude-haiku-4-5").message()["model"] == "claude-haiku-4-5-20251001"
    assert made(model="claude-new-9").message()["model"] == "claude-new-9"


def test_geo_speed_and_tier_are_shown_and_billed() -> None:
    fast = made(inference_geo="us", speed="fast", tier="batch")
    shown = {name: fast.message()["usage"][name] for name in ("inference_geo", "speed", "service_tier")}
    assert shown == {"inference_geo": "us", "speed": "fast", "service_tier": "batch"}
    assert (fast.bills[0].inference_geo, fast.bills[0].speed, fast.bills[0].service_tier) == ("us", "fast", "batch")


def test_thinking_and_searches_are_counted() -> None:
    usage = made("thinking=5;tokens=2;web_search=3").message()["usage"]
    assert usage["output_tokens_details"] == {"thinking_tokens": 5}
    assert usage["server_tool_use"] == {"web_search_requests": 3, "web_fetch_requests": 0}
    assert made("web_search=3").bills[0].web_search_requests == 3


def test_a_refusal_shows_usage_and_is_not_billed() -> None:
    refused = made("refusal=1")
    message = refused.message()
    assert (message["content"], message["stop_reason"], message["stop_details"]["type"]) == ([], "refusal", "refusal")
    assert (message["usage"]["input_tokens"], message["usage"]["output_tokens"]) == (10, 0)
    assert refused.bills == []


def test_a_fallback_bills_the_model_that_served() -> None:
    fallen = made("fallback=claude-haiku-4-5;tokens=8")
    assert fallen.message()["model"] == "claude-haiku-4-5-20251001"
    assert fallen.opening()["model"] == "claude-opus-5-5"
    assert fallen.usage_delta is not None
    declined, served = fallen.usage_delta["iterations"]
    assert (declined["type"], declined["model"], declined["output_tokens"]) == ("message", "claude-opus-5-5", 0)
    assert (served["type"], served["model"], served["output_tokens"]) == (
        "fallback_message",
        "claude-haiku-4-5-20251001",
        8,
    )
    (bill,) = fallen.bills
    assert (bill.model, bill.input_tokens, bill.output_tokens) == ("claude-haiku-4-5-20251001", 10, 8)


def test_compaction_and_advisor_are_billed_beside_the_totals() -> None:
    both = made("compaction=100;advisor=claude-fable-5;tokens=8;web_search=0", inference_geo="us")
    assert both.usage_delta is not None
    compaction, message, advisor = both.usage_delta["iterations"]
    assert both.usage_delta["output_tokens"] == message["output_tokens"] == 8
    assert "model" not in compaction
    assert (compaction["input_tokens"], compaction["output_tokens"]) == (200, 100)
    assert (advisor["type"], advisor["model"]) == ("advisor_message", "claude-fable-5")
    assert [(bill.model, bill.input_tokens, bill.output_tokens, bill.inference_geo) for bill in both.bills] == [
        ("claude-opus-5-5", 10, 8, "us"),
        ("claude-opus-5-5", 200, 100, "us"),
        ("claude-fable-5", 20, 50, "us"),
    ]


def test_one_iteration_says_what_the_totals_say() -> None:
    single = made("iterations=1;tokens=8")
    assert single.usage_delta is not None
    (entry,) = single.usage_delta["iterations"]
    assert entry["cache_creation"] == single.usage_start["cache_creation"]
    assert {name: entry[name] for name in single.usage_delta if name in entry} == {
        name: value for name, value in single.usage_delta.items() if name != "iterations"
    }
    assert len(single.bills) == 1


def test_usage_can_be_left_out() -> None:
    silent = made("nousage=1")
    assert silent.usage_delta is None
    assert "usage" not in silent.message()
    assert silent.bills[0].output_tokens == 40


def test_context_management_is_answered_when_it_is_asked_for() -> None:
    assert made().context_management is None
    assert made(context_management={"edits": []}).message()["context_management"] == {"applied_edits": []}
