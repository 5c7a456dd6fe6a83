"""One HTTP/1.1 client connection: h11 on a link, in four states.

    NEW ──start──► ACTIVE ──rest──► IDLE ──start──► ACTIVE ──► …        any ──close──► CLOSED

An exchange on it is: `start` (the head goes out, or all of a small request), `send` for the pieces of a larger body,
`receive_head`, `receive` until it gives b"", `rest`. `send` may run in another task beside the two that read, since
an upstream may answer before it has read all.

Rules:
- An answer is given as it came: names in the peer's spelling, order and repetition; a body that broke raises after
  all that had arrived was given out. Only 1xx heads are swallowed, and trailers dropped.
- A write that fails makes the connection `deaf`, and raises nothing if the upstream may have left an answer: it is
  the reader who finds out.
- `rest` agrees to another exchange only if all went by the book: request and answer whole, both sides willing, not
  a byte too many.

It knows no deadlines but the link's own: who calls, sets them. Faults name the peer and never quote what it sent.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum

import h11
import trio

from tproxy.errors import BadRequest, Header, UpstreamBroken, UpstreamTimeout
from tproxy.wire.dial import READ_BYTES, Link

LAST_WORD = 2.0  # seconds for the answer that an upstream may have left before it stopped reading
MAX_PARTS = 512  # chunks that are joined at a time: a read full of tiny ones must not hold up everyone else
POLITE_CLOSE = 1.0  # seconds for a TLS close_notify, which needs no answer


class State(Enum):
    NEW = "new"
    ACTIVE = "active"
    IDLE = "idle"
    CLOSED = "closed"


class NothingSent(UpstreamBroken):
    """The connection was dead before the kernel took a byte of the request, which may thus be sent elsewhere."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a final answer (200 to 599), headers as the peer spelled, ordered and repeated them."""

    status: int
    reason: bytes
    headers: list[Header]
    http_version: bytes


