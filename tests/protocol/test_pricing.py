from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import asdict, replace

from tproxy.protocol.pricing import Bill, Cost, PriceBook, PriceFault, Tokens, Unpriced, built_in

BOOK = built_in()
NAMES = sorted(BOOK.table.models)


def at(moment: str) -> int:
    """Microseconds since the epoch of an ISO date or time in UTC."""
    parsed = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    return int(parsed.timestamp()) * 1_000_000 + parsed.microsecond


NOW = at("2026-11-23T12:00")
SAMPLE_A = Tokens(input=377, cache_write_5m=200, cache_write_1h=1000, cache_read=8000, output=65)
EACH_1000 = Tokens(1000, 1000, 1000, 1000, 1000)
OPUS = Bill("claude-opus-5-5", NOW, SAMPLE_A)
HAIKU = Bill("claude-haiku-5-5", NOW, Tokens())
LOW_100K = Tokens(input=50_000, cache_write_5m=20_000, cache_write_1h=10_000, cache_read=20_000, output=1_000)


def cost(bill: Bill, book: PriceBook = BOOK) -> Cost:
    priced = book.price(bill)
    assert isinstance(priced, Cost), priced
    return priced


def reason(bill: Bill) -> str:
    priced = BOOK.price(bill)
    assert isinstance(priced, Unpriced), priced
    return priced.reason


# Dollars per million tokens on 2026-11-23: input, 5m write, 1h write, cache read, output. From the price page.
PRICES = {
    "claude-fable-5-2 claude-mythos-5-2": "8 10 16 0.20 40",
    "claude-fable-5-1 claude-mythos-5-1": "10 12.5 20 0.25 50",
    "claude-fable-5 claude-mythos-5": "10 12.5 20 1 50",
    "claude-opus-5-5": "4 5 8 0.20 20",
    "claude-opus-5 claude-opus-4-8 claude-opus-4-7 claude-opus-4-7-20260416": "5 6.25 10 0.50 25",
    "claude-opus-4-6 claude-opus-4-6-20260205 claude-opus-4-5 claude-opus-4-5-20251101": "5 6.25 10 0.50 25",
    "claude-opus-4-1 claude-opus-4-1-20250805 claude-opus-4-0 claude-opus-4-20250514": "15 18.75 30 1.50 75",
    "claude-3-opus-20240229 claude-3-opus-latest": "15 18.75 30 1.50 75",
    "claude-sonnet-5-5": "2 2.5 4 0.10 10",
    "claude-sonnet-5": "2 2.5 4 0.20 10",
    "claude-sonnet-4-6 claude-sonnet-4-5 claude-sonnet-4-5-20250929": "3 3.75 6 0.30 15",
    "claude-sonnet-4-0 claude-sonnet-4-20250514": "3 3.75 6 0.30 15",
    "claude-3-7-sonnet-20250219 claude-3-7-sonnet-latest": "3 3.75 6 0.30 15",
    "claude-3-5-sonnet-20241022 claude-3-5-sonnet-20240620 claude-3-5-sonnet-latest": "3 3.75 6 0.30 15",
    "claude-haiku-5-5": "0.10 0.125 0.20 0.01 0.50",
    "claude-haiku-4-5 claude-haiku-4-5-20251001": "1 1.25 2 0.10 5",
    "claude-3-5-haiku-20241022 claude-3-5-haiku-latest": "0.80 1 1.60 0.08 4",
    "claude-3-haiku-20240307": "0.25 0.30 0.50 0.03 1.25",
    "claude-2.1 claude-2.0 claude-2": "8 - - - 24",
}
US_FACTOR = {
    *("claude-fable-5-2", "claude-mythos-5-2", "claude-fable-5-1", "claude-mythos-5-1", "claude-fable-5"),
    *("claude-mythos-5", "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8", "claude-opus-4-7", "claude-opus-4-6"),
    *("claude-opus-4-7-20260416", "claude-opus-4-6-20260205"),
    *("claude-sonnet-5-5", "claude-sonnet-5", "claude-sonnet-4-6", "claude-haiku-5-5"),
}
FAST = {"claude-fable-5-2", "claude-mythos-5-2", "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8"}
FAST_AS_STANDARD = {"claude-opus-4-6", "claude-opus-4-6-20260205"}
CLASSES = ("input", "cache_write_5m", "cache_write_1h", "cache_read", "output")


