"""The webhook of exchanges: what each POST holds."""

from __future__ import annotations

import json

import pytest
from pydantic import SecretStr

from tests.export.receiver import Received, receiving
from tests.export.stock import id_of, settled
from tproxy.export.record import encoded
from tproxy.export.webhook import WebhookSink
from tproxy.protocol import signature
from tproxy.setting_tables import Webhook

SECRET = SecretStr("whsec_c2VjcmV0")


async def sent(*batches: list[int], secret: SecretStr | None = SECRET) -> list[Received]:
    """The requests of one sink, whose clock shows a second and three quarters more each time."""
    times = iter(1000.75 + 1.75 * n for n in range(len(batches)))
    async with receiving() as receiver:
        sink = WebhookSink(Webhook(url=receiver.url, secret=secret), now=lambda: next(times))
        await sink.open()
        for batch in batches:
            await sink.send([settled(number) for number in batch])
        await sink.aclose()
    return receiver.taken


async def test_a_batch_is_one_body_in_order() -> None:
    batch = [7, 9, 8]
    [request] = await sent(batch)
    assert (request.method, request.path, request.headers["content-type"]) == ("POST", "/hook", "application/json")
    records = await encoded([settled(number) for number in batch])
    assert json.loads(request.body) == {"type": "exchanges", "exchanges": [json.loads(record) for record in records]}
    assert [one["id"] for one in json.loads(request.body)["exchanges"]] == [id_of(number) for number in batch]


async def test_it_is_named_after_its_first_and_its_last_and_signed_when_it_is_sent() -> None:
    first, again, other = await sent([3, 4, 6], [3, 4, 6], [7])
    said = [(each.headers["webhook-id"], each.headers["webhook-timestamp"]) for each in (first, again, other)]
    assert said == [("webhook-3-6", "1000"), ("webhook-3-6", "1002"), ("webhook-7-7", "1004")]
    assert first.body == again.body
    key = signature.key(SECRET.get_secret_value())
    for each, (id, timestamp) in zip((first, again, other), said, strict=True):
        assert each.headers["webhook-signature"] == signature.sign(key, id, int(timestamp), each.body)


async def test_without_a_secret_it_is_not_signed() -> None:
    [request] = await sent([1], secret=None)
    assert request.headers["webhook-id"] == "webhook-1-1"
    assert "webhook-signature" not in request.headers


def test_without_a_url_there_is_no_sink() -> None:
    with pytest.raises(ValueError, match="no URL"):
        WebhookSink(Webhook(secret=SECRET))
