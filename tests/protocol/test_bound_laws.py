"""Whatever an answer does within what was asked, it costs no more than the bound, to the nano-dollar."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tproxy.protocol.bound import Bound, at_least, at_most, read_demand
from tproxy.protocol.pricing import Bill, Cost, IterationTokens, PriceBook, Tokens, built_in
from tproxy.sandbox.asked import read
from tproxy.sandbox.cache import PromptCache

BOOK = built_in()
NOW = 1_795_435_200_000_000  # 2026-11-23T12:00Z
MODELS = sorted(name for name, model in BOOK.table.models.items() if model.price[-1].cache_read)
MARKS = {"none": None, "5m": {"type": "ephemeral"}, "1h": {"type": "ephemeral", "ttl": "1h"}}
WRITES = {"none": 0, "5m": 1, "1h": 2}
IMAGE_TOKENS = 92 * 92  # 2,576 pixels a side, in patches of 28


def most(body: dict[str, Any], counted: int | None = None, book: PriceBook = BOOK) -> int:
    bound = at_most(read_demand(json.dumps(body).encode()), book, NOW, counted)
    assert isinstance(bound, Bound), bound
    return bound.nano


def cost(bill: Bill, book: PriceBook = BOOK) -> int:
    priced = book.price(bill)
    assert isinstance(priced, Cost), priced
    return priced.total_nano


@dataclass(frozen=True)
class Answered:
    """A request, and a bill of an answer that keeps within it."""

    body: dict[str, Any]
    bill: Bill
    prompt: int


@st.composite
def answered(draw: st.DrawFn) -> Answered:
    """Texts and images, any use of the cache, fast mode and region as asked; any split of the prompt's tokens."""
    model = draw(st.sampled_from(MODELS))
    known = BOOK.table.models[model]
    content: list[dict[str, Any]] = [{"type": "text", "text": draw(st.text(max_size=20)) * draw(st.integers(1, 9_000))}]
    images = draw(st.integers(0, 2))
    content += [{"type": "image", "source": {"type": "base64", "data": "A" * 4_000}}] * images
    kind = draw(st.sampled_from(list(MARKS)))
    if MARKS[kind]:
        content[-1] = content[-1] | {"cache_control": MARKS[kind]}
    max_tokens = draw(st.integers(0, 128_000))
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": content}],
    }
    geo = draw(st.sampled_from([None, "us", "global", "not_available"]))
    if geo:
        body["inference_geo"] = geo
    if draw(st.booleans()) and known.fast and not model.startswith("claude-opus-4-7"):
        body["speed"] = "fast"

    assert known.context is not None
    size = seen(body) - images * 4_000
    prompt = draw(up_to(min(size + images * IMAGE_TOKENS, known.context)))
    tokens = split(draw, prompt, WRITES[kind], draw(up_to(max_tokens)))
    bill = Bill(
        model,
        NOW,
        tokens,
        speed=draw(st.sampled_from([None, "standard", body.get("speed")])),
        geo=geo or draw(st.sampled_from(["us", "global", "not_available", ""])),
    )
    return Answered(body, bill, prompt)


def seen(body: dict[str, Any]) -> int:
    """The bytes of what the model may see of a body, in its shortest spelling."""
    unseen = {"model", "max_tokens", "inference_geo", "speed"}
    members = {name: value for name, value in body.items() if name not in unseen}
    return len(json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode())


def up_to(limit: int) -> st.SearchStrategy[int]:
    """Any count within a limit, and often the limit itself."""
    return st.integers(0, limit) | st.just(limit)


def split(draw: Callable[..., Any], prompt: int, writes: int, output: int) -> Tokens:
    """The prompt's tokens over the classes that can be reached. `writes`: none, for 5 minutes, or for an hour too."""
    reached = ["input", *(["cache_read", "cache_write_5m", "cache_write_1h"][: 1 + writes] if writes else [])]
    counts = dict.fromkeys(reached, 0)
    if only := draw(st.none() | st.sampled_from(reached)):
        return Tokens(**counts | {only: prompt}, output=output)
    left = prompt
    for kind in reached[1:]:
        counts[kind] = draw(up_to(left))
        left -= counts[kind]
    return Tokens(**counts | {"input": left}, output=output)


