"""One exchange from its head to its row: the steps in their order, and the nursery around them.

    route → identify → body → admit → ┬ forward ┬ → settle → ledger
                                      ├ tap     ┤
                                      └ watch   ┘

What is raised before `admit` is answered by `proxy.py`; what is raised after it, here: as an error envelope while no
byte of the answer has gone out, and then by a broken end, which no client takes for a whole answer. Once `admit` has
opened the row, `finally` closes it: there is no path around it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog
import trio

from tproxy.errors import (
    ClientFault,
    ClientGone,
    Draining,
    Fault,
    Header,
    Internal,
    LoopDetected,
    UpstreamBroken,
    UpstreamTimeout,
    UpstreamUnreachable,
    envelope,
)
from tproxy.flow.admit import admit
from tproxy.flow.body import SMALL_BYTES, Held, Receive, RequestBody, announced_length
from tproxy.flow.course import Course
from tproxy.flow.forward import Client, Outgoing, Send, forward, watch
from tproxy.flow.identify import ANONYMOUS, KeyRing, check_open
from tproxy.flow.request import Request
from tproxy.flow.route import Passage
from tproxy.flow.settle import settle
from tproxy.flow.tap import Tap
from tproxy.protocol import headers as header
from tproxy.protocol.coding import CodingFault, decode
from tproxy.protocol.headers import Credential
from tproxy.protocol.pricing import PriceBook
from tproxy.protocol.request import RequestFacts, read_request, strip_litellm_metadata
from tproxy.store import base
from tproxy.store.base import Ledger, Ticket
from tproxy.wire.pool import Body, Origin, Pool

log = structlog.get_logger("tproxy.exchange")
bugs = logging.getLogger("tproxy.exchange")

_ENDINGS: Mapping[type[Fault], str] = {
    UpstreamUnreachable: base.UPSTREAM_UNREACHABLE,
    UpstreamBroken: base.UPSTREAM_BROKEN,
    UpstreamTimeout: base.UPSTREAM_TIMEOUT,
}


@dataclass(frozen=True, slots=True)
class Services:
    """What an exchange works with. Replaced as a whole on a reload; a running exchange keeps what it began with.

    Args:
        upstream: what the ledger calls it: its base URL, or `sandbox`.
        base_url: without a trailing slash; `base_path` is its path.
        pseudonym: this process in Via headers (RFC 9110 section 7.6.3).
        clock: wall-clock microseconds since the epoch.
        draining: true once the process has been told to stop.
        drain_on_disconnect: read the upstream's answer on when the client has left?
        drain_seconds, body_seconds: bounds on that, and on a request body.
        held: the request bodies that all exchanges hold together.
    """

    ring: KeyRing
    pool: Pool
    origin: Origin
    upstream: str
    base_url: str
    base_path: bytes
    ledger: Ledger
    prices: PriceBook
    pseudonym: bytes
    clock: Callable[[], int]
    draining: Callable[[], bool]
    drain_on_disconnect: bool
    drain_seconds: float
    body_seconds: float
    max_body_bytes: int
    max_upload_bytes: int
    held: Held


class Exchange:
    """A request that goes to the upstream, until its row is closed."""

    def __init__(
        self,
        services: Services,
        request: Request,
        passage: Passage,
        id: str,
        ids: Sequence[Header],
        accepted_us: int,
    ) -> None:
        self.services = services
        self.request = request
        self.passage = passage
        self.ids = ids
        self.course = Course(id, passage, accepted_us, services.clock)
        self.tap = Tap(self.course)
        self.caller = ANONYMOUS  # until it is known
        self._relaying = trio.CancelScope()
        self._body_whole = trio.Event()
        self._noted = False

    async def run(self, receive: Receive, send: Send) -> None:
        """Live it.

        Raises:
            Fault, ClientGone: before admission. Afterwards nothing is raised but Cancelled.
        """
        services, headers = self.services, self.request.headers
        credential = self._identify()
        announced = announced_length(headers)
        held = self.passage.held or (announced is not None and announced <= SMALL_BYTES)
        incoming = RequestBody(
            receive,
            announced=announced,
            limit=services.max_body_bytes if held else services.max_upload_bytes,
            timeout=services.body_seconds,
            on_end=self._body_whole.set,
            held=services.held,
        )
        try:
            facts: RequestFacts | None = None
            body: Body = incoming.piece
            if held:
                headers, facts, body = self._read(await incoming.whole())
                self.course.model_asked = facts.model if facts is not None else None
            outgoing = self._outgoing(headers, body, credential, announced)
            client = self._client(send)
            ticket = self._admit(facts)
            try:
                fault = await self._exchange(outgoing, ticket, receive, client)
                if fault is not None:
                    await self._tell(fault, ticket, client)
            finally:
                self.course.bytes_in = incoming.length
                self._close(client)
        finally:
            incoming.release()

    def _identify(self) -> Credential:
        """Who asks; returns what to ask the upstream with."""
        services, request = self.services, self.request
        if services.draining():
            raise Draining("This proxy is shutting down. Send the request again: another one will take it.")
        if header.is_loop(request.headers, services.pseudonym):
            raise LoopDetected("The request has come back to this proxy. Its upstream.base_url leads to itself.")
        if services.ring.access == "open":
            check_open(request.is_local, header.get(request.headers, b"origin"))
        self.caller, credential = services.ring.identify(request.headers, self.course.accepted_us)
        return credential

    def _outgoing(
        self, headers: Sequence[Header], body: Body, credential: Credential, announced: int | None
    ) -> Outgoing:
        services, request = self.services, self.request
        return Outgoing(
            method=request.method.encode(),
            target=services.base_path + self.passage.target,
            headers=header.upstream_headers(
                headers,
                host=services.origin.host_header,
                via=header.via(request.http_version, services.pseudonym),
                credential=credential,
                framing=_framing(request.headers, announced, body),
            ),
            body=body,
        )

    def _client(self, send: Send) -> Client:
        bases = self.request.bases(self.services.base_url, self.passage.prefix)
        return Client(send, self._on_gone, ids=self.ids, pseudonym=self.services.pseudonym, bases=bases)

    def _admit(self, facts: RequestFacts | None) -> Ticket:
        return admit(
            self.services.ledger,
            id=self.course.id,
            accepted_us=self.course.accepted_us,
            passage=self.passage,
            upstream=self.services.upstream,
            caller=self.caller,
            facts=facts,
            headers=self.request.headers,
            client_address=self.request.client_address,
        )

    def _read(self, body: bytes) -> tuple[Sequence[Header], RequestFacts | None, bytes]:
        """What a held body says, and the body to send: the same one, unless it holds `litellm_metadata`.

        A coded body is read from a decoded copy. If the member has to come out of it, it goes on decoded.
        """
        headers = self.request.headers
        if self.request.method != "POST" or not (self.passage.held or _is_json(headers)):
            return headers, None, body
        encoding = header.joined(headers, b"content-encoding")
        plain = body
        if encoding is not None:
            try:
                plain = decode(body, encoding, max_output=self.services.max_body_bytes)
            except CodingFault:
                return headers, None, body  # the upstream will say what it thinks of it
        facts = read_request(plain)
        if not facts.has_litellm_metadata:
            return headers, facts, body
        if encoding is not None:
            headers = [h for h in headers if h[0].lower() != b"content-encoding"]
        return headers, facts, strip_litellm_metadata(plain)

    async def _exchange(self, outgoing: Outgoing, ticket: Ticket, receive: Receive, client: Client) -> Fault | None:
        """The nursery: forward, with tap and watch beside it until forward is done. Returns what broke, if anything."""
        fault: Fault | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.tap.run, self._note)
            nursery.start_soon(watch, self.request.left, receive, self._body_whole, client)
            try:
                with self._relaying:
                    await forward(self.services.pool, outgoing, ticket, client, self.tap, self.course)
            except ClientGone:
                client.leave()
            except Fault as broken:
                fault = broken
            except Exception:
                bugs.exception("exchange %s failed", self.course.id)
                fault = Internal("This proxy failed. Its log has the details under the request_id of this answer.")
            await self.tap.drain()
            nursery.cancel_scope.cancel()
        return fault

    def _on_gone(self) -> None:
        """The client has left: cut the upstream now, or let it drain for a while."""
        drain = self.services.drain_on_disconnect and self._body_whole.is_set()
        self._relaying.deadline = trio.current_time() + self.services.drain_seconds if drain else -math.inf

    async def _tell(self, fault: Fault, ticket: Ticket, client: Client) -> None:
        """Answer a fault if that can still be done. If not, returning without an end breaks the answer off."""
        self.course.error_type = fault.code
        if client.gone:
            return
        self.course.broken = _ending(fault)
        if client.answered:
            return
        try:
            await ticket.durable()
        except Fault as unavailable:
            fault = unavailable
        self.course.status = fault.status
        body = envelope(fault, self.course.id)
        await client.head(fault.status, None, json_head(body, fault_headers(fault, self.ids)), held=True)
        await client.body(body, more=False)

    def _note(self) -> None:
        """Keep what the first events said, so that a row whose process dies knows at least its input."""
        if not self._noted and self.tap.outcome.started:
            self._noted = True
            self.services.ledger.note(settle(self.course, self.tap.outcome, self.services.prices, running=True))

    def _close(self, client: Client) -> None:
        """The end of every admitted exchange."""
        self.course.client_gone = client.gone
        closing = settle(self.course, self.tap.finish(), self.services.prices)
        if closing.ended == base.FAILED and closing.error_type is None:
            closing = replace(closing, error_type="shutdown")  # nothing failed: the exchange was cancelled
        self.services.ledger.close(closing)
        log.info(
            "exchange",
            id=self.course.id,
            method=self.passage.method,
            path=self.passage.path.decode("ascii"),
            caller=self.caller.alias or self.caller.id,
            model=closing.model_served or self.course.model_asked,
            status=closing.status,
            ended=closing.ended,
            error=closing.error_type,
            input_tokens=closing.input_tokens,
            output_tokens=closing.output_tokens,
            cost_nano=closing.cost_nano,
            certainty=closing.certainty,
            first_content_ms=_ms(self.course.accepted_us, closing.first_content_us),
            total_ms=_ms(self.course.accepted_us, closing.ended_us),
        )


def _ending(fault: Fault) -> str:
    if isinstance(fault, ClientFault):
        return base.CLIENT_FAULT
    return _ENDINGS.get(type(fault), base.FAILED)


def _framing(headers: Sequence[Header], announced: int | None, body: Body) -> Header | None:
    """How the request body is framed on the way to the upstream: by its length wherever that is known.

    A length of 0 is said if the client said it: some servers want one with every POST (RFC 9110 section 8.6).
    """
    if body == b"" and announced == 0 and header.get(headers, b"content-length") is None:
        return None
    if isinstance(body, bytes):
        return (b"content-length", str(len(body)).encode())
    if announced is None:
        return (b"transfer-encoding", b"chunked")
    return (b"content-length", str(announced).encode())


def _is_json(headers: Sequence[Header]) -> bool:
    return b"json" in (header.get(headers, b"content-type") or b"").lower()


def fault_headers(fault: Fault, ids: Sequence[Header]) -> tuple[Header, ...]:
    """The headers of an answer of our own. `request-id` is where the SDKs look for what to quote."""
    return (*ids, (b"request-id", ids[0][1]), *fault.headers)


def json_head(body: bytes, more: Sequence[Header]) -> list[Header]:
    """Response headers for a JSON body, or for an empty one."""
    framing = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    return [*(framing if body else framing[1:]), *more]


def _ms(start_us: int, end_us: int | None) -> float | None:
    return None if end_us is None else (end_us - start_us) / 1000
