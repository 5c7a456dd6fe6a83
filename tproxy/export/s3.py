"""Exchanges as objects of an S3-compatible store: gzipped lines of JSON.

    <prefix>/2026/11/25/000000000001-000000000500.jsonl.gz    the day (UTC) on which they ended; the first, the last

One object is written every `every_seconds`, or when `BATCH_MAX` exchanges wait, for each day that they ended on. Until
then they are gathered nowhere: they are in the ledger, and the cursor stays before them. An object that is written
again has the same name and the same bytes; after a kill in between it may be followed by one that holds its exchanges,
too.

obstore does the rest: signatures, TLS, the machine's own credentials where none are set. It is loaded with the first
object, and works in a thread; `REQUEST_SECONDS` ends what hangs there.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import trio

from tproxy.export.jsonl import ended_day
from tproxy.export.record import encoded
from tproxy.export.sink import NotTaken
from tproxy.setting_tables import S3
from tproxy.store.feed import Settled

if TYPE_CHECKING:
    from obstore.store import S3Store

BATCH_MAX: Final = 5000
REQUEST_SECONDS: Final = 30

# What the names of obstore's exceptions mean; all others may pass.
_FINAL: Final = {
    "PermissionDeniedError": "it denies the permission",
    "UnauthenticatedError": "it does not accept the credentials",
    "FileNotFoundError": "there is no such bucket",
    "InvalidPathError": "the prefix is no name for objects",
    "UnknownConfigurationKeyError": "it is not configured rightly",
}


class S3Sink:
    """A `Sink` that writes to `settings.bucket`, which is set."""

    name = "s3"
    batch = BATCH_MAX

    def __init__(self, settings: S3) -> None:
        if settings.bucket is None:
            raise ValueError("there is no bucket")
        self._settings = settings
        self._bucket = settings.bucket
        self._prefix = settings.prefix.strip("/")
        self._store: S3Store | None = None
        self.linger = settings.every_seconds

    async def open(self) -> None:
        """See `Sink`. Nothing is to be loaded that a first `send` could wait for."""
        await trio.lowlevel.checkpoint()

    async def send(self, settled: Sequence[Settled]) -> None:
        """See `Sink`."""
        lines = await encoded(settled)
        for day, group in groupby(range(len(settled)), lambda n: ended_day(settled[n])):
            numbers = list(group)
            first, last = settled[numbers[0]].seq, settled[numbers[-1]].seq
            name = f"{day[:4]}/{day[4:6]}/{day[6:]}/{first:012d}-{last:012d}.jsonl.gz"
            path = f"{self._prefix}/{name}" if self._prefix else name
            part = lines[numbers[0] : numbers[-1] + 1]
            await trio.to_thread.run_sync(self._put, path, part, abandon_on_cancel=True)

    async def aclose(self) -> None:
        """See `Sink`."""
        self._store = None
        await trio.lowlevel.checkpoint()

    def _put(self, path: str, lines: Sequence[bytes]) -> None:
        import obstore

        body = gzip.compress(b"\n".join(lines) + b"\n", mtime=0)
        try:
            if self._store is None:
                self._store = self._opened()
            obstore.put(self._store, path, body, attributes={"Content-Type": "application/gzip"}, use_multipart=False)
        except Exception as fault:  # its own exceptions, and some of Python's; their texts hold names and answers
            kind = type(fault).__name__
            raise NotTaken(_FINAL.get(kind, "it could not be written"), final=kind in _FINAL) from None

    def _opened(self) -> S3Store:
        from obstore.store import S3Store

        settings = self._settings
        config: dict[str, Any] = {"region": settings.region}
        if settings.endpoint is not None:
            config["endpoint"] = settings.endpoint
        if settings.access_key_id is not None and settings.secret_access_key is not None:
            config["access_key_id"] = settings.access_key_id.get_secret_value()
            config["secret_access_key"] = settings.secret_access_key.get_secret_value()
        return S3Store(
            self._bucket,
            config=config,  # type: ignore[arg-type]
            client_options={
                "allow_http": (settings.endpoint or "").startswith("http://"),
                "connect_timeout": "10s",
                "timeout": f"{REQUEST_SECONDS}s",
            },
            retry_config={"max_retries": 0},  # trying again is not its task
        )
