"""From a request to a span: the whole house, before a receiver of OTLP; and what becomes of a traceparent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.house import open_house, open_house_before
from tests.e2e.raw import ask, post, values
from tests.export.collector import collector, reply
from tests.wire.peer import OK, answers

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STATE = "vendor=a:b,other=c"
BODY = b'{"model":"claude-opus-5-5","max_tokens":8,"stream":true,"messages":[{"role":"user","content":"Hello"}]}'

# Not what W3C Trace Context, section 3.2, has.
MALFORMED = {
    "no structure": "trace",
    "capitals": PARENT.upper(),
    "no trace": "00-" + "0" * 32 + PARENT[35:],
    "no parent": PARENT[:36] + "0" * 16 + "-01",
    "no such version": "ff" + PARENT[2:],
    "more than it should be": PARENT + "-00",
}


def exported(url: str) -> str:
    return f'[tproxy.export.otlp]\nendpoint = "{url}"\nservice_name = "gateway"\n'


async def test_a_span_tells_of_its_row(tmp_path: Path) -> None:
    async with collector() as received, open_house(tmp_path, tables=exported(received.url)) as house:
        answer = await ask(
            house.address, post("/v1/messages", BODY, ("traceparent", PARENT), ("x-tproxy-customer", "acme"))
        )
        assert answer.status == 200
        [span] = await received.wait_for(1)
        row = await house.row(answer.id)
    assert (span.trace_id, span.parent_id) == (PARENT[3:35], PARENT[36:52])
    assert span.name == f"chat {row['model_asked']}"
    assert (span.start, span.end) == (row["accepted_us"] * 1000, row["ended_us"] * 1000)
    assert span.resource["service.name"] == "gateway"
    assert span.status == 0
    told = span.attributes
    assert told["tproxy.exchange.id"] == answer.id
    assert told["user.id"] == row["customer"] == "acme"
    assert told["gen_ai.response.model"] == row["model_served"]
    assert told["gen_ai.usage.output_tokens"] == row["output_tokens"] > 0
    assert told["gen_ai.usage.input_tokens"] >= row["input_tokens"] > 0
    assert told["tproxy.cost_nano_usd"] == row["cost_nano"] > 0
    assert told["tproxy.certainty"] == "exact"
    assert [name for name, _ in span.events] == ["tproxy.head", "tproxy.first_content"]


async def test_a_receiver_that_is_away_gets_all_of_it_later(tmp_path: Path) -> None:
    away = reply(503, b"", "retry-after: 0")
    async with collector(away, away, reply()) as received, open_house(tmp_path, tables=exported(received.url)) as house:
        asked = [(await ask(house.address, post("/v1/messages", BODY))).id for _ in range(3)]
        spans = await received.wait_for(3)
        assert [span.attributes["tproxy.exchange.id"] for span in spans] == asked
        assert [span.trace_id for span in spans] == [id.replace("-", "") for id in asked]


@pytest.mark.parametrize("forwarded", [None, True, False])
async def test_a_traceparent_goes_on_as_it_came_unless_told_otherwise(tmp_path: Path, forwarded: bool | None) -> None:
    upstream = "" if forwarded is None else f"forward_traceparent = {str(forwarded).lower()}"
    async with open_house_before(tmp_path, answers(OK), upstream=upstream) as (house, peer):
        headers = [("Traceparent", PARENT), ("TraceState", STATE), ("tracestate", "third=d"), ("x-trace", "kept")]
        answer = await ask(house.address, post("/v1/messages", BODY, *headers))
        assert answer.status == 200
        row = await house.row(answer.id)
    sent = peer.lines[0].requests[0].headers
    kept = forwarded is not False
    assert values(sent, "traceparent") == ([PARENT.encode()] if kept else [])
    assert values(sent, "tracestate") == ([STATE.encode(), b"third=d"] if kept else [])
    assert values(sent, "x-trace") == [b"kept"]
    assert row["traceparent"] == PARENT


@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_traceparent_is_not_recorded(tmp_path: Path, header: str) -> None:
    async with open_house_before(tmp_path, answers(OK)) as (house, peer):
        answer = await ask(house.address, post("/v1/messages", BODY, ("traceparent", header)))
        row = await house.row(answer.id)
    assert answer.status == 200
    assert row["traceparent"] is None
    assert values(peer.lines[0].requests[0].headers, "traceparent") == [header.encode()]