def test_every_model_is_in_the_table_above() -> None:
    assert sorted(name for names in PRICES for name in names.split()) == NAMES


@pytest.mark.parametrize(("names", "prices"), PRICES.items(), ids=PRICES)
def test_prices_of_today(names: str, prices: str) -> None:
    for name in names.split():
        for kind, price in zip(CLASSES, prices.split(), strict=True):
            bill = Bill(name, NOW, Tokens(**{kind: 1000}))
            if price == "-":
                assert reason(bill) == f"model {name!r} has no price for {kind} tokens"
            else:
                part = f"{kind.removesuffix('_5m').removesuffix('_1h')}_nano"
                priced = asdict(cost(bill))
                assert priced[part] == priced["total_nano"] == Decimal(price) * 1_000_000, kind


@pytest.mark.parametrize("name", NAMES)
def test_which_models_have_a_region_price_and_fast_mode(name: str) -> None:
    bill = Bill(name, NOW, Tokens(input=1000, output=1000))
    base = cost(bill).total_nano
    assert cost(replace(bill, geo="us")).total_nano * 10 == base * (11 if name in US_FACTOR else 10)
    if name in FAST | FAST_AS_STANDARD:
        assert cost(replace(bill, speed="fast")).total_nano == base * (2 if name in FAST else 1)
    else:
        assert reason(replace(bill, speed="fast")) == (
            f"model {BOOK.table.models[name].id!r} has no fast mode on 2026-11-23"
        )


FIGURES: Mapping[str, tuple[Bill, int]] = {
    # 377 * 4 + 200 * 5 + 1000 * 8 + 8000 * 0.2 + 65 * 20 = 13408 millionths
    "the sample": (OPUS, 13_408_000),
    "the sample, fast": (replace(OPUS, speed="fast"), 26_816_000),
    "the sample, us": (replace(OPUS, geo="us"), 14_748_800),
    "the sample, batch": (replace(OPUS, batch=True), 6_704_000),
    "the sample, fast and us": (replace(OPUS, speed="fast", geo="us"), 29_497_600),
    "the sample, batch and us": (replace(OPUS, batch=True, geo="us"), 7_374_400),
    "the sample, all said but nothing special": (replace(OPUS, speed="standard", geo="global"), 13_408_000),
    "the sample, geo not available": (replace(OPUS, geo="not_available"), 13_408_000),
    "the sample, empty words": (replace(OPUS, speed="", geo=""), 13_408_000),
    "the sample, [1m]": (replace(OPUS, model="claude-opus-5-5[1m]"), 13_408_000),
    # 1000 * 4 + 1000 * 5 + 1000 * 8 + 10000 * 0.2 + 900 * 20 = 37000 millionths, and two searches
    "with searches": (Bill("claude-opus-5-5", NOW, Tokens(1000, 1000, 1000, 10_000, 900), 2), 57_000_000),
    "searches are not halved": (
        Bill("claude-opus-5-5", NOW, Tokens(1000, 1000, 1000, 10_000, 900), 2, batch=True),
        38_500_000,
    ),
    "searches are not doubled": (replace(OPUS, web_searches=1, speed="fast", geo="us"), 39_497_600),
    "nothing used": (replace(OPUS, tokens=Tokens()), 0),
    "pre-warming: no output": (replace(OPUS, tokens=Tokens(cache_write_1h=1000)), 8_000_000),
    # 50000 * 0.1 + 20000 * 0.125 + 10000 * 0.2 + 20000 * 0.01 + 1000 * 0.5 = 10200 millionths
    "haiku 5.5 at its bound": (replace(HAIKU, tokens=LOW_100K), 10_200_000),
    "haiku 5.5, long output only": (replace(HAIKU, tokens=Tokens(output=200_000)), 100_000_000),
    # the same at five times the price, and one more token
    "haiku 5.5 above, by input": (replace(HAIKU, tokens=replace(LOW_100K, input=50_001)), 51_000_500),
    "haiku 5.5 above, by 5m write": (replace(HAIKU, tokens=replace(LOW_100K, cache_write_5m=20_001)), 51_000_625),
    "haiku 5.5 above, by 1h write": (replace(HAIKU, tokens=replace(LOW_100K, cache_write_1h=10_001)), 51_001_000),
    "haiku 5.5 above, by read": (replace(HAIKU, tokens=replace(LOW_100K, cache_read=20_001)), 51_000_050),
    # at batch and us: input 55, output 275, 5m 68.75, 1h 110, read 5.5 nano-dollars per token
    "one input token": (replace(HAIKU, batch=True, geo="us", tokens=Tokens(input=1)), 55),
    "three quarters go up": (replace(HAIKU, batch=True, geo="us", tokens=Tokens(cache_write_5m=1)), 69),
    "a half goes up to the even": (replace(HAIKU, batch=True, geo="us", tokens=Tokens(cache_read=1)), 6),
    "a half goes down to the even": (replace(HAIKU, batch=True, geo="us", tokens=Tokens(cache_read=3)), 16),
}