@settings(deadline=None)
@given(answered())
def test_no_answer_costs_more_than_the_bound(case: Answered) -> None:
    assert cost(case.bill) <= most(case.body)


@settings(deadline=None)
@given(answered(), st.integers(0, 480), st.integers(0, 2))
def test_nor_more_than_the_bound_after_a_count(case: Answered, off: int, percent: int) -> None:
    """The count may be too low by 480 tokens and two in a hundred."""
    counted = max(case.prompt * 100 // (100 + percent) - off, 0)
    assert cost(case.bill) <= most(case.body, counted) <= most(case.body)


@settings(deadline=None)
@given(answered(), st.integers(0, 30_000))
def test_more_text_or_more_output_never_lowers_the_bound(case: Answered, more: int) -> None:
    text = case.body["messages"] + [{"role": "user", "content": "x" * more}]
    assert most(case.body | {"messages": text}) >= most(case.body)
    assert most(case.body | {"max_tokens": case.body["max_tokens"] + more}) >= most(case.body)


@settings(deadline=None)
@given(answered(), st.integers(0, 1_000_000))
def test_no_count_lowers_the_bound_below_the_least(case: Answered, counted: int) -> None:
    demand = read_demand(json.dumps(case.body).encode())
    if counted >= demand.text_bytes // 8:
        assert at_least(demand, BOOK, NOW) <= most(case.body, counted)


@settings(deadline=None)
@given(answered(), st.lists(st.sampled_from(MODELS), min_size=1, max_size=3), st.data())
def test_no_chain_of_fallbacks_costs_more_than_the_bound(
    case: Answered, models: list[str], data: st.DataObject
) -> None:
    """Each attempt is billed at its own model, whether it declined midway or served."""
    fallbacks: list[dict[str, Any]] = [
        {"model": model, "max_tokens": data.draw(st.none() | st.integers(0, 9_000))} for model in models
    ]
    body = {name: value for name, value in case.body.items() if name != "speed"} | {"fallbacks": fallbacks}
    iterations = [IterationTokens("message", None, case.bill.tokens)]
    for entry in fallbacks:
        limit = body["max_tokens"] if entry["max_tokens"] is None else entry["max_tokens"]
        context = BOOK.table.models[entry["model"]].context
        assert context is not None
        prompt = data.draw(up_to(min(case.prompt, context)))
        tokens = split(data.draw, prompt, 1 if case.bill.tokens.cache_write_5m else 0, data.draw(up_to(limit)))
        iterations.append(IterationTokens("fallback_message", entry["model"], tokens))
    bill = Bill(models[-1], NOW, Tokens(), geo=case.bill.geo, iterations=tuple(iterations), asked_model=case.bill.model)
    assert cost(bill) <= most(body)


runs = st.lists(st.tuples(up_to(1_000_000), up_to(2_000)), max_size=10) | st.just([(1_000_000, 2_000)] * 10)


@settings(deadline=None)
@given(runs, st.lists(up_to(2_000), max_size=2), up_to(4), st.data())
def test_no_use_of_server_tools_costs_more_than_the_bound(
    each: list[tuple[int, int]], advice: list[int], searches: int, data: st.DataObject
) -> None:
    body = {
        "model": "claude-opus-5-5",
        "max_tokens": 2_000,
        "messages": [{"role": "user", "content": "Hello"}],
        "tools": [
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 4},
            {
                "type": "advisor_20260301",
                "name": "advisor",
                "model": "claude-opus-5",
                "max_uses": 2,
                "max_tokens": 2_000,
            },
        ],
    }
    iterations = [
        *(IterationTokens("message", None, split(data.draw, prompt, 1, output)) for prompt, output in each),
        *(
            IterationTokens("advisor_message", "claude-opus-5", split(data.draw, 1_000_000, 2, output))
            for output in advice
        ),
    ]
    bill = Bill("claude-opus-5-5", NOW, Tokens(), web_searches=searches, geo="us", iterations=tuple(iterations))
    assert cost(bill) <= most(body)


