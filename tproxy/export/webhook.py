"""Exchanges as signed POST requests (`protocol/signature.py`): up to 500 in a body

    {"type": "exchanges", "exchanges": [<record>, …]}

The id of a batch is made of its first and last number, so that it is the same when the batch is sent again. After a
restart a batch may be cut otherwise: a receiver that must not take an exchange twice goes by the exchanges' own `id`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import trio

from tproxy.export.post import Poster
from tproxy.export.record import encoded
from tproxy.export.sink import BATCH, LINGER_SECONDS
from tproxy.protocol import signature
from tproxy.setting_tables import Webhook
from tproxy.store.feed import Settled


class WebhookSink:
    """A `Sink` that posts to `settings.url`, which is set.

    Args:
        now: seconds since the epoch.
    """

    name = "webhook"
    batch = BATCH
    linger = LINGER_SECONDS

    def __init__(
        self, settings: Webhook, *, poster: Poster | None = None, now: Callable[[], float] = time.time
    ) -> None:
        if settings.url is None:
            raise ValueError("there is no URL")
        self._url = settings.url
        self._key = None if settings.secret is None else signature.key(settings.secret.get_secret_value())
        self._poster = poster or Poster()
        self._now = now

    async def open(self) -> None:
        """See `Sink`. Nothing is to be loaded that a first `send` could wait for."""
        await trio.lowlevel.checkpoint()

    async def send(self, settled: Sequence[Settled]) -> None:
        """See `Sink`."""
        id, timestamp = f"{self.name}-{settled[0].seq}-{settled[-1].seq}", int(self._now())
        body, headers = await trio.to_thread.run_sync(_made, await encoded(settled), self._key, id, timestamp)
        await self._poster.post(self._url, body, headers)

    async def aclose(self) -> None:
        """See `Sink`."""
        await self._poster.aclose()


def _made(records: Sequence[bytes], key: bytes | None, id: str, timestamp: int) -> tuple[bytes, dict[str, str]]:
    """The body, which may have megabytes, and its headers."""
    body = b'{"type":"exchanges","exchanges":[' + b",".join(records) + b"]}"
    return body, signed(key, id, timestamp, body)


def signed(key: bytes | None, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a body of JSON; without a key it is not signed."""
    headers = {"content-type": "application/json", "webhook-id": id, "webhook-timestamp": str(timestamp)}
    if key is not None:
        headers["webhook-signature"] = signature.sign(key, id, timestamp, body)
    return headers
