"""The bytes: the request to the upstream, the answer to the client.

What one read from the upstream brought goes out in one write, at once; then, and only then, the tap gets it. The
answer's body is never changed, with the one exception that `protocol/batch.py` explains.

Where both sides are sockets of the plain kind, a running stream is given to the fast path (`wire/relay.py`), which
does the same without a task, and gives it back when something has to be waited for or looked at.

A client that leaves does not end this function by itself: whoever sees it moves the deadline of the exchange
(to now, or to the end of the drain time), and while that lasts the answer is read on for the tap alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from tproxy.errors import Fault, Header, UpstreamBroken
from tproxy.flow.course import Course
from tproxy.flow.route import Passage
from tproxy.flow.tap import Tap
from tproxy.protocol import headers as header
from tproxy.protocol.batch import is_batch_object, rewrite_results_url
from tproxy.protocol.coding import CodingFault, decode
from tproxy.store.base import Ticket
from tproxy.wire.asgi import Transport
from tproxy.wire.outbound import Head
from tproxy.wire.pool import Response
from tproxy.wire.relay import Relay

Send = Callable[[dict[str, Any]], Awaitable[None]]

_ENDS_OF_EVENTS = (b"\n\n", b"\r\n\r\n", b"\r\r")
# A page of a thousand batches is about a megabyte.
_MAX_BATCH_PAGE_BYTES = 8 * 1024 * 1024
# What is left of the upstream's own rate limits (API reference, "Rate limits", response headers).
_REMAINS = tuple(
    f"anthropic-ratelimit-{what}-remaining".encode() for what in ("requests", "tokens", "input-tokens", "output-tokens")
)
# More than that at a time is no stream of events, and its reads seldom end where chunks do.
_MAX_STEADY_BYTES = 16 * 1024


class Client:
    """The side that the answer goes to.

    Args:
        on_gone: called once, when it is known that the client has left.
        ids: the headers that name the exchange, put on every answer.
        pseudonym: this process in Via headers.
        bases: the upstream's base URL, and the one under which the client knows this proxy, for the batch exception;
            None if the client did not say.
        transport: the client's socket, where the server offers it.

    Attributes:
        gone: the client has left; nothing more can be sent.
        answered: the response head has gone out, so that a fault can no longer be told with a status of its own.
        is_open_stream: the answer is a stream of events to which one can be added.
        ending: why the stream is to end as soon as it is between two events; see `end_with`.
    """

    def __init__(
        self,
        send: Send,
        on_gone: Callable[[], None],
        *,
        ids: Sequence[Header],
        pseudonym: bytes,
        bases: tuple[bytes, bytes] | None,
        transport: Transport | None = None,
    ) -> None:
        self.gone = False
        self.answered = False
        self.is_open_stream = False
        self.ending: Fault | None = None
        self.ids = ids
        self.pseudonym = pseudonym
        self.bases = bases
        self.transport = transport
        self._send = send
        self._on_gone = on_gone
        self._last = b""  # the piece that was sent last, or b"" while one is under way
        self._relay: Relay | None = None  # on the fast path

    def leave(self) -> None:
        """Note, once, that the client has left."""
        if not self.gone:
            self.gone = True
            if self._relay is not None:
                self._relay.stop()
            self._on_gone()

    async def head(
        self, status: int, reason: bytes | None, headers: Sequence[Header], *, held: bool, open_stream: bool = False
    ) -> None:
        """Send the response head. Without a `reason`, it has the standard one.

        Args:
            held: the first of the body follows at once, and both may go out in one write.
            open_stream: see `is_open_stream`.
        """
        self.answered = True
        self.is_open_stream = open_stream
        await self._pass(
            {"type": "http.response.start", "status": status, "reason": reason, "headers": headers, "held": held}
        )

    async def body(self, piece: bytes, *, more: bool) -> bool:
        """Send a piece of the body, or its end. Whether it was sent: a client may leave as soon as it has all."""
        self._last = b""
        sent = await self._pass({"type": "http.response.body", "body": piece, "more_body": more})
        self._last = piece if sent else b""
        return sent

    @property
    def between_events(self) -> bool:
        """It is an open stream of events, and the last one has been sent whole."""
        if self._relay is not None and self._relay.unsent:
            return False
        return self.is_open_stream and self._last.endswith(_ENDS_OF_EVENTS)

    def end_with(self, fault: Fault) -> None:
        """Have the stream end with this fault as soon as it is between two events: the plain path sees to it."""
        self.ending = fault
        if self._relay is not None:
            self._relay.stop()

    async def relay(self, response: Response, on_piece: Callable[[bytes], None]) -> tuple[bytes, bool] | None:
        """Have the fast path relay the answer for as long as it can.

        Args:
            on_piece: called with what was relayed.

        Returns:
            A last piece that it could send only in part, and whether the rest was sent now; None: there is none.

        Raises:
            UpstreamTimeout: nothing came for too long.
        """
        source = response.source()
        sink = self.transport.sink() if self.transport is not None else None
        if source is None or sink is None or self.transport is None or self.gone or self.ending is not None:
            return None

        def relayed(piece: bytes) -> None:
            self._last = piece
            on_piece(piece)

        relay = self._relay = Relay(source, sink, relayed)
        try:
            while True:
                with trio.CancelScope(deadline=relay.last + response.idle) as patience:
                    await relay.run()
                if not patience.cancelled_caught:
                    break
                if trio.current_time() >= relay.last + response.idle:
                    raise response.timed_out()
        finally:
            self._relay = None
            if relay.unsent:
                self._last = b""
        if not relay.unsent:
            return None
        try:
            await self.transport.rest(relay.unsent)
        except OSError:
            self.leave()
            return relay.piece, False
        self._last = relay.piece
        return relay.piece, True

    async def _pass(self, message: dict[str, Any]) -> bool:
        if self.gone:
            return False
        try:
            await self._send(message)
        except OSError:
            self.leave()
            return False
        return True


async def forward(
    asking: AbstractAsyncContextManager[Response],
    ticket: Ticket,
    client: Client,
    tap: Tap,
    course: Course,
    beside: Callable[[], None],
) -> None:
    """Ask the upstream and relay what it says.

    Args:
        beside: starts what runs beside an answer that does not come all at once.

    Raises:
        UpstreamFault: before the head it can be answered; after it, the answer must be cut.
        LedgerUnavailable: the exchange could not be recorded; no byte of the answer has been sent.
        ClientFault, ClientGone: from a request body that is being passed on.
        Fault: `client.ending`, once the stream is between two events.
    """
    course.dialled_us = course.clock()
    async with asking as response:
        headers = _meet(response.head, client, tap, course)
        await ticket.durable()
        course.status = response.head.status
        if client.bases is not None and _leads_past_us(course.passage, response.head):
            relaying = _relay_batch(response, headers, client, course, client.bases)
        else:
            relaying = _relay(response, headers, client, tap, course, beside)
        del headers  # an answer may run for long
        await relaying


def _meet(head: Head, client: Client, tap: Tap, course: Course) -> header.Fields:
    """Take note of the answer's head; returns the headers that the client gets."""
    fields = header.Fields(head.headers)
    course.head_us = course.clock()
    course.upstream_status = head.status
    course.request_id = _text(header.get(fields, b"request-id"))
    course.remains = tuple(_number(header.get(fields, name)) for name in _REMAINS)
    tap.begin(head.status, fields)
    via = header.via(head.http_version, client.pseudonym)
    return header.Fields(header.downstream_headers(fields, via=via, extra=client.ids))