class Connection:
    """A client connection.

    Args:
        link: fresh from `dial`; the connection closes it.
        name: `host:port`, for messages.
        max_head_bytes, max_headers: bounds on one head of an answer.
    """

    def __init__(self, link: Link, *, name: str, max_head_bytes: int, max_headers: int) -> None:
        self.state = State.NEW
        self.deaf = False
        self.answered = False  # the head of the current answer has come
        self.ended = False  # all of it has
        self.born = self.rested = trio.current_time()
        self._link = link
        self._name = name
        self._max_head_bytes = max_head_bytes
        self._max_headers = max_headers
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=max_head_bytes)
        self._eof = False
        self._behind = False  # what was read may hold more of the body than was given out

    def __repr__(self) -> str:
        return f"<Connection {self._name}: {self.state.value}>"

    def expired(self, now: float, max_idle: float, max_age: float) -> bool:
        """Whether it has rested or lived for too long (seconds on trio's clock)."""
        return now - self.rested > max_idle or now - self.born > max_age

    def usable(self) -> bool:
        """Whether a request may be sent on it. Asks the socket, and never waits."""
        return self.state is State.IDLE and self._link.quiet()

    def session(self) -> ssl.SSLSession | None:
        """See `Link.session`."""
        return self._link.session()

    async def start(self, request: h11.Request, body: bytes | None) -> None:
        """Send the head; or, with `body`, the whole request in one write.

        Raises:
            NothingSent: the connection was dead.
            UpstreamTimeout: the upstream took nothing for too long.
            BadRequest: `body` is not as long as the head says.
        """
        self.state = State.ACTIVE
        self.answered = self.ended = False
        data = self._encode(request)
        if body is not None:
            data += self._encode(h11.Data(data=body)) + self._encode(h11.EndOfMessage())
        before = self._link.tcp.sent
        await self._write(data)
        if self.deaf and self._link.tcp.sent == before:
            raise NothingSent(f"{self._name} had closed the connection")

    async def send(self, piece: bytes) -> None:
        """Send a piece of the body; b"" ends it.

        Raises:
            UpstreamTimeout: the upstream took nothing for too long, and has not answered either.
            BadRequest: the body is not as long as the head says.
        """
        await self._write(self._encode(h11.Data(data=piece) if piece else h11.EndOfMessage()))

    async def receive_head(self) -> Head:
        """Wait for the head of the final answer.

        Raises:
            UpstreamBroken: the connection ended, or what came is no answer that a client could be given.
        """
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            event = self._next_event()
            if event is h11.NEED_DATA:
                await self._read()
            elif isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                self._check_bounds(event)
            elif isinstance(event, h11.Response):
                self._check_bounds(event)
                self._check_meaning(event)
                self.answered = True
                return Head(event.status_code, event.reason, event.headers.raw_items(), event.http_version)
            else:
                raise self._broken("switched protocols unasked")

    async def receive(self) -> bytes:
        """All body bytes that one read brought; b"" at the clean end, and from then on.

        Of a read of more than MAX_PARTS chunks, the rest is given by the calls that follow.

        Raises:
            UpstreamBroken: the answer was cut, or is not HTTP.
        """
        if self._behind:
            await trio.lowlevel.checkpoint()  # no read gives others their turn
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        while not (data := self._take_body()) and not self.ended:
            await self._read()
        return data

    def at_hand(self) -> bytes:
        """Body bytes that came with the head, or b"". Never waits; a fault is left for `receive` to raise."""
        try:
            return self._take_body()
        except UpstreamBroken:
            return b""

    def rest(self) -> bool:
        """Make ready for another exchange. False: this connection cannot have one, and has to be closed."""
        if (
            self.state is not State.ACTIVE
            or not self.ended
            or self.deaf
            or self._h11.our_state is not h11.DONE  # MUST_CLOSE if either side said so
            or self._h11.trailing_data[0]
            or self._eof
            or not self._link.quiet()
        ):
            return False
        self._h11.start_next_cycle()
        self.state = State.IDLE
        self.rested = trio.current_time()
        return True

    def close(self) -> None:
        """Close at once: the upstream sees it now. Safe in any state, more than once."""
        self.state = State.CLOSED
        self._link.close()

    async def aclose(self) -> None:
        """Close an idle connection as TLS has it, with a close_notify; at once if that is cancelled or takes long."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            with trio.move_on_after(POLITE_CLOSE):
                await self._link.stream.aclose()
        finally:
            self.close()

    def _take_body(self) -> bytes:
        """Body bytes that are at hand. Bytes that came before a fault are given out before it is raised."""
        if self.ended:
            return b""
        parts: list[bytes] = []
        try:
            while isinstance(event := self._next_event(), h11.Data):
                parts.append(event.data)
                if len(parts) == MAX_PARTS:
                    break
            self.ended = isinstance(event, h11.EndOfMessage)
            self._behind = isinstance(event, h11.Data)
        except UpstreamBroken:
            if not parts:  # else it is raised anew by the next call: h11 stays in its error
                raise
        return b"".join(parts)

    async def _read(self) -> None:
        try:
            data = await self._link.stream.receive_some(READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # A reset, or a TLS end without close_notify: even for a body that only the end delimits, a cut.
            raise self._broken("cut the connection before its answer was whole") from None
        self._eof = not data
        self._h11.receive_data(bytes(data))

    async def _write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if not data:
            return
        try:
            await self._link.stream.send_all(data)
        except trio.BrokenResourceError:
            self.deaf = True  # the reader has found TLS broken, and will tell
        if self._link.tcp.deaf:
            self.deaf = True
            if self._link.tcp.deaf == "stalled" and not self.answered:
                raise UpstreamTimeout(f"{self._name} stopped taking the request")

    def _encode(self, event: h11.Event) -> bytes:
        try:
            return self._h11.send(event) or b""
        except h11.LocalProtocolError:
            raise BadRequest("The request body is not as long as its content-length says.") from None

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as exc:
            # h11's own words may quote the peer's bytes: they go no further.
            if exc.error_status_hint == 431:
                raise self._broken(f"sent a head of more than {self._max_head_bytes} bytes") from None
            if self._eof:
                raise self._broken("closed the connection before its answer was whole") from None
            raise self._broken("sent an answer that is not valid HTTP/1.1") from None

    def _check_bounds(self, event: h11.InformationalResponse | h11.Response) -> None:
        """h11 bounds only heads that are incomplete after a read."""
        headers = event.headers.raw_items()
        if len(headers) > self._max_headers:
            raise self._broken(f"sent more than {self._max_headers} headers")
        if sum(len(name) + len(value) + 4 for name, value in headers) > self._max_head_bytes:
            raise self._broken(f"sent a head of more than {self._max_head_bytes} bytes")

    def _check_meaning(self, event: h11.Response) -> None:
        if event.status_code > 599 or not event.http_version.startswith(b"1."):
            raise self._broken("sent a status line that means nothing in HTTP/1.1")
        names = {name for name, _ in event.headers}
        if b"transfer-encoding" in names and b"content-length" in names:
            # Two lengths for one body: what a response-splitting upstream would send (RFC 9112 section 6.3).
            raise self._broken("sent both a transfer-encoding and a content-length")

    def _broken(self, what: str) -> UpstreamBroken:
        return UpstreamBroken(f"{self._name} {what}")


class Upload:
    """The sending of a request, as far as it goes on beside the reading of the answer.

    `patience` is the wait for the answer's head. It has no end while the request is under way, since sending has
    deadlines of its own.
    """

    def __init__(self, connection: Connection, first_byte: float) -> None:
        self.patience = trio.CancelScope()
        self._connection = connection
        self._first_byte = first_byte
        self._scope = trio.CancelScope()
        self._fault: Exception | None = None

    def request_ended(self) -> None:
        wait = LAST_WORD if self._connection.deaf else self._first_byte
        self.patience.deadline = trio.current_time() + wait

    def stop(self) -> None:
        """The answer is complete: what is left of the body interests nobody."""
        self._scope.cancel()

    @asynccontextmanager
    async def sending(self, body: Callable[[], Awaitable[bytes]]) -> AsyncIterator[None]:
        """Send `body` beside the block. A fault of either ends both, and comes out as itself, not in a group."""
        fault: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, body, nursery.cancel_scope)
            try:
                yield
            except Exception as exc:
                fault = exc
            nursery.cancel_scope.cancel()
        if fault := fault or self._fault:
            raise fault

    async def _send(self, body: Callable[[], Awaitable[bytes]], block: trio.CancelScope) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._scope:
            try:
                while not self._connection.deaf:
                    piece = await body()
                    await self._connection.send(piece)
                    if not piece:
                        break
            except Exception as exc:
                self._fault = exc
                block.cancel()
            self.request_ended()