@pytest.mark.parametrize(("bill", "nano"), FIGURES.values(), ids=FIGURES)
def test_figures_computed_by_hand(bill: Bill, nano: int) -> None:
    assert cost(bill).total_nano == nano


def test_both_kinds_of_writes_are_one_part() -> None:
    half = b"""[[model]]
id = "m"
price = [{ input = "1", cache_write_5m = "0.0005", cache_write_1h = "0.0005", output = "1" }]"""
    book = BOOK.with_overrides(half, "mine.toml")
    assert cost(Bill("m", NOW, Tokens(cache_write_5m=1, cache_write_1h=1)), book).cache_write_nano == 1


def test_the_parts() -> None:
    assert cost(replace(OPUS, web_searches=3)) == Cost(
        total_nano=43_408_000,
        input_nano=1_508_000,
        output_nano=1_300_000,
        cache_read_nano=1_600_000,
        cache_write_nano=9_000_000,
        tools_nano=30_000_000,
        version=BOOK.version,
    )


def day(model: str, moment: str, tokens: Tokens = EACH_1000, **more: Any) -> Bill:
    return Bill(model, at(moment), tokens, **more)


READS = Tokens(cache_read=1_000_000)
LONG = Tokens(input=200_001, output=1_000)
FITS = Tokens(input=200_000, output=1_000)
LAST = "T23:59:59.999999"
DAYS: Mapping[str, tuple[Bill, int | str]] = {
    "sonnet 5.5, the day before its launch": (day("claude-sonnet-5-5", f"2026-09-27{LAST}"), "2026-09-27"),
    "sonnet 5.5, first day": (day("claude-sonnet-5-5", "2026-09-28"), 18_700_000),
    "sonnet 5.5, last day of old reads": (day("claude-sonnet-5-5", f"2026-10-06{LAST}", READS), 200_000_000),
    "sonnet 5.5, first day of new reads": (day("claude-sonnet-5-5", "2026-10-07", READS), 100_000_000),
    "haiku 5.5, before": (day("claude-haiku-5-5", f"2026-10-06{LAST}"), "2026-10-06"),
    "haiku 5.5, first day": (day("claude-haiku-5-5", "2026-10-07"), 935_000),
    "haiku 5.5, before, long": (day("claude-haiku-5-5", f"2026-10-06{LAST}", LONG), "2026-10-06"),
    "fable 5.2, before": (day("claude-fable-5-2", f"2026-11-08{LAST}"), "2026-11-08"),
    "fable 5.2, first day": (day("claude-fable-5-2", "2026-11-09"), 74_200_000),
    "fable 5.1, before": (day("claude-fable-5-1", f"2026-08-31{LAST}"), "2026-08-31"),
    "fable 5, before": (day("claude-fable-5", f"2026-06-08{LAST}"), "2026-06-08"),
    "opus 5.5, before": (day("claude-opus-5-5", f"2026-09-21{LAST}"), "2026-09-21"),
    "opus 5, before": (day("claude-opus-5", f"2026-07-23{LAST}"), "2026-07-23"),
    "sonnet 5, before": (day("claude-sonnet-5", f"2026-06-29{LAST}"), "2026-06-29"),
    # 46750 millionths a thousand of each, doubled until its last day
    "opus 4.8 fast, last day": (day("claude-opus-4-8", f"2026-11-30{LAST}", speed="fast"), 93_500_000),
    "opus 4.8 fast, gone": (day("claude-opus-4-8", "2026-12-01", speed="fast"), "no fast mode on 2026-12-01"),
    "opus 4.8 stays": (day("claude-opus-4-8", "2026-12-01"), 46_750_000),
    "opus 4.7 fast, last day": (day("claude-opus-4-7", f"2026-07-24{LAST}", speed="fast"), 280_500_000),
    "opus 4.7 fast, gone": (day("claude-opus-4-7", "2026-07-25", speed="fast"), "no fast mode on 2026-07-25"),
    "opus 4.6 fast, last day": (day("claude-opus-4-6", f"2026-07-24{LAST}", speed="fast"), 280_500_000),
    "opus 4.6 fast, then as standard": (day("claude-opus-4-6", "2026-07-25", speed="fast"), 46_750_000),
    # 200001 * 10 + 1000 * 37.5, then 200001 * 5 + 1000 * 25
    "opus 4.6 long, last day": (day("claude-opus-4-6", f"2026-03-12{LAST}", LONG), 2_037_510_000),
    "opus 4.6 long, flat": (day("claude-opus-4-6", "2026-03-13", LONG), 1_025_005_000),
    "opus 4.6 not long": (day("claude-opus-4-6", "2026-03-12", FITS), 1_025_000_000),
    "opus 4.6 long and fast": (day("claude-opus-4-6", "2026-03-12", LONG, speed="fast"), 12_225_060_000),
    "sonnet 4.6 long, last day": (day("claude-sonnet-4-6", f"2026-03-12{LAST}", LONG), 1_222_506_000),
    "sonnet 4.6 long, flat": (day("claude-sonnet-4-6", "2026-03-13", LONG), 615_003_000),
    "sonnet 4.6 not long": (day("claude-sonnet-4-6", "2026-03-12", FITS), 615_000_000),
    "sonnet 4.5 long, last day": (day("claude-sonnet-4-5", f"2026-04-30{LAST}", LONG), 1_222_506_000),
    "sonnet 4.5 long, flat": (day("claude-sonnet-4-5-20250929", "2026-05-01", LONG), 615_003_000),
    "sonnet 4 long, last day": (day("claude-sonnet-4-20250514", f"2026-04-30{LAST}", LONG), 1_222_506_000),
    "sonnet 4 long, flat": (day("claude-sonnet-4-0", "2026-05-01", LONG), 615_003_000),
    "sonnet 5 was never dearer when long": (day("claude-sonnet-5", "2026-06-30", LONG), 410_002_000),
}