TIERS = """
[[model]]
id = "tiered"
price = [
  {{ input = "{}", cache_write_5m = "{}", cache_read = "{}", output = "{}" }},
  {{ over = {}, input = "{}", cache_write_5m = "{}", cache_read = "{}", output = "{}" }},
  {{ over = {}, input = "{}", cache_write_5m = "{}", cache_read = "{}", output = "{}" }},
]
"""
amounts = st.tuples(*[st.integers(0, 99).map(lambda cents: f"{cents / 10}")] * 4)


@settings(deadline=None)
@given(amounts, amounts, amounts, st.integers(0, 3_000), st.integers(3_001, 6_000), st.data())
def test_whatever_the_prices_are(
    low: tuple[str, ...], middle: tuple[str, ...], high: tuple[str, ...], one: int, two: int, data: st.DataObject
) -> None:
    """Tiers may fall, and a read may cost more than a write."""
    toml = TIERS.format(*low, one, *middle, two, *high)
    book = BOOK.with_overrides(toml.encode(), "own")
    body = {
        "model": "tiered",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "x" * data.draw(st.integers(0, 9_000))}],
        "cache_control": {"type": "ephemeral"},
    }
    prompt = min(data.draw(up_to(9_000) | st.sampled_from([one, one + 1])), seen(body))
    tokens = split(data.draw, prompt, 1, data.draw(up_to(100)))
    assert cost(Bill("tiered", NOW, tokens), book) <= most(body, book=book)


def test_what_is_rounded_up_in_each_part_is_covered() -> None:
    """At half a nano-dollar a token, three tokens are rounded up from 1.5 to 2."""
    price = '{ input = "0.0005", cache_write_5m = "0.0005", cache_read = "0.0005", output = "0.0005" }'
    book = BOOK.with_overrides(f'[[model]]\nid = "cheap"\nprice = [{price}]'.encode(), "own")
    body = {"model": "cheap", "max_tokens": 3, "messages": [], "cache_control": {"type": "ephemeral"}, "system": ""}
    body["system"] = "x" * (-(seen(body) - 9) % 4)
    bill = Bill("cheap", NOW, Tokens(3, 3, 0, seen(body) - 6, 3))
    assert cost(bill, book) == (seen(body) + 3 + 4) // 2 <= most(body, book=book)


def block(text: str, kind: str = "none") -> dict[str, Any]:
    mark = MARKS[kind]
    return {"type": "text", "text": text} | ({"cache_control": mark} if mark else {})


SCHEMA = {"type": "object", "properties": {"path": {"type": "string", "description": "Where"}}}
BODIES: dict[str, dict[str, Any]] = {
    "the shortest": {"messages": [{"role": "user", "content": "x"}]},
    "a token for each byte": {"messages": [{"role": "user", "content": "a1a1a1" * 2_000}]},
    "other scripts": {"messages": [{"role": "user", "content": "日本語 кириллица 🚢 é" * 500}]},
    "many short messages": {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 200
    },
    "many short blocks": {"messages": [{"role": "user", "content": [block("a")] * 500}]},
    "an image": {
        "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": ""}}]}]
    },
    "a document": {
        "messages": [
            {"role": "user", "content": [{"type": "document", "source": {"type": "base64", "data": "JVBERi0="}}]}
        ]
    },
    "tools and the cache": {
        "system": [block("Be brief. " * 300, "1h")],
        "tools": [
            {"name": f"Tool{n}", "description": "Reads a file. " * 50, "input_schema": SCHEMA} for n in range(25)
        ],
        "messages": [{"role": "user", "content": [block("Hello", "5m")]}],
    },
    "results of tools": {
        "messages": [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Read", "input": {"path": "a"}}]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t", "content": [block("line\n" * 900)]}],
            },
        ],
        "cache_control": {"type": "ephemeral"},
    },
}


@pytest.mark.parametrize("members", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("model", ["claude-opus-5-5", "claude-haiku-5-5", "claude-haiku-4-5"])
def test_the_sandbox_never_bills_more(members: dict[str, Any], model: str) -> None:
    """Neither where the cache is filled, nor where it is read."""
    body = {"model": model, "max_tokens": 500} | members
    asked, cache = read(body), PromptCache()
    for _ in range(2):
        prompt = cache.account(asked, 0)
        tokens = Tokens(prompt.input, prompt.write_5m, prompt.write_1h, prompt.read, 500)
        assert 0 < cost(Bill(model, NOW, tokens, geo="us")) <= most(body)
