"""One HTTP/1.1 client connection on a link, in four states.

    NEW ──start──► ACTIVE ──rest──► IDLE ──start──► ACTIVE ──► …        any ──close──► CLOSED

An exchange on it is: `start` (all that the kernel takes at once of the request), `send_left` for what that leaves,
`send` for the pieces of a body that is still coming, `receive_head`, `receive` until it gives b"", `rest`. The two that
send may run in another task beside the two that read, since an upstream may answer before it has read all.

Rules:
- An answer is given as it came: names in the peer's spelling, order and repetition; a body that broke raises after
  all that had arrived was given out. Only 1xx heads are swallowed, and trailers dropped.
- A write that fails makes the connection `deaf`, and raises nothing if the upstream may have left an answer: it is
  the reader who finds out.
- `rest` agrees to another exchange only if all went by the book: request and answer whole, both sides willing, not
  a byte too many.
- While a body is on its way, nothing is kept of the request, nor of the head, nor of what was given out.

It knows no deadlines but the link's own: who calls, sets them. Faults name the peer and never quote what it sent.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from enum import Enum
from typing import cast

import trio

from tproxy.errors import BadRequest, UpstreamBroken, UpstreamTimeout
from tproxy.wire.bodies import Body
from tproxy.wire.heads import BadHead, Head, HeadReader, RequestHead
from tproxy.wire.link import Link
from tproxy.wire.relay import Source

__all__ = ["Connection", "Head", "NothingSent", "State"]

_CUT = "cut the connection before its answer was whole"
_CLOSED = "closed the connection before its answer was whole"
_JUNK = "sent an answer that is not valid HTTP/1.1"


class State(Enum):
    NEW = "new"
    ACTIVE = "active"
    IDLE = "idle"
    CLOSED = "closed"


class NothingSent(UpstreamBroken):
    """The connection was dead before the kernel took a byte of the request, which may thus be sent elsewhere."""


class Connection:
    """A client connection.

    Args:
        link: fresh from `dial`; the connection closes it.
        name: `host:port`, for messages.
        max_head_bytes, max_headers: bounds on one head of an answer.

    Attributes:
        state, link, name: where it is in its life, and what it was given.
        born, rested: when it was made, and when its last exchange ended, in seconds of trio's clock.
        answered: the head of the current answer has come.
        ended: all of it has been given out.
        asked: all of the current request has been sent.
    """

    __slots__ = (
        "_body",
        "_fault",
        "_keep",
        "_left",
        "_max_head_bytes",
        "_max_headers",
        "_method",
        "_rest",
        "answered",
        "asked",
        "born",
        "ended",
        "link",
        "name",
        "rested",
        "state",
    )

    def __init__(self, link: Link, *, name: str, max_head_bytes: int, max_headers: int) -> None:
        self.state = State.NEW
        self.link = link
        self.answered = self.ended = self.asked = False
        self.born = self.rested = trio.current_time()
        self.name = name
        self._max_head_bytes = max_head_bytes
        self._max_headers = max_headers
        self._method = b""
        self._left: int | None = 0  # of the request's body; None: it goes out in chunks
        self._keep = True  # both sides are willing to go on after this exchange
        self._body: Body | None = None
        self._rest = b""  # what came with the head
        self._fault = ""  # why no more can be read of the body

    def __repr__(self) -> str:
        return f"<Connection {self.name}: {self.state.value}>"

    @property
    def deaf(self) -> bool:
        """Nothing more can be sent."""
        return bool(self.link.deaf)

    def expired(self, now: float, max_idle: float, max_age: float) -> bool:
        """Whether it has rested or lived for too long (seconds on trio's clock)."""
        return now - self.rested > max_idle or now - self.born > max_age

    def usable(self) -> bool:
        """Whether a request may be sent on it. Asks the socket, and never waits."""
        return self.state is State.IDLE and self.link.quiet()

    def attend(self, on_gone: Callable[[], None] | None) -> None:
        """Have `on_gone` called when the upstream leaves, where the poller tells; None: no more. For one that rests."""
        if self.link.watch is not None:
            self.link.watch.on_gone = on_gone

    def session(self) -> ssl.SSLSession | None:
        """See `Link.session`."""
        return self.link.session()

    def start(self, head: RequestHead, body: bytes | None) -> memoryview:
        """Send the head, or with `body` the whole request, as far as the kernel takes it at once. Never waits.

        Returns:
            What is left of it, for `send_left`.

        Raises:
            NothingSent: the connection was dead.
            BadRequest: `body` is not as long as the head says. Nothing was sent.
        """
        self.state = State.ACTIVE
        self.answered = self.ended = self.asked = False
        self._body, self._rest, self._fault = None, b"", ""
        self._method, self._keep, self._left = head.method, head.keep, head.length
        data = head.raw
        if body is not None:
            data = b"".join((data, self._framed(body), self._framed(b""))) if body else data + self._framed(b"")
        link = self.link
        before = link.sent
        taken = link.push(data)
        left = memoryview(data)[taken:]
        while taken and left:
            taken = link.push(left)
            left = left[taken:]
        if link.deaf and link.sent == before:
            raise NothingSent(f"{self.name} had closed the connection")
        self.asked = body is not None and not left
        return left

    async def send_left(self, left: memoryview, *, whole: bool) -> None:
        """Send what `start` has left. Raises what `send` raises.

        Args:
            whole: the request is whole with it.
        """
        await self._send(left)
        self.asked = whole

    async def send(self, piece: bytes) -> None:
        """Send a piece of the body; b"" ends it.

        Raises:
            UpstreamTimeout: the upstream took nothing for too long, and has not answered either.
            BadRequest: the body is not as long as the head says.
        """
        await self._send(self._framed(piece))
        self.asked = not piece

    async def receive_head(self) -> Head:
        """Wait for the head of the final answer.

        Raises:
            UpstreamBroken: the connection ended, or what came is no answer that a client could be given.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        reader = HeadReader(self._method, max_bytes=self._max_head_bytes, max_headers=self._max_headers)
        found = None
        while found is None:
            data = self._pull()
            if data is None:
                await self.readable()
                continue
            if not data:
                raise self._broken(_CLOSED)
            try:
                found = reader.feed(data)
            except BadHead as exc:
                raise self._broken(str(exc)) from None
            if found is None:
                await trio.lowlevel.checkpoint()  # an endless row of 1xx heads keeps nobody else waiting
        head, self._body = found
        self._keep = self._keep and reader.keep
        self._rest = reader.rest
        self.answered = True
        if self._body.ended:
            self._end(self._body.rest or reader.rest)
        return head

    def take(self) -> bytes | None:
        """All body bytes that one read brings now; None if that is nothing, b"" at the clean end and from then on.

        Of a read of more than `chunked.MAX_PARTS` chunks, the rest is given by the calls that follow.

        Raises:
            UpstreamBroken: the answer was cut, or is not HTTP.
        """
        if self._fault:
            raise self._broken(self._fault)
        body = self._body
        while body is not None:
            data, self._rest = self._rest, b""
            if not data and not body.behind:
                read = self._pull()
                if read is None:
                    return None
                if not read:
                    if not body.to_end:
                        raise self._broken(_CLOSED)
                    self._end(b"")
                    return b""
                data = read
            given = self._fed(body, data)
            if given:
                return given
            body = self._body
        return b""

    async def receive(self) -> bytes:
        """As `take`, but wait until there is something."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while (data := self.take()) is None:
            await self.readable()
        return data

    async def readable(self) -> None:
        """Wait until `take` may give something. To be called when it gave nothing.

        Raises:
            UpstreamBroken: the connection was closed.
        """
        try:
            await self.link.readable()
        except trio.ClosedResourceError:
            raise self._broken(_CUT) from None

    def at_hand(self) -> bytes:
        """Body bytes that came with the head, or b"". Never waits; a fault is left for `receive` to raise."""
        data, self._rest = self._rest, b""
        if self._body is None or not data:
            return b""
        try:
            return self._fed(self._body, data)
        except UpstreamBroken:
            return b""

    def source(self) -> Source | None:
        """The link, if the answer may be relayed from it as it comes: the request is done, the next byte is that of a
        chunk's size, and the poller tells. See `relay.Source`.
        """
        if self._body is None or not self._body.idle or self._rest or not (self.asked or self.link.deaf):
            return None
        return cast(Source, self.link) if self.link.watch is not None else None

    def rest(self) -> bool:
        """Make ready for another exchange. False: this connection cannot have one, and has to be closed."""
        if (
            self.state is not State.ACTIVE
            or not (self.ended and self.asked and self._keep)
            or self.link.deaf
            or not self.link.quiet()
        ):
            return False
        self.state = State.IDLE
        self.rested = trio.current_time()
        return True

    def close(self, *, politely: bool = False) -> None:
        """Close at once: the upstream sees it now. Safe in any state, more than once.

        Args:
            politely: say so first, as TLS has it. For a connection that rests.
        """
        self.state = State.CLOSED
        self.link.close(politely=politely)

    def _fed(self, body: Body, data: bytes) -> bytes:
        """Body bytes that are in `data`. A fault is lasting."""
        try:
            given = body.feed(data)
        except ValueError:
            self._fault = _JUNK
            raise self._broken(_JUNK) from None
        if body.ended:
            self._end(body.rest)
        return given

    def _end(self, too_much: bytes) -> None:
        self.ended = True
        self._body, self._rest = None, b""
        self._keep = self._keep and not too_much

    def _framed(self, piece: bytes) -> bytes:
        """A piece of the request's body as it goes out; b"" ends it."""
        if self._left is None:
            return b"%x\r\n%b\r\n" % (len(piece), piece)
        self._left -= len(piece)
        if self._left < 0 or (not piece and self._left):
            raise BadRequest("The request body is not as long as its content-length says.")
        return piece

    async def _send(self, data: bytes | memoryview) -> None:
        await self.link.send(data)
        if self.link.deaf == "stalled" and not self.answered:
            raise UpstreamTimeout(f"{self.name} stopped taking the request")

    def _pull(self) -> bytes | None:
        try:
            return self.link.pull()
        except OSError:
            # A reset, or a TLS end without close_notify: even for a body that only the end delimits, a cut.
            raise self._broken(_CUT) from None

    def _broken(self, what: str) -> UpstreamBroken:
        return UpstreamBroken(f"{self.name} {what}")