async def _relay(
    response: Response,
    headers: header.Fields,
    client: Client,
    tap: Tap,
    course: Course,
    beside: Callable[[], None],
) -> None:
    """Relay head and body as they come: what came together goes out together, be it head, body or end."""
    clock = course.clock
    length = header.get(headers, b"content-length")
    expected = int(length) if length is not None else None

    def passed(piece: bytes) -> None:
        course.bytes_out += len(piece)
        course.last_byte_us = now_us = clock()
        tap.feed(piece, now_us)

    def missed(piece: bytes) -> None:
        course.missed = True
        course.last_byte_us = now_us = clock()
        tap.feed(piece, now_us)

    chunk = response.at_hand()
    together = bool(chunk) or response.complete
    await client.head(
        response.head.status, response.head.reason, headers, held=together, open_stream=_is_open_stream(headers)
    )
    del headers, response.head
    if not together:
        chunk = await response.receive()
    alone = True
    while True:
        # Not `client.gone`: whoever has the end of an answer may have left before the next line is reached.
        sent = await client.body(chunk, more=not response.complete)
        if chunk:
            (passed if sent else missed)(chunk)
        if sent:
            course.whole = response.complete or course.bytes_out == expected
        if response.complete:
            return
        if alone:
            alone = False
            beside()
        if client.ending is None and len(chunk) <= _MAX_STEADY_BYTES:
            last = await client.relay(response, passed)
            if last is not None:
                piece, sent = last
                (passed if sent else missed)(piece)
        if client.ending is not None and client.between_events:
            raise client.ending
        chunk = await response.receive()
        if client.ending is not None and client.between_events:
            raise client.ending  # what has just come is left: a write that is cancelled would break the answer off