@pytest.mark.parametrize(("bill", "expected"), DAYS.values(), ids=DAYS)
def test_days(bill: Bill, expected: int | str) -> None:
    if isinstance(expected, int):
        assert cost(bill).total_nano == expected
    else:
        assert expected in reason(bill)


def test_a_day_is_a_day_in_utc_also_before_the_epoch() -> None:
    assert cost(Bill("claude-2", -1, Tokens(input=1))).total_nano == 8_000
    assert reason(Bill("claude-opus-5-5", -1, Tokens())) == "no price of model 'claude-opus-5-5' holds on 1969-12-31"


UNPRICED: Mapping[str, tuple[Bill, str]] = {
    "unknown model": (replace(OPUS, model="claude-opus-6"), "unknown model 'claude-opus-6'"),
    "a longer name is another model": (replace(OPUS, model="claude-opus-5-1"), "unknown model 'claude-opus-5-1'"),
    "a shorter one too": (replace(OPUS, model="claude-opus"), "unknown model 'claude-opus'"),
    "a date that is not listed": (
        replace(OPUS, model="claude-opus-5-5-20260922"),
        "unknown model 'claude-opus-5-5-20260922'",
    ),
    "another spelling": (replace(OPUS, model="Claude-Opus-5-5"), "unknown model 'Claude-Opus-5-5'"),
    "no model": (replace(OPUS, model=""), "unknown model ''"),
    "a price that was never published": (
        replace(OPUS, model="claude-mythos-preview"),
        "unknown model 'claude-mythos-preview'",
    ),
    "unknown model, nothing used": (replace(OPUS, model="x", tokens=Tokens()), "unknown model 'x'"),
    "a long name is cut": (replace(OPUS, model="x" * 1000), f"unknown model '{'x' * 100}'"),
    "unknown speed": (replace(OPUS, speed="turbo"), "unknown speed 'turbo'"),
    "unknown region": (replace(OPUS, geo="eu"), "no price is known for inference_geo 'eu'"),
    "fast in a batch": (replace(OPUS, speed="fast", batch=True), "'claude-opus-5-5' has no fast mode in batches"),
    "fast where there is none": (
        Bill("claude-sonnet-5-5", NOW, SAMPLE_A, speed="fast"),
        "model 'claude-sonnet-5-5' has no fast mode on 2026-11-23",
    ),
    "a class without a price": (
        Bill("claude-2.1", NOW, Tokens(input=1, cache_read=1)),
        "model 'claude-2.1' has no price for cache_read tokens",
    ),
    "fewer than none": (replace(OPUS, tokens=Tokens(output=-1)), "the count of output tokens is negative"),
    "fewer searches than none": (replace(OPUS, web_searches=-1), "the count of web searches is negative"),
}


