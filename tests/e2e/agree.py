"""Whether a row of the ledger says what the sandbox's books say of the same exchange."""

from __future__ import annotations

from typing import Any

from tproxy.protocol.pricing import Bill, Cost, Tokens, built_in
from tproxy.sandbox import books


def cost_nano(bill: books.Bill, at_us: int) -> int:
    """What the sandbox would be paid, at list price."""
    cost = built_in().price(
        Bill(
            model=bill.model,
            at_us=at_us,
            tokens=Tokens(
                input=bill.input_tokens,
                cache_write_5m=bill.cache_write_5m_tokens,
                cache_write_1h=bill.cache_write_1h_tokens,
                cache_read=bill.cache_read_tokens,
                output=bill.output_tokens,
            ),
            web_searches=bill.web_search_requests,
            speed=bill.speed,
            geo=bill.inference_geo,
            batch=bill.service_tier == "batch",
        )
    )
    assert isinstance(cost, Cost), cost
    return cost.total_nano


def agrees(row: dict[str, Any], entry: books.Entry) -> None:
    """Assert it, of a whole and billed answer to a Messages request. The first bill is of the model that served."""
    assert (row["ended"], row["certainty"], row["status"]) == ("finished", "exact", 200)
    assert (row["request_id"], row["path"], row["bytes_out"]) == (entry.request_id, entry.path, entry.bytes_sent)
    assert entry.ended == books.COMPLETE
    bill = entry.bills[0]
    assert row["model_served"] == bill.model == entry.model
    assert row["stream"] == entry.stream
    assert [
        row[f"{name}_tokens"] for name in ("input", "cache_write_5m", "cache_write_1h", "cache_read", "output")
    ] == [
        bill.input_tokens,
        bill.cache_write_5m_tokens,
        bill.cache_write_1h_tokens,
        bill.cache_read_tokens,
        bill.output_tokens,
    ]
    assert (row["web_searches"] or 0) == bill.web_search_requests
    assert (row["service_tier"], row["speed"], row["geo"]) == (bill.service_tier, bill.speed, bill.inference_geo)
    assert row["cost_nano"] == sum(cost_nano(each, row["accepted_us"]) for each in entry.bills) > 0
    assert row["cost_nano"] == sum(
        row[f"cost_{part}_nano"] for part in ("input", "output", "cache_read", "cache_write", "tools")
    )
    order = ("accepted_us", "dialled_us", "head_us", "last_byte_us", "ended_us")
    assert sorted(order, key=lambda name: row[name]) == list(order)
