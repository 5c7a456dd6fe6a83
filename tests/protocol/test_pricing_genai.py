"""The price table against genai-prices, an independent one. Where the two differ must be listed here, with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price, data_snapshot
from msgspec.structs import replace

from tproxy.protocol.pricing import Bill, Cost, Tokens, built_in

BOOK = built_in()
NAMES = sorted(BOOK.table.models)
NOW = 1_795_435_200_000_000  # 2026-11-23T12:00Z
EARLY_OCTOBER = 1_790_856_000_000_000  # 2026-10-01T12:00Z
EARLY_2026 = 1_773_316_800_000_000  # 2026-03-12T12:00Z
CLASSES = ("input", "cache_write_5m", "cache_write_1h", "cache_read", "output")
SAMPLE = Tokens(input=377, cache_write_5m=200, cache_write_1h=1000, cache_read=8000, output=65)

SCENARIOS: Mapping[str, Bill] = {
    **{kind: Bill("", NOW, Tokens(**{kind: 12_345})) for kind in CLASSES},
    "all classes": Bill("", NOW, SAMPLE),
    "searches": Bill("", NOW, Tokens(input=1, output=1), web_searches=3),
    "100,000 in": Bill("", NOW, Tokens(30_000, 10_000, 10_000, 50_000, 1_000)),
    "100,001 in": Bill("", NOW, Tokens(30_000, 10_000, 10_000, 50_001, 1_000)),
    "200,001 in": Bill("", NOW, Tokens(100_000, 10_000, 10_000, 80_001, 1_000)),
    "200,001 in, early 2026": Bill("", EARLY_2026, Tokens(100_000, 10_000, 10_000, 80_001, 1_000)),
    "reads, early October": Bill("", EARLY_OCTOBER, Tokens(cache_read=12_345)),
    "fast": Bill("", NOW, SAMPLE, speed="fast"),
    "batch": Bill("", NOW, SAMPLE, batch=True),
    "batch, 100,001 in": Bill("", NOW, Tokens(30_000, 10_000, 10_000, 50_001, 1_000), batch=True),
    "batch, early October": Bill("", EARLY_OCTOBER, SAMPLE, batch=True),
}
# Where genai-prices 0.2.3 is silent or wrong, and why.
RETIRED = {name for name in NAMES if name.startswith(("claude-3", "claude-opus-4-1", "claude-opus-4-0"))}
RETIRED |= {"claude-sonnet-4-0", "claude-sonnet-4-20250514", "claude-opus-4-20250514"}
EXCLUDED = [
    ({"claude-mythos-5", "claude-mythos-5-1"}, set(SCENARIOS), "not in its data"),
    (
        {"claude-2", "claude-2.0", "claude-2.1", "claude-3-haiku-20240307"}
        | {"claude-3-opus-20240229", "claude-3-opus-latest"},
        {"searches"},
        "no price of a search for models that came before them",
    ),
    ({"claude-sonnet-4-5", "claude-sonnet-4-5-20250929"}, {"200,001 in"}, "keeps a tier that has ended"),
    (
        {"claude-sonnet-4-0", "claude-sonnet-4-20250514"},
        {"200,001 in, early 2026"},
        "lacks a tier that has ended",
    ),
    ({"claude-sonnet-5-5"}, {"reads, early October"}, "lacks the first price of its reads"),
    (RETIRED, {"batch", "batch, 100,001 in"}, "lacks batches of retired models"),
    (
        {name for name in NAMES if not name.startswith(("claude-2", "claude-fable-5-2", "claude-mythos-5-2"))},
        {"batch, early October"},
        "its batches begin on 2026-10-14",
    ),
]
# Models that it has and the table has not: retired before anything that tproxy serves, and undocumented since.
NOT_OURS = {"claude-3-sonnet", "claude-v1"}


def theirs(bill: Bill) -> Decimal | None:
    """Dollars, or None where genai-prices does not know the model."""
    context = {"speed": "fast"} if bill.speed == "fast" else {"processing": "batch"} if bill.batch else None
    usage = Usage(
        input_tokens=bill.tokens.prompt,
        cache_write_tokens=bill.tokens.cache_write_5m + bill.tokens.cache_write_1h,
        cache_write_1h_tokens=bill.tokens.cache_write_1h,
        cache_read_tokens=bill.tokens.cache_read,
        output_tokens=bill.tokens.output,
        web_searches=bill.web_searches,
    )
    moment = datetime.fromtimestamp(bill.at_us // 1_000_000, UTC)
    try:
        result = calc_price(
            usage, bill.model, provider_id="anthropic", genai_request_timestamp=moment, price_context=context
        )
    except LookupError:
        return None
    return Decimal(result.total_price)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_agrees_with_genai_prices_where_that_is_right(scenario: str) -> None:
    excluded = {name for names, scenarios, _ in EXCLUDED if scenario in scenarios for name in names}
    differ = set()
    compared = 0
    for name in NAMES:
        bill = replace(SCENARIOS[scenario], model=name)
        ours = BOOK.price(bill)
        if isinstance(ours, Cost):
            compared += 1
            dollars = theirs(bill)
            if dollars is None or dollars * 1_000_000_000 != ours.total_nano:
                differ.add(name)
        else:
            excluded.discard(name)
    assert differ == excluded
    assert compared > len(differ)


def test_genai_prices_knows_no_other_models() -> None:
    provider = next(p for p in data_snapshot.get_snapshot().providers if p.id == "anthropic")
    unknown = {model.id for model in provider.models if not any(model.is_match(name) for name in NAMES)}
    assert unknown == NOT_OURS
