"""Answers with several attempts: which are billed, and at whose prices."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from tproxy.protocol.pricing import Bill, Cost, IterationTokens, Tokens, Unpriced, built_in

BOOK = built_in()
NOW = 1_795_435_200_000_000  # 2026-11-23T12:00Z
TEN = Tokens(input=1000, output=10)
NONE = Tokens(input=1000)


def entries(*rows: tuple[str, str | None, Tokens]) -> Bill:
    """A bill whose own counts would be wrong to price."""
    iterations = tuple(IterationTokens(*row) for row in rows)
    return Bill("claude-opus-5-5", NOW, Tokens(input=10**9), iterations=iterations)


# 1000 in and 10 out: opus 5.5 4.2, fable 5.2 8.4, sonnet 5.5 2.1 thousandths of a dollar
ITERATIONS: Mapping[str, tuple[Bill, int | str]] = {
    "one message": (entries(("message", None, TEN)), 4_200_000),
    "a message at its own model": (entries(("message", "claude-sonnet-5-5", TEN)), 2_100_000),
    "a loop of a server tool": (entries(("message", None, TEN), ("message", None, TEN)), 8_400_000),
    "a compaction": (entries(("compaction", None, TEN), ("message", None, TEN)), 8_400_000),
    "only a compaction": (entries(("compaction", None, TEN)), 4_200_000),
    "an advisor": (entries(("message", None, TEN), ("advisor_message", "claude-fable-5-2", TEN)), 12_600_000),
    "declined, then served": (
        entries(("message", "claude-fable-5-2", NONE), ("fallback_message", "claude-opus-5-5", TEN)),
        4_200_000,
    ),
    "declined midway, then served": (
        entries(("message", "claude-fable-5-2", TEN), ("fallback_message", "claude-opus-5-5", TEN)),
        12_600_000,
    ),
    "declined twice": (
        entries(
            ("message", "claude-fable-5-2", NONE),
            ("message", "claude-sonnet-5-5", NONE),
            ("fallback_message", "claude-opus-5-5", TEN),
        ),
        4_200_000,
    ),
    "a fallback with a loop of its own": (
        entries(
            ("message", "claude-fable-5-2", NONE),
            ("message", "claude-opus-5-5", TEN),
            ("fallback_message", "claude-opus-5-5", TEN),
        ),
        8_400_000,
    ),
    "a silent advisor is not a declined attempt": (
        entries(
            ("message", "claude-fable-5-2", NONE),
            ("advisor_message", "claude-fable-5-2", NONE),
            ("fallback_message", "claude-opus-5-5", TEN),
        ),
        12_200_000,
    ),
    "pre-warming": (entries(("message", None, NONE)), 4_000_000),
    "pre-warming of a fallback": (
        entries(("message", "claude-fable-5-2", NONE), ("fallback_message", "claude-opus-5-5", NONE)),
        4_000_000,
    ),
    "an entry without a model is for the one asked": (
        replace(
            entries(("compaction", None, TEN), ("fallback_message", "claude-opus-5-5", TEN)),
            asked_model="claude-fable-5-2",
        ),
        12_600_000,
    ),
    "searches of the whole answer": (replace(entries(("message", None, TEN)), web_searches=1), 14_200_000),
    "factors at each entry": (
        replace(entries(("message", None, TEN), ("advisor_message", "claude-fable-5-2", TEN)), speed="fast", geo="us"),
        27_720_000,
    ),
    "factors by each model": (
        replace(entries(("message", None, TEN), ("advisor_message", "claude-opus-4-5", TEN)), geo="us", batch=True),
        4_935_000,  # 4.2 * 0.55 + 5.25 * 0.5
    ),
    "tiers by each prompt": (
        entries(
            ("message", "claude-haiku-5-5", Tokens(input=100_000)),
            ("message", "claude-haiku-5-5", Tokens(input=100_001)),
        ),
        60_000_500,
    ),
    "rounded once for all": (
        replace(
            entries(
                ("message", "claude-haiku-5-5", Tokens(cache_read=1)),
                ("message", "claude-haiku-5-5", Tokens(cache_read=1)),
            ),
            geo="us",
            batch=True,
        ),
        11,  # 5.5 + 5.5; each alone would be 6
    ),
    "refused by all": (
        replace(
            entries(("message", "claude-fable-5-2", NONE), ("message", "claude-opus-5-5", NONE)),
            refused_unbilled=True,
        ),
        0,
    ),
    "declined midway, then refused": (
        replace(
            entries(("message", "claude-fable-5-2", TEN), ("message", "claude-opus-5-5", NONE)),
            refused_unbilled=True,
        ),
        8_400_000,
    ),
    "unknown kind": (entries(("message", None, TEN), ("dream", None, TEN)), "unknown kind of iteration 'dream'"),
    "an advisor without a model": (entries(("advisor_message", None, TEN)), "'advisor_message' names no model"),
    "a fallback without a model": (entries(("fallback_message", None, TEN)), "'fallback_message' names no model"),
    "an unknown advisor": (
        entries(("message", None, TEN), ("advisor_message", "claude-opus-7", TEN)),
        "unknown model 'claude-opus-7'",
    ),
}


@pytest.mark.parametrize(("bill", "expected"), ITERATIONS.values(), ids=ITERATIONS)
def test_iterations(bill: Bill, expected: int | str) -> None:
    priced = BOOK.price(bill)
    if isinstance(expected, int):
        assert isinstance(priced, Cost), priced
        assert priced.total_nano == expected
    else:
        assert isinstance(priced, Unpriced), priced
        assert expected in priced.reason


def test_an_empty_list_of_iterations_says_nothing() -> None:
    bill = Bill("claude-opus-5-5", NOW, TEN)
    assert BOOK.price(replace(bill, iterations=())) == BOOK.price(bill)
