"""The bytes: the request to the upstream, the answer to the client.

What one read from the upstream brought goes out in one write, at once; then, and only then, the tap gets it. The
answer's body is never changed, with the one exception that `protocol/batch.py` explains.

A client that leaves does not end this function by itself: the watch beside it moves the deadline of `relaying`
(to now, or to the end of the drain time), and while the deadline lasts the answer is read on for the tap alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from tproxy.errors import Fault, Header, UpstreamBroken
from tproxy.flow.course import Course
from tproxy.flow.outgoing import Outgoing
from tproxy.flow.route import Passage
from tproxy.flow.tap import Tap
from tproxy.protocol import headers as header
from tproxy.protocol.batch import is_batch_object, rewrite_results_url
from tproxy.protocol.coding import CodingFault, decode
from tproxy.store.base import Ticket
from tproxy.wire.outbound import Head
from tproxy.wire.pool import Pool, Response

Send = Callable[[dict[str, Any]], Awaitable[None]]

_ENDS_OF_EVENTS = (b"\n\n", b"\r\n\r\n", b"\r\r")
# A page of a thousand batches is about a megabyte.
_MAX_BATCH_PAGE_BYTES = 8 * 1024 * 1024


class Client:
    """The side that the answer goes to.

    Args:
        on_gone: called once, when it is known that the client has left.
        ids: the headers that name the exchange, put on every answer.
        pseudonym: this process in Via headers.
        bases: the upstream's base URL, and the one under which the client knows this proxy, for the batch exception;
            None if the client did not say.

    Attributes:
        gone: the client has left; nothing more can be sent.
        answered: the response head has gone out, so that a fault can no longer be told with a status of its own.
        is_open_stream: the answer is a stream of events to which one can be added.
        between_events: it is, and the last one has been sent whole.
        ending: why the stream is to end as soon as it is between two events.
    """

    def __init__(
        self,
        send: Send,
        on_gone: Callable[[], None],
        *,
        ids: Sequence[Header],
        pseudonym: bytes,
        bases: tuple[bytes, bytes] | None,
    ) -> None:
        self.gone = False
        self.answered = False
        self.is_open_stream = False
        self.between_events = False
        self.ending: Fault | None = None
        self.ids = ids
        self.pseudonym = pseudonym
        self.bases = bases
        self._send = send
        self._on_gone = on_gone

    def leave(self) -> None:
        """Note, once, that the client has left."""
        if not self.gone:
            self.gone = True
            self._on_gone()

    async def head(self, status: int, reason: bytes | None, headers: Sequence[Header], *, held: bool) -> None:
        """Send the response head. Without a `reason`, it has the standard one.

        Args:
            held: the first of the body follows at once, and both may go out in one write.
        """
        self.answered = True
        self.is_open_stream = _is_open_stream(headers)
        await self._pass(
            {"type": "http.response.start", "status": status, "reason": reason, "headers": headers, "held": held}
        )

    async def body(self, piece: bytes, *, more: bool) -> bool:
        """Send a piece of the body, or its end. Whether it was sent: a client may leave as soon as it has all."""
        self.between_events = False
        sent = await self._pass({"type": "http.response.body", "body": piece, "more_body": more})
        self.between_events = sent and self.is_open_stream and piece.endswith(_ENDS_OF_EVENTS)
        return sent

    async def _pass(self, message: dict[str, Any]) -> bool:
        if self.gone:
            return False
        try:
            await self._send(message)
        except OSError:
            self.leave()
            return False
        return True


async def forward(pool: Pool, outgoing: Outgoing, ticket: Ticket, client: Client, tap: Tap, course: Course) -> None:
    """Ask the upstream and relay what it says.

    Raises:
        UpstreamFault: before the head it can be answered; after it, the answer must be cut.
        LedgerUnavailable: the exchange could not be recorded; no byte of the answer has been sent.
        ClientFault, ClientGone: from a request body that is being passed on.
        Fault: `client.ending`, once the stream is between two events.
    """
    clock = course.clock
    course.dialled_us = clock()
    asking = pool.exchange(outgoing.method, outgoing.target, outgoing.headers, outgoing.body, course.sending)
    async with asking as response:
        head = response.head
        course.head_us = clock()
        course.upstream_status = head.status
        course.request_id = _text(header.get(head.headers, b"request-id"))
        tap.begin(head.status, head.headers)
        headers = header.downstream_headers(
            head.headers, via=header.via(head.http_version, client.pseudonym), extra=client.ids
        )
        await ticket.durable()
        course.status = head.status
        if client.bases is not None and _leads_past_us(course.passage, head):
            await _relay_batch(response, headers, client, course, client.bases)
        else:
            await _relay(response, headers, client, tap, course)


async def _relay(response: Response, headers: list[Header], client: Client, tap: Tap, course: Course) -> None:
    """Relay head and body as they come: what came together goes out together, be it head, body or end."""
    clock, head = course.clock, response.head
    length = header.get(head.headers, b"content-length")
    expected = int(length) if length is not None else None
    chunk = response.at_hand()
    together = bool(chunk) or response.complete
    await client.head(head.status, head.reason, headers, held=together)
    if not together:
        chunk = await response.receive()
    while True:
        # Not `client.gone`: whoever has the end of an answer may have left before the next line is reached.
        sent = await client.body(chunk, more=not response.complete)
        if sent:
            course.bytes_out += len(chunk)
            course.whole = response.complete or course.bytes_out == expected
        elif chunk:
            course.missed = True
        if chunk:
            course.last_byte_us = now_us = clock()
            tap.feed(chunk, now_us)
        if response.complete:
            return
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
    response: Response, headers: list[Header], client: Client, course: Course, bases: tuple[bytes, bytes]
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


async def watch(
    left: trio.Event | None, receive: Callable[[], Awaitable[dict[str, Any]]], whole: trio.Event, client: Client
) -> None:
    """See the client leave.

    Args:
        left: set when it has, where the server offers that. Elsewhere `receive` tells, which may not be asked before
            the request body is whole: until then its reader sees it, unless that waits for the upstream.
    """
    if left is not None:
        await left.wait()
    else:
        await whole.wait()
        while (await receive())["type"] != "http.disconnect":
            pass
    client.leave()
