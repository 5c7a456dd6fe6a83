"""What holds for every bill."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from tproxy.protocol.pricing import Bill, Cost, IterationTokens, PriceBook, Tokens, built_in

BOOK = built_in()
NOW = 1_795_435_200_000_000  # 2026-11-23T12:00Z
CLASSES = ("input", "cache_write_5m", "cache_write_1h", "cache_read", "output")


def cost(bill: Bill) -> Cost:
    priced = BOOK.price(bill)
    assert isinstance(priced, Cost), priced
    return priced


counts = st.integers(0, 3_000_000)
tokens = st.builds(Tokens, counts, counts, counts, counts, counts)
models = st.sampled_from([name for name in sorted(BOOK.table.models) if not name.startswith("claude-2")])
bills = st.builds(
    Bill,
    models,
    st.just(NOW),
    tokens,
    web_searches=st.integers(0, 50),
    geo=st.sampled_from(["us", "global", "not_available", "", None]),
    batch=st.booleans(),
    iterations=st.none()
    | st.lists(
        st.builds(IterationTokens, st.sampled_from(["message", "compaction"]), models | st.none(), tokens), max_size=4
    ).map(tuple),
    refused_unbilled=st.booleans(),
)


@given(bills)
def test_all_is_whole_and_the_total_is_the_sum(bill: Bill) -> None:
    parts = asdict(cost(bill))
    assert parts.pop("version") == BOOK.version
    assert all(type(part) is int and part >= 0 for part in parts.values())
    assert parts.pop("total_nano") == sum(parts.values())


@given(bills, tokens, st.integers(0, 5))
def test_more_never_costs_less(bill: Bill, more: Tokens, searches: int) -> None:
    both = Tokens(*(getattr(bill.tokens, kind) + getattr(more, kind) for kind in CLASSES))
    larger = replace(bill, tokens=both, web_searches=bill.web_searches + searches)
    assert cost(larger).total_nano >= cost(bill).total_nano


@given(bills.filter(lambda bill: bill.model != "claude-haiku-5-5"), tokens)
def test_costs_add_up(bill: Bill, more: Tokens) -> None:
    """Exactly at list price; else each of four parts may be off by the halves that were rounded away."""
    bill = replace(bill, iterations=None, refused_unbilled=False)
    both = Tokens(*(getattr(bill.tokens, kind) + getattr(more, kind) for kind in CLASSES))
    apart = cost(bill).total_nano + cost(replace(bill, tokens=more, web_searches=0)).total_nano
    together = cost(replace(bill, tokens=both)).total_nano
    assert abs(together - apart) <= (4 if bill.batch or bill.geo == "us" else 0)


ODD = built_in().with_overrides(
    b"""batch = "0.333333333"
web_search = "0.123456789"
[[model]]
id = "odd"
geo = { us = "1.123456789" }
fast = [{ factor = "1.999999999" }]
price = [
  { input = "0.123456789", cache_write_5m = "7.000000001", cache_read = "9.9", output = "3" },
  { over = 1000, input = "0.5", output = "999999999.999999999" },
]
""",
    "odd.toml",
)


@given(counts, counts, st.sampled_from(["us", None]), st.sampled_from(["batch", "fast", None]), st.integers(0, 9))
def test_what_is_priced_is_the_exact_product(
    uncached: int, output: int, geo: str | None, how: str | None, searches: int
) -> None:
    speed, batch = "fast" if how == "fast" else None, how == "batch"
    bill = Bill("odd", NOW, Tokens(uncached, output=output), web_searches=searches, speed=speed, geo=geo, batch=batch)
    factor = Fraction("1.123456789") if geo else Fraction(1)
    factor *= {"fast": Fraction("1.999999999"), "batch": Fraction("0.333333333"), None: Fraction(1)}[how]
    rates = ("0.5", "999999999.999999999") if uncached > 1000 else ("0.123456789", "3")
    priced = ODD.price(bill)
    assert isinstance(priced, Cost)
    exact = [
        round(count * Fraction(rate) * 1000 * factor) for count, rate in zip((uncached, output), rates, strict=True)
    ]
    assert [priced.input_nano, priced.output_nano] == exact
    assert priced.tools_nano == searches * 123_456_789


@given(st.lists(bills, max_size=8))
def test_what_was_priced_before_changes_nothing(several: list[Bill]) -> None:
    assert [PriceBook(BOOK.table).price(bill) for bill in several] == [BOOK.price(bill) for bill in several]


@given(bills)
def test_one_iteration_is_the_whole(bill: Bill) -> None:
    whole = replace(bill, iterations=None, refused_unbilled=False)
    alone = (IterationTokens("message", None, whole.tokens),)
    assert cost(replace(whole, tokens=Tokens(), iterations=alone)) == cost(whole)