@pytest.mark.parametrize(("bill", "words"), UNPRICED.values(), ids=UNPRICED)
def test_never_a_guess(bill: Bill, words: str) -> None:
    assert words in reason(bill)


@pytest.mark.parametrize("model", ["claude-opus-5-5", "claude-unheard-of"])
def test_an_unbilled_refusal_costs_nothing_whatever_the_model(model: str) -> None:
    refused = cost(replace(OPUS, model=model, web_searches=1, refused_unbilled=True))
    assert refused == Cost(0, 0, 0, 0, 0, 0, BOOK.version)


def test_overrides_price_and_are_named_in_the_version() -> None:
    mine = b"""date = 2026-12-24
web_search = "0.02"
batch = "0.25"
[geo]
eu = "1.5"
[[model]]
id = "claude-opus-6"
price = [{ input = "1", output = "2" }]
"""
    book = BOOK.with_overrides(mine, "mine.toml")
    assert book.version.startswith(f"{BOOK.version}+2026-12-24-")
    new = Bill("claude-opus-6", NOW, Tokens(input=1000, output=1000), web_searches=1, geo="eu", batch=True)
    assert cost(new, book).total_nano == 21_125_000  # 3 * 1.5 / 4 thousandths, and 0.02
    assert cost(new, book).version == book.version
    assert cost(OPUS, book).total_nano == cost(OPUS).total_nano
    assert reason(new) == "unknown model 'claude-opus-6'"


def test_faults_of_an_override_have_their_place() -> None:
    with pytest.raises(PriceFault, match=r"^mine\.toml: batch: must be a decimal"):
        BOOK.with_overrides(b"batch = 0.5", "mine.toml")


def test_built_in_is_read_once_and_dated() -> None:
    assert built_in() is BOOK
    assert BOOK.version.startswith("2026-11-23-")