def _is_open_stream(headers: Sequence[Header]) -> bool:
    """Can an event of ours be added to such an answer? Not where it is coded, or its length is told."""
    media = (header.get(headers, b"content-type") or b"").split(b";")[0].strip().lower()
    told = header.get(headers, b"content-length") or header.get(headers, b"content-encoding")
    return media == b"text/event-stream" and not told


def _leads_past_us(passage: Passage, head: Head) -> bool:
    return head.status == 200 and is_batch_object(passage.method, passage.path)


async def _relay_batch(
    response: Response, headers: Sequence[Header], client: Client, course: Course, bases: tuple[bytes, bytes]
) -> None:
    """Relay a batch object with the host of its `results_url` made ours; see `protocol/batch.py`.

    A coded body goes out decoded: a changed one cannot keep its coding. What cannot be decoded goes as it came.
    """
    pieces: list[bytes] = []
    length = 0
    while chunk := await response.receive():
        pieces.append(chunk)
        length += len(chunk)
        if length > _MAX_BATCH_PAGE_BYTES:
            raise UpstreamBroken(f"The upstream's batch page is larger than {_MAX_BATCH_PAGE_BYTES} bytes.")
    body = b"".join(pieces)
    encoding = header.joined(headers, b"content-encoding")
    try:
        plain = decode(body, encoding, max_output=_MAX_BATCH_PAGE_BYTES) if encoding else body
    except CodingFault:
        plain = body
    changed = rewrite_results_url(plain, *bases)
    if changed != plain:
        body = changed
        headers = [h for h in headers if h[0].lower() not in (b"content-length", b"content-encoding")]
        headers.append((b"content-length", str(len(body)).encode()))
    await client.head(response.head.status, response.head.reason, headers, held=True)
    course.whole = await client.body(body, more=False)
    if course.whole:
        course.last_byte_us = course.clock()
        course.bytes_out += len(body)


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1")[:256] if value is not None else None


def _number(value: bytes | None) -> int | None:
    return int(value) if value is not None and len(value) < 19 and value.isdigit() else None


async def watch(receive: Callable[[], Awaitable[dict[str, Any]]], whole: trio.Event, client: Client) -> None:
    """See the client leave, where the server tells it to who asks for the body alone.

    It may not be asked before the request body is whole: until then its reader sees it, unless that waits for the
    upstream.
    """
    await whole.wait()
    while (await receive())["type"] != "http.disconnect":
        pass
    client.leave()
