"""The connections to one origin, and the rules by which exchanges share them.

An exchange holds a *place* from its start to its end; there are `max_connections` of them, and who finds none waits in
turn, for at most `queue` seconds. Idle connections hold no place, but where a new one is dialled beside them they make
room for it, so idle and active together never exceed the bound.

Rules:
- `_assign` is the whole policy. It decides without waiting; closing and dialling come after it.
- The youngest idle connection is used first. It is probed at that moment, and let go if anything can be read from it.
- A request is sent a second time only when the kernel had taken nothing of it: a POST is never doubled.
- Whatever ends an exchange, one synchronous step gives back its place and puts its connection to rest or closes it. No
  cancellation can come between.

There is no task in the background: connections past their age are closed when an exchange begins or ends, a few at
a time, so that the end of a burst costs no request its time. Without traffic they stay, until the upstream ends them.

This file knows nothing of what the bytes mean.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

import h11
import trio

from tproxy.errors import BadRequest, Header, UpstreamBroken, UpstreamTimeout
from tproxy.wire.dial import dial
from tproxy.wire.outbound import Connection, Head, NothingSent, Upload

__all__ = ["Body", "Bounds", "Head", "Origin", "Pool", "Response"]

ONE_WRITE = 65536  # bytes of a body that go out together with their head
RETIRED_AT_ONCE = 16  # connections that an exchange looks at, and closes, for their age alone

Body = bytes | Callable[[], Awaitable[bytes]]
"""A whole body; or what gives its next piece, b"" at the end. It may raise anything."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port (RFC 6454). All requests of a pool go to one."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Origin:
        """From "https://api.anthropic.com" or "http://[::1]:8080/".

        Raises:
            ValueError: it is not http or https, or says more than scheme, host and port.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise ValueError("an origin starts with http:// or https://")
        if not parts.hostname or not parts.hostname.isascii():
            raise ValueError("an origin names a host, in ASCII")
        if parts.path not in ("", "/") or "?" in url or "#" in url or "@" in parts.netloc or parts.port == 0:
            raise ValueError("an origin has a scheme, a host and a port, and nothing else")
        return cls(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))

    @property
    def host_header(self) -> bytes:
        """The value of `Host`: the port is in it only if it is not the scheme's own (RFC 9110 section 7.2)."""
        default = 443 if self.scheme == "https" else 80
        return (self._bracketed if self.port == default else str(self)).encode()

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        return f"{self._bracketed}:{self.port}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Times in seconds, sizes in bytes."""

    connect: float = 10  # name, TCP and TLS together
    first_byte: float = 600  # from the request's end to the answer's head
    idle: float = 600  # for each part of the answer's body
    write: float = 60  # an upstream that takes nothing
    queue: float = 10  # for a place
    max_connections: int = 4096
    max_idle: float = 30
    max_age: float = 600
    max_head_bytes: int = 65536
    max_headers: int = 256


class Response:
    """The answer of one exchange, valid inside its context.

    Attributes:
        head: the final head.
        reused: whether the connection had served an exchange before.
        complete: whether `receive` has given all of the body; it may know that together with the last bytes.
    """

    __slots__ = ("_connection", "_idle", "_origin", "_upload", "complete", "head", "reused")

    def __init__(
        self, head: Head, connection: Connection, upload: Upload, origin: Origin, idle: float, *, reused: bool
    ) -> None:
        self.head = head
        self.reused = reused
        self.complete = False
        self._connection = connection
        self._upload = upload
        self._origin = origin
        self._idle = idle

    def at_hand(self) -> bytes:
        """Body bytes that came with the head, or b""; `complete` tells if that was all. Never waits, nor raises."""
        if self.complete:
            return b""
        return self._given(self._connection.at_hand())

    async def receive(self) -> bytes:
        """All body bytes that one read of the socket brought; b"" exactly at the clean end.

        Raises:
            UpstreamBroken: the body was cut, or is not HTTP.
            UpstreamTimeout: nothing of the body came for `idle` seconds.
        """
        if self.complete:
            await trio.lowlevel.checkpoint()
            return b""  # the connection may serve others now
        with trio.move_on_after(self._idle):
            return self._given(await self._connection.receive())
        raise UpstreamTimeout(f"{self._origin} sent nothing of its answer for {self._idle:g} s")

    def _given(self, data: bytes) -> bytes:
        if self._connection.ended:
            self.complete = True
            self._upload.stop()
        return data


class Act(Enum):
    DIAL = "dial"
    WAIT = "wait"


