"""The upper bound of single requests, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tproxy.protocol.bound import Bound, Unboundable, at_least, at_most, count_tokens_body
from tproxy.protocol.contents import Advisor
from tproxy.protocol.demand import Demand, Fallback
from tproxy.protocol.pricing import PriceBook, built_in

BOOK = built_in()
NOW = 1_795_435_200_000_000  # 2026-11-23T12:00Z
ROUNDING = 5  # nano-dollars, for each run of a model
WINDOW = 1_000_000
IMAGE = 92 * 92

# claude-opus-5-5: 4 in, 5 for five minutes, 8 for an hour, 20 out; in nano-dollars a token.
PLAIN = Demand(model="claude-opus-5-5", max_tokens=1_000, text_bytes=10_000, geo="global")
HAIKU = replace(PLAIN, model="claude-haiku-5-5")  # 0.10 and 0.50 up to 100,000 tokens, 0.50 and 2.50 above

OWN = BOOK.with_overrides(
    b"""
    [[model]]
    id = "mine"
    geo = { us = "1" }
    price = [{ input = "1", cache_read = "9", output = "1" }, { over = 500, input = "0.1", output = "0.1" }]
    """,
    "own",
)
MINE = Demand(model="mine", max_tokens=10, text_bytes=10_000)


def nano(demand: Demand, book: PriceBook = BOOK, counted: int | None = None) -> int:
    bound = at_most(demand, book, NOW, counted)
    assert isinstance(bound, Bound), bound
    return bound.nano - ROUNDING


BOUNDS = {
    "input and output": (PLAIN, 10_000 * 4_000 + 1_000 * 20_000),
    "cache, five minutes": (replace(PLAIN, cached=True), 10_000 * 5_000 + 1_000 * 20_000),
    "cache, an hour": (replace(PLAIN, cached=True, cached_1h=True), 10_000 * 8_000 + 1_000 * 20_000),
    "pre-warming": (replace(PLAIN, cached=True, max_tokens=0), 10_000 * 5_000),
    "images": (replace(PLAIN, images=3), (10_000 + 3 * IMAGE) * 4_000 + 1_000 * 20_000),
    "tools": (replace(PLAIN, tools=True), 12_000 * 4_000 + 1_000 * 20_000),
    "a document": (replace(PLAIN, whole_window="…"), WINDOW * 4_000 + 1_000 * 20_000),
    "more text than the window holds": (replace(PLAIN, text_bytes=32_000_000), WINDOW * 4_000 + 1_000 * 20_000),
    "no max_tokens": (replace(PLAIN, max_tokens=None), 10_000 * 4_000 + 128_000 * 20_000),
    "thinking within max_tokens": (replace(PLAIN, thinking_tokens=900), 10_000 * 4_000 + 1_000 * 20_000),
    "thinking beyond max_tokens": (replace(PLAIN, thinking_tokens=5_000), 10_000 * 4_000 + 6_000 * 20_000),
    "fast": (replace(PLAIN, fast=True), 2 * (10_000 * 4_000 + 1_000 * 20_000)),
    "in the US": (replace(PLAIN, geo="us"), (10_000 * 4_400 + 1_000 * 22_000)),
    "where the workspace says": (replace(PLAIN, geo=None), (10_000 * 4_400 + 1_000 * 22_000)),
    "an older model knows no regions": (
        replace(PLAIN, model="claude-haiku-4-5", geo=None),
        10_000 * 1_000 + 1_000 * 5_000,
    ),
    "an older model's window": (
        replace(PLAIN, model="claude-haiku-4-5", whole_window="…"),
        200_000 * 1_000 + 1_000 * 5_000,
    ),
    "an older model's window with the beta": (
        replace(PLAIN, model="claude-haiku-4-5", whole_window="…", long_context=True),
        WINDOW * 1_000 + 1_000 * 5_000,
    ),
    "an older model without a cache": (
        replace(PLAIN, model="claude-2.1", cached=True),
        10_000 * 8_000 + 1_000 * 24_000,
    ),
    "a short prompt": (replace(HAIKU, text_bytes=100_000), 100_000 * 100 + 1_000 * 500),
    "a long prompt": (replace(HAIKU, text_bytes=100_001), 100_001 * 500 + 1_000 * 2_500),
    "the client's [1m]": (replace(PLAIN, model="claude-opus-5-5[1m]"), 10_000 * 4_000 + 1_000 * 20_000),
}


@pytest.mark.parametrize(("demand", "expected"), BOUNDS.values(), ids=BOUNDS)
def test_at_most(demand: Demand, expected: int) -> None:
    assert nano(demand) == expected


def test_fallbacks_are_added() -> None:
    """claude-opus-5: 5 in, 25 out; claude-sonnet-5: 2 in, 10 out, and no fast mode."""
    fallbacks = (Fallback("claude-opus-5", None, 0, True), Fallback("claude-sonnet-5", 500, 0, False))
    expected = nano(PLAIN) + 2 * (10_000 * 5_000 + 1_000 * 25_000) + (10_000 * 2_000 + 500 * 10_000)
    assert nano(replace(PLAIN, fallbacks=fallbacks)) == expected + 2 * ROUNDING


def test_server_tools_may_run_the_model_ten_times_over_a_full_window() -> None:
    """What they bring is written to the cache, and each search costs a cent."""
    demand = replace(PLAIN, server_tools=True, searches=3, tools=True)
    runs = 10 * (WINDOW * 5_000 + 1_000 * 20_000)
    assert nano(demand) == runs + 3 * 10_000_000 + 10 * ROUNDING


def test_an_advisor_reads_all_each_time() -> None:
    demand = replace(PLAIN, server_tools=True, tools=True)
    advised = replace(demand, advisors=(Advisor("claude-opus-5", 2, 2_000),))
    assert nano(advised) - nano(demand) == 2 * (WINDOW * 10_000 + 2_000 * 25_000 + ROUNDING)
    unlimited = replace(demand, advisors=(Advisor("claude-opus-5", 2, None),))
    assert nano(unlimited) - nano(demand) == 2 * (WINDOW * 10_000 + 128_000 * 25_000 + ROUNDING)


COUNTED = {
    "lower than the bytes": (PLAIN, 2_000, 2_540),
    "a part of a token is one": (PLAIN, 2_001, 2_542),
    "no lower than the bytes": (PLAIN, 9_500, 10_000),
    "a document": (replace(PLAIN, whole_window="…"), 50_000, 51_500),
    "a document that fills the window": (replace(PLAIN, whole_window="…"), 999_000, WINDOW),
    "not what the upstream cannot count": (replace(PLAIN, whole_window="…", countable=False), 10, WINDOW),
}


@pytest.mark.parametrize(("demand", "counted", "tokens"), COUNTED.values(), ids=COUNTED)
def test_with_a_count(demand: Demand, counted: int, tokens: int) -> None:
    assert nano(demand, counted=counted) == tokens * 4_000 + 1_000 * 20_000


def test_a_count_does_not_help_where_tools_bring_more() -> None:
    demand = replace(PLAIN, server_tools=True)
    assert nano(demand, counted=100) == nano(demand)


OLDER = replace(PLAIN, model="claude-opus-4-6")  # 5 and 25, with a tokenizer of its own
SHARED = {
    "the newer one": (PLAIN, "claude-sonnet-5", True),
    "the older one": (OLDER, "claude-haiku-4-5", True),
    "older, then newer": (OLDER, "claude-opus-4-7", False),
    "newer, then older": (PLAIN, "claude-opus-4-6", False),
    "the first one, then the older": (replace(PLAIN, model="claude-2.1"), "claude-haiku-4-5", False),
    "the same model": (PLAIN, "claude-opus-5-5[1m]", True),
    "a model of another name": (PLAIN, "mine", False),
    "twice a model of another name": (replace(PLAIN, model="mine"), "mine", True),
}


@pytest.mark.parametrize(("demand", "fallback", "shared"), SHARED.values(), ids=SHARED)
def test_a_count_holds_for_models_that_share_the_tokenizer(demand: Demand, fallback: str, shared: bool) -> None:
    """For others the bytes hold."""
    both = replace(demand, fallbacks=(Fallback(fallback, None, 0, False),))
    alone = replace(demand, model=fallback)
    more = nano(both, OWN, counted=2_000) - nano(demand, OWN, counted=2_000)
    assert more == nano(alone, OWN, counted=2_000 if shared else None) + ROUNDING


def test_where_a_count_does_not_hold_a_document_fills_the_window() -> None:
    demand = replace(OLDER, whole_window="…", fallbacks=(Fallback("claude-opus-4-7", None, 0, False),))
    alone = replace(demand, model="claude-opus-4-7", fallbacks=())
    assert nano(demand, counted=2_000) - nano(replace(demand, fallbacks=()), counted=2_000) == nano(alone) + ROUNDING


def test_at_least_is_what_a_count_could_lower_it_to() -> None:
    assert at_least(PLAIN, BOOK, NOW) == nano(PLAIN, counted=10_000 // 8) + ROUNDING
    assert at_least(replace(PLAIN, unbounded="…"), BOOK, NOW) == 0


UNBOUNDABLE = {
    "by the body": (replace(PLAIN, unbounded="the body is not valid JSON"), "the body is not valid JSON"),
    "unknown model": (replace(PLAIN, model="claude-opus-9"), "no price is known for the model 'claude-opus-9'"),
    "unknown fallback": (
        replace(PLAIN, fallbacks=(Fallback("claude-9", None, 0, False),)),
        "no price is known for the model 'claude-9'",
    ),
    "unknown region": (replace(PLAIN, geo="eu"), "no price is known for inference_geo 'eu'"),
    "answer of unknown length": (
        replace(PLAIN, model="claude-opus-4-1", max_tokens=None),
        "nothing says how long an answer of 'claude-opus-4-1' may be",
    ),
}


@pytest.mark.parametrize(("demand", "reason"), UNBOUNDABLE.values(), ids=UNBOUNDABLE)
def test_unboundable(demand: Demand, reason: str) -> None:
    assert at_most(demand, BOOK, NOW) == Unboundable(reason)


def test_a_day_without_a_price() -> None:
    assert at_most(PLAIN, BOOK, 0) == Unboundable("no price of model 'claude-opus-5-5' holds on 1970-01-01")


def test_a_shorter_prompt_may_be_the_dearer_one() -> None:
    assert nano(MINE, OWN) == 10_000 * 100 + 10 * 100
    assert nano(replace(MINE, text_bytes=2_000), OWN) == 500 * 1_000 + 10 * 1_000


def test_so_may_be_reading_from_the_cache() -> None:
    assert nano(replace(MINE, cached=True), OWN) == 500 * 9_000 + 10 * 1_000


def test_a_model_whose_window_is_not_known() -> None:
    """Text is bounded by its bytes, whatever they are; a document is bounded only by a count."""
    assert nano(replace(MINE, text_bytes=3_000_000), OWN) == 3_000_000 * 100 + 10 * 100
    document = replace(MINE, whole_window="it holds a document")
    assert at_most(document, OWN, NOW) == Unboundable(
        "it holds a document, and the context window of 'mine' is not known"
    )
    assert nano(document, OWN, counted=10_000) == 10_700 * 100 + 10 * 100


def test_the_question_about_tokens() -> None:
    asked = (
        b'{ "max_tokens":5, "messages" : [ {"role": "user", "content": "\\u00fc"} ],"stream":true,"mo\\u0064el":"m",'
        b'"metadata":{"user_id":"x"},"tools": [],"litellm_metadata":{},"system":"s","speed":"fast"}'
    )
    assert count_tokens_body(asked) == (
        b'{"model":"m","system":"s","messages":[ {"role": "user", "content": "\\u00fc"} ],"tools":[],"speed":"fast"}'
    )


NOT_COUNTED: dict[str, Any] = {
    "no JSON": b"{",
    "no object": b"[]",
    "no messages": b'{"model": "m"}',
    "a thread": json.dumps({"messages": [], "thread": {"type": "create"}}).encode(),
    "too deep": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("asked", NOT_COUNTED.values(), ids=NOT_COUNTED)
def test_no_question_about_tokens(asked: bytes) -> None:
    assert count_tokens_body(asked) is None
