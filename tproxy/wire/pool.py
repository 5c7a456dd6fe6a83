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
a time, so that the end of a burst costs no request its time. Without traffic they stay, until the upstream ends them,
which closes them here too.

This file knows nothing of what the bytes mean.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import trio

from tproxy.errors import Header, UpstreamBroken, UpstreamTimeout
from tproxy.wire.dial import dial
from tproxy.wire.heads import Head, RequestHead, request_head
from tproxy.wire.outbound import Connection, NothingSent
from tproxy.wire.response import Response
from tproxy.wire.upload import Pieces, Upload, in_pieces

__all__ = ["Body", "Bounds", "Head", "Origin", "Pool", "Response"]

ONE_WRITE = 262_144  # bytes of a body that are offered to the kernel together with their head
RETIRED_AT_ONCE = 16  # connections that an exchange looks at, and closes, for their age alone

Body = bytes | Pieces
"""A whole body; or what gives its next piece."""


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


class Act(Enum):
    DIAL = "dial"
    WAIT = "wait"


class Pool:
    """Connections to one origin.

    Args:
        tls: for a https origin, from `dial.tls_context`.

    Attributes:
        dials, reuses: how many requests were sent on a new connection, and on one that had rested.
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
        self._retired: list[Connection] = []
        self._closed = False
        self.dials = self.reuses = 0

    def __repr__(self) -> str:
        idle, active, waiting = self.load
        return f"<Pool {self.origin}: idle {idle}, active {active}, waiting {waiting}>"

    @property
    def load(self) -> tuple[int, int, int]:
        """How many connections are idle, how many places are taken, and how many exchanges wait for one."""
        waiting = self._places.statistics().tasks_waiting
        return len(self._idle), self.bounds.max_connections - self._places.value, waiting

    def exchange(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[Header],
        body: Body,
        on_sending: Callable[[], None] = lambda: None,
    ) -> AbstractAsyncContextManager[Response]:
        """Send a request, and give the answer as soon as its head is there.

        Leaving the context before `receive` gave b"" closes the connection at once.

        Args:
            headers: complete, with host and content-length or transfer-encoding; they go out in this spelling.
            body: a callable is asked for pieces while the answer is awaited and read, until it gives b"", the
                upstream stops reading, or the answer is complete. What it raises comes out of the context as it is.
            on_sending: called before the first byte of the request can have been sent.

        Raises, when the context is entered:
            UpstreamUnreachable: no connection.
            UpstreamBroken: it ended, or what came was not HTTP, before the head of an answer.
            UpstreamTimeout: no place, no progress in sending, or no answer in time.
            BadRequest: what is to be sent is not HTTP.
        """
        return _Exchange(self, method, target, headers, body, on_sending)

    async def aclose(self) -> None:
        """Close idle connections now, and those in use when their exchanges end.

        Exchanges may still come, from whoever took hold of the pool before; each dials a connection of its own.
        """
        self._closed = True
        self._retired += self._idle
        self._idle.clear()
        self._close_retired()
        await trio.lowlevel.checkpoint()

    def _assign(self, now: float, *, placed: bool) -> Connection | Act:
        """The policy: what serves an exchange: an idle connection, a dial, or it has to wait for a place. Takes the
        place, unless the exchange is `placed` already, and retires what is to be closed on this occasion.
        """
        if not placed:
            try:
                self._places.acquire_nowait()
            except trio.WouldBlock:
                return Act.WAIT
        self._retire_expired(now)
        idle, bounds = self._idle, self.bounds
        for _ in range(min(len(idle), RETIRED_AT_ONCE)):
            youngest = idle.pop()
            if youngest.usable() and not youngest.expired(now, bounds.max_idle, bounds.max_age):
                youngest.attend(None)
                return youngest
            self._retired.append(youngest)
        while len(idle) > self._places.value:
            self._retired.append(idle.popleft())
        return Act.DIAL

    def _retire_expired(self, now: float) -> None:
        """Take out those that have rested for too long, RETIRED_AT_ONCE at most."""
        idle, bounds = self._idle, self.bounds
        for _ in range(RETIRED_AT_ONCE):
            if not idle or not idle[0].expired(now, bounds.max_idle, bounds.max_age):
                break
            self._retired.append(idle.popleft())

    def _close_retired(self) -> None:
        """Not done as soon as they are retired: a request that is to be sent goes first."""
        while self._retired:
            self._retired.pop().close(politely=True)

    async def _enter(self) -> Connection | None:
        """Returns holding a place, which `_leave` gives back."""
        await trio.lowlevel.checkpoint_if_cancelled()
        choice = self._assign(trio.current_time(), placed=False)
        if choice is Act.WAIT:
            with trio.move_on_after(self.bounds.queue) as queue:
                await self._places.acquire()
            if queue.cancelled_caught:
                raise UpstreamTimeout(
                    f"all {self.bounds.max_connections} connections to {self.origin} were in use "
                    f"for {self.bounds.queue:g} s"
                )
            choice = self._assign(trio.current_time(), placed=True)
        return None if isinstance(choice, Act) else choice

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

    def _leave(self, connection: Connection | None, *, clean: bool) -> None:
        """The end of every exchange: synchronous, so that nothing can interrupt it."""
        if connection is not None:
            if clean and connection.rest() and not self._closed:
                self._idle.append(connection)
                connection.attend(partial(self._ended, connection))
            else:
                connection.close()
        self._places.release()
        self._retire_expired(trio.current_time())
        self._close_retired()

    def _ended(self, connection: Connection) -> None:
        """The upstream has ended a connection that rested."""
        with suppress(ValueError):  # it has been retired
            self._idle.remove(connection)
        connection.close()


class _Exchange(AbstractAsyncContextManager[Response]):
    """See `Pool.exchange`."""

    __slots__ = ("_asked", "_connection", "_pool", "_response", "_sending")

    def __init__(
        self,
        pool: Pool,
        method: bytes,
        target: bytes,
        headers: Sequence[Header],
        body: Body,
        on_sending: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._asked = (method, target, headers, body, on_sending)
        self._connection: Connection | None = None
        self._response: Response | None = None
        self._sending: AbstractAsyncContextManager[Head] | None = None

    async def __aenter__(self) -> Response:
        pool = self._pool
        method, target, headers, body, on_sending = self._asked
        del self._asked  # a request must not be held for as long as its answer lasts
        request = request_head(method, target, headers)
        self._connection = await pool._enter()
        try:
            whole = body if isinstance(body, bytes) and len(body) <= ONE_WRITE else None
            connection, left, reused = await self._start(request, whole, on_sending)
            pool._close_retired()  # while the upstream works on its answer
            pieces, upload = None, None
            if whole is None:
                pieces = in_pieces(body) if isinstance(body, bytes) else body
            if left or pieces is not None:
                upload = Upload(connection, pool.bounds.first_byte)
                self._sending = upload.sending(left, pieces, partial(self._head, connection, upload.patience))
            del request, headers, body, whole, left, pieces
            if self._sending is None:
                head = await self._head(connection, trio.CancelScope(relative_deadline=pool.bounds.first_byte))
            else:
                head = await self._sending.__aenter__()
            if not reused:
                pool._session = connection.session() or pool._session
            self._response = Response(head, connection, upload, pool.bounds.idle, reused=reused)
            return self._response
        except BaseException:
            pool._leave(self._connection, clean=False)
            raise

    def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Coroutine[Any, Any, bool | None]:
        return self._end(kind, exc, trace)

    async def _end(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return None if self._sending is None else await self._sending.__aexit__(kind, exc, trace)
        finally:
            self._pool._leave(self._connection, clean=self._response is not None and self._response.complete)

    async def _start(
        self, head: RequestHead, body: bytes | None, on_sending: Callable[[], None]
    ) -> tuple[Connection, memoryview, bool]:
        """Send on the connection that the pool gave, or else on a new one: which, what is left, and whether it was
        the pool's.
        """
        if (connection := self._connection) is not None:
            on_sending()
            try:
                left = connection.start(head, body)
                self._pool.reuses += 1
                return connection, left, True
            except NothingSent:
                connection.close()
        self._connection = None
        self._connection = connection = await self._pool._dial()
        self._pool.dials += 1
        on_sending()
        return connection, connection.start(head, body), False

    async def _head(self, connection: Connection, patience: trio.CancelScope) -> Head:
        with patience:
            return await connection.receive_head()
        if connection.deaf:
            raise UpstreamBroken(f"{connection.name} stopped reading the request and gave no answer")
        raise UpstreamTimeout(f"{connection.name} gave no answer within {self._pool.bounds.first_byte:g} s")
