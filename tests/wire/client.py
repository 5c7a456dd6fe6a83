"""The client's side of the wire tests: a pool, what is asked through it, and the check that nothing is left of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.wire.peer import CA, Peer
from tproxy.errors import Header
from tproxy.wire.dial import tls_context
from tproxy.wire.pool import Body, Bounds, Origin, Pool, Response

HOST: Header = (b"host", b"api.test")
BOUNDS = Bounds(connect=3, first_byte=20, idle=7, write=5, queue=2, max_connections=2, max_idle=30, max_age=100)
BIG = bytes(16 << 20)  # more than the sockets' buffers hold


def make_pool(origin: Origin, bounds: Bounds = BOUNDS) -> Pool:
    if origin.scheme == "http":
        return Pool(origin, bounds, None)
    with CA.cert_pem.tempfile() as ca_file:
        return Pool(origin, bounds, tls_context(Path(ca_file)))


@asynccontextmanager
async def pool_to(upstream: Peer, bounds: Bounds = BOUNDS) -> AsyncIterator[Pool]:
    """A pool that has to be empty at the end, with every connection closed."""
    pool = make_pool(upstream.origin, bounds)
    yield pool
    await pool.aclose()
    assert counts(pool) == (0, 0, 0)
    with trio.fail_after(5):
        for line in upstream.lines:
            line.done.set()
            await line.gone.wait()


def counts(pool: Pool) -> tuple[int, int, int]:
    """idle, active, waiting: as the repr shows them."""
    words = repr(pool).rstrip(">").replace(",", "").split()
    assert words[2::2] == ["idle", "active", "waiting"]
    return int(words[3]), int(words[5]), int(words[7])


def ask(pool: Pool, body: Body = b"", *headers: Header) -> AbstractAsyncContextManager[Response]:
    framing: Header = (b"transfer-encoding", b"chunked")
    if isinstance(body, bytes):
        framing = (b"content-length", b"%d" % len(body))
    return pool.exchange(b"POST", b"/v1/messages", [HOST, framing, *headers], body)


async def read(response: Response) -> bytes:
    parts = []
    while part := await response.receive():
        parts.append(part)
    return b"".join(parts)


async def fetch(pool: Pool, body: Body = b"", *headers: Header) -> tuple[bytes, bool]:
    """The body of the answer, and whether the connection was reused."""
    async with ask(pool, body, *headers) as response:
        return await read(response), response.reused


def pieces(*parts: bytes) -> Callable[[], Any]:
    """A body, piece by piece; to ask for more after its end is an error."""
    left = iter([*parts, b""])

    async def piece() -> bytes:
        await trio.lowlevel.checkpoint()
        return next(left)

    return piece


async def endless() -> bytes:
    """A body of which nothing comes."""
    await trio.sleep_forever()
    raise AssertionError