class Pool:
    """Connections to one origin.

    Args:
        tls: for a https origin, from `dial.tls_context`.
    """

    def __init__(self, origin: Origin, bounds: Bounds, tls: ssl.SSLContext | None) -> None:
        if (origin.scheme == "https") != (tls is not None):
            raise ValueError("a https origin, and no other, needs a TLS context")
        self.origin = origin
        self.bounds = bounds
        self._tls = tls
        self._session: ssl.SSLSession | None = None
        self._idle: deque[Connection] = deque()  # the one that rests longest first
        self._places = trio.Semaphore(bounds.max_connections, max_value=bounds.max_connections)
        self._closed = False

    def __repr__(self) -> str:
        active = self.bounds.max_connections - self._places.value
        waiting = self._places.statistics().tasks_waiting
        return f"<Pool {self.origin}: idle {len(self._idle)}, active {active}, waiting {waiting}>"

    @asynccontextmanager
    async def exchange(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[Header],
        body: Body,
        on_sending: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[Response]:
        """Send a request, and give the answer as soon as its head is there.

        Leaving the context before `receive` gave b"" closes the connection at once.

        Args:
            headers: complete, with host and content-length or transfer-encoding; they go out in this spelling.
            body: a callable is asked for pieces while the answer is awaited and read, until it gives b"", the
                upstream stops reading, or the answer is complete. What it raises comes out of the context as it is.
            on_sending: called before the first byte of the request can have been sent.

        Raises:
            UpstreamUnreachable: no connection.
            UpstreamBroken: it ended, or what came was not HTTP, before the head of an answer.
            UpstreamTimeout: no place, no progress in sending, or no answer in time.
            BadRequest: what is to be sent is not HTTP.
        """
        request = _request(method, target, headers)
        whole = body if isinstance(body, bytes) and len(body) <= ONE_WRITE else None
        connection, retired = await self._enter()
        reused = connection is not None
        response: Response | None = None
        try:
            if connection is not None:
                on_sending()
                try:
                    await connection.start(request, whole)
                except NothingSent:
                    connection.close()
                    connection, reused = None, False
            if connection is None:
                connection = await self._dial()
                on_sending()
                await connection.start(request, whole)
            upload = Upload(connection, self.bounds.first_byte)
            sending: AbstractAsyncContextManager[None] = nullcontext()
            if whole is not None:
                upload.request_ended()
            else:
                sending = upload.sending(_pieces(body) if isinstance(body, bytes) else body)
            async with sending:
                await _close_politely(retired)  # while the upstream works on its answer
                head = await self._head(connection, upload.patience)
                if not reused:
                    self._session = connection.session() or self._session
                response = Response(head, connection, upload, self.origin, self.bounds.idle, reused=reused)
                yield response
        finally:
            for old in retired:
                old.close()
            self._leave(connection, clean=response is not None and response.complete)
        await _close_politely(self._expired(trio.current_time()))

    async def aclose(self) -> None:
        """Close idle connections now, and those in use when their exchanges end.

        Exchanges may still come, from whoever took hold of the pool before; each dials a connection of its own.
        """
        self._closed = True
        idle, self._idle = self._idle, deque()
        await _close_politely(idle)

    def _assign(self, now: float, *, placed: bool) -> tuple[Connection | Act, list[Connection]]:
        """The policy: what serves an exchange (an idle connection, a dial, or it has to wait for a place), and what
        is to be closed on this occasion. Takes the place, unless the exchange is `placed` already.
        """
        if not placed:
            try:
                self._places.acquire_nowait()
            except trio.WouldBlock:
                return Act.WAIT, []
        retired = self._expired(now)
        idle, bounds = self._idle, self.bounds
        for _ in range(min(len(idle), RETIRED_AT_ONCE)):
            youngest = idle.pop()
            if youngest.usable() and not youngest.expired(now, bounds.max_idle, bounds.max_age):
                return youngest, retired
            retired.append(youngest)
        while len(idle) > self._places.value:
            retired.append(idle.popleft())
        return Act.DIAL, retired

    def _expired(self, now: float) -> list[Connection]:
        """Take out those that have rested for too long, RETIRED_AT_ONCE at most. The caller closes them."""
        idle, bounds = self._idle, self.bounds
        expired: list[Connection] = []
        while len(expired) < RETIRED_AT_ONCE and idle and idle[0].expired(now, bounds.max_idle, bounds.max_age):
            expired.append(idle.popleft())
        return expired

    async def _enter(self) -> tuple[Connection | None, list[Connection]]:
        """Returns holding a place, which `_leave` gives back."""
        await trio.lowlevel.checkpoint_if_cancelled()
        choice, retired = self._assign(trio.current_time(), placed=False)
        if choice is Act.WAIT:
            with trio.move_on_after(self.bounds.queue) as queue:
                await self._places.acquire()
            if queue.cancelled_caught:
                raise UpstreamTimeout(
                    f"all {self.bounds.max_connections} connections to {self.origin} were in use "
                    f"for {self.bounds.queue:g} s"
                )
            choice, retired = self._assign(trio.current_time(), placed=True)
        return (None if isinstance(choice, Act) else choice), retired

    async def _dial(self) -> Connection:
        bounds, origin = self.bounds, self.origin
        link = await dial(
            origin.host,
            origin.port,
            self._tls,
            connect=bounds.connect,
            write=bounds.write,
            session=self._session,
        )
        return Connection(link, name=str(origin), max_head_bytes=bounds.max_head_bytes, max_headers=bounds.max_headers)

    async def _head(self, connection: Connection, patience: trio.CancelScope) -> Head:
        with patience:
            return await connection.receive_head()
        if connection.deaf:
            raise UpstreamBroken(f"{self.origin} stopped reading the request and gave no answer")
        raise UpstreamTimeout(f"{self.origin} gave no answer within {self.bounds.first_byte:g} s")

    def _leave(self, connection: Connection | None, *, clean: bool) -> None:
        """The end of every exchange: synchronous, so that nothing can interrupt it."""
        if connection is not None:
            if clean and connection.rest() and not self._closed:
                self._idle.append(connection)
            else:
                connection.close()
        self._places.release()


async def _close_politely(connections: Collection[Connection]) -> None:
    """Close idle connections; those that a cancellation leaves over, at once."""
    try:
        for connection in connections:
            await connection.aclose()
    finally:
        for connection in connections:
            connection.close()


def _pieces(body: bytes) -> Callable[[], Awaitable[bytes]]:
    """A large body, in pieces that neither TLS nor h11 copies at one go."""
    starts = iter(range(0, len(body), ONE_WRITE))

    async def piece() -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        start = next(starts, len(body))
        return body[start : start + ONE_WRITE]

    return piece


def _request(method: bytes, target: bytes, headers: Sequence[Header]) -> h11.Request:
    try:
        return h11.Request(method=method, target=target, headers=list(headers))
    except h11.LocalProtocolError:
        # h11's own words quote the header, which may be a credential.
        raise BadRequest("The request has a line that HTTP/1.1 cannot carry.") from None
