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
from contextlib import AbstractAsyncContextManager
from functools import partial

import trio
from msgspec.structs import replace

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
from tproxy.flow.admit import Admission, Asking, admit
from tproxy.flow.answers import error_event, fault_headers, json_head
from tproxy.flow.body import SMALL_BYTES, Receive, RequestBody, announced_length
from tproxy.flow.course import Course
from tproxy.flow.forward import Client, Send, forward, watch
from tproxy.flow.identify import ANONYMOUS, Caller, check_open
from tproxy.flow.observer import Sight
from tproxy.flow.outgoing import Read, read_body
from tproxy.flow.request import Request
from tproxy.flow.route import Passage
from tproxy.flow.services import Services
from tproxy.flow.settle import prompt_tokens, settle
from tproxy.flow.spending import cut, following
from tproxy.flow.tap import Tap
from tproxy.protocol import headers as header
from tproxy.protocol.headers import Credential
from tproxy.store import base
from tproxy.store.base import Closing, Refusal, Ticket
from tproxy.wire.asgi import Transport
from tproxy.wire.pool import Body, Response

bugs = logging.getLogger("tproxy.exchange")

_ENDINGS: Mapping[type[Fault], str] = {
    UpstreamUnreachable: base.UPSTREAM_UNREACHABLE,
    UpstreamBroken: base.UPSTREAM_BROKEN,
    UpstreamTimeout: base.UPSTREAM_TIMEOUT,
}

_KNOWN_US = 1_000_000  # for so long a key that was looked at counts as not expired


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
        transport: Transport | None = None,
    ) -> None:
        self.services = services
        self.transport = transport
        self.request = request
        self.passage = passage
        self.ids = ids
        self.course = Course(id, passage, accepted_us, services.clock)
        self.tap = Tap(self.course, services.pulse)
        self.caller = ANONYMOUS  # until it is known
        self._version = self._identified_us = 0  # of what is known of callers, when it was asked
        self._relaying: trio.CancelScope | None = None  # the nursery's, while it is open
        self._body_whole = trio.Event()
        self._noted = False
        self._client: Client | None = None
        self._prices = services.govern.prices

    async def run(self, receive: Receive, send: Send) -> None:
        """Live it.

        Raises:
            Fault, ClientGone: before admission. Afterwards nothing is raised but Cancelled.
        """
        services, request = self.services, self.request
        credential = self._identify()
        announced = announced_length(request.headers)
        held = self.passage.held or (announced is not None and announced <= SMALL_BYTES)
        incoming = RequestBody(
            receive,
            announced=announced,
            limit=services.max_body_bytes if held else services.max_upload_bytes,
            timeout=services.body_seconds,
            on_end=self._body_whole.set,
            held=services.held,
            ready=self.transport.ready if self.transport is not None else None,
        )
        try:
            read: Read | None = None
            body: Body = incoming.piece
            if held:
                read = read_body(request, self.passage, await incoming.whole(), services.max_body_bytes)
                body = read.body
                self.course.model_asked = read.facts.model if read.facts is not None else None
            headers = read.headers if read is not None else request.headers
            asking = services.upstream.ask(
                request, self.passage, headers, body, credential, announced, self.course.sending
            )
            self.course.bytes_in = incoming.length
            client = self._client = self._answering(send)
            admission = await self._admit(read, credential)
            sight: Sight | None = None
            try:
                sight = self._show(admission, credential, read.plain if read is not None else None)
                del read, body, headers  # what is still needed of them is in `asking`
                request.let_go()
                if self.transport is not None:
                    self.transport.let_go()
                client.ids = (*client.ids, *admission.headers(trio.current_time()))
                fault = await self._exchange(asking, admission, receive, client)
                if fault is not None:
                    await self._tell(fault, admission.ticket, client)
            finally:
                self.course.bytes_in = incoming.length
                self._close(client, admission, sight)
        finally:
            incoming.release()

    def _identify(self) -> Credential:
        """Who asks; returns what to ask the upstream with."""
        services, request = self.services, self.request
        if services.draining():
            raise Draining("This proxy is shutting down. Send the request again: another one will take it.")
        if header.is_loop(request.headers, services.upstream.pseudonym):
            raise LoopDetected("The request has come back to this proxy. Its upstream.base_url leads to itself.")
        if services.ring.access == "open":
            check_open(request.is_local, header.get(request.headers, b"origin"))
        self._version, self._identified_us = services.ring.directory.version, services.clock()
        self.caller, credential = services.ring.identify(request.headers, self._identified_us)
        return credential

    async def _admit(self, read: Read | None, credential: Credential) -> Admission:
        services, request = self.services, self.request
        asking = Asking(
            id=self.course.id,
            accepted_us=self.course.accepted_us,
            passage=self.passage,
            upstream=services.upstream_name,
            identify=self._who,
            headers=request.headers,
            facts=read.facts if read is not None else None,
            body=read.plain if read is not None else None,
            betas=(header.joined(request.headers, b"anthropic-beta") or b"").decode("latin-1"),
            client_address=request.client_address,
            left=request.left,
            count_tokens=partial(services.upstream.count_tokens, request, credential),
        )
        return await admit(services.govern, services.ledger, asking, self._never_sent)

    def _who(self) -> Caller:
        """Who asks, now: a body may take its time, and money be waited for, and a change of a key counts at once."""
        services = self.services
        same = self._version == services.ring.directory.version and not services.draining()
        if not same or services.clock() > self._identified_us + _KNOWN_US:
            self._identify()
        return self.caller

    def _never_sent(self) -> Closing:
        """The end of a row that was opened while its exchange was cancelled."""
        self.course.broken = base.FAILED
        return settle(self.course, self.tap.outcome, self._prices)

    def _answering(self, send: Send) -> Client:
        services = self.services
        return Client(
            send,
            self._on_gone,
            ids=self.ids,
            pseudonym=services.upstream.pseudonym,
            bases=self.request.bases(services.base_url, self.passage.prefix),
            transport=self.transport,
        )

    async def _exchange(
        self, asking: AbstractAsyncContextManager[Response], admission: Admission, receive: Receive, client: Client
    ) -> Fault | None:
        """The nursery: forward, with the tap beside it where an answer goes on. Returns what broke, if anything.

        The watch is a task only where the server cannot tell otherwise that the client has left.
        """
        fault: Fault | None = None
        ended = False
        async with trio.open_nursery() as nursery:
            self._relaying = nursery.cancel_scope
            if self.transport is not None:
                self.transport.on_left = client.leave
                if self.transport.left.is_set():
                    client.leave()
            else:
                nursery.start_soon(watch, receive, self._body_whole, client)

            def beside() -> None:
                nursery.start_soon(self.tap.run, self._on_batch(admission))

            try:
                await forward(asking, admission.ticket, client, self.tap, self.course, beside)
                ended = True
            except ClientGone:
                client.leave()
            except Fault as broken:
                fault = broken
            except Exception:
                bugs.exception("exchange %s failed", self.course.id)
                fault = Internal("This proxy failed. Its log has the details under the request_id of this answer.")
            nursery.cancel_scope.cancel()
        await self.tap.settled()
        return fault or (None if ended else client.ending)  # cut by us, if it is to end with something

    def _on_batch(self, admission: Admission) -> Callable[[], None]:
        """What the books want to know of an answer while it runs."""
        follow = following(
            self.services.ledger,
            self.course.id,
            admission.claims,
            admission.governors,
            admission.costs,
            self._cut_at_budget,
        )

        def on_batch() -> None:
            if self._noted and follow is None:
                return  # nobody wants to know more
            outcome = self.tap.outcome
            if not outcome.started:
                return
            try:
                so_far = settle(self.course, outcome, self._prices, running=True)
                if not self._noted:  # so that a row whose process dies knows at least its input
                    self._noted = True
                    self.services.ledger.note(so_far)
                if follow is not None:
                    follow.see(so_far)
            except Exception:  # the books are in trouble, but not the stream
                bugs.exception("exchange %s cannot be followed", self.course.id)

        return on_batch

    def _on_gone(self) -> None:
        """The client has left: cut the upstream now, or let it drain for a while."""
        drain = self.services.drain_on_disconnect and self._body_whole.is_set()
        if self._relaying is not None:
            self._relaying.deadline = trio.current_time() + self.services.drain_seconds if drain else -math.inf

    def _cut_at_budget(self, refusal: Refusal) -> None:
        """End the stream at its next event: the budget that it is charged to has no more to give, and says to cut."""
        client = self._client
        if client is None or client.ending is not None:
            return
        # Where no event can be added, breaking the answer off is all that can be done.
        now = client.between_events or not client.is_open_stream
        client.end_with(cut(refusal))
        if now and self._relaying is not None:
            self._relaying.cancel()

    async def _tell(self, fault: Fault, ticket: Ticket, client: Client) -> None:
        """Answer a fault if that can still be done. If not, returning without an end breaks the answer off."""
        self.course.error_type = fault.code
        if client.gone:
            return
        self.course.broken = _ending(fault)
        if fault is client.ending:
            self.course.broken = base.CUT_AT_BUDGET
        if fault is client.ending and client.between_events:
            await client.body(error_event(fault, self.course.id), more=False)
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

    def _show(self, admission: Admission, credential: Credential, body: bytes | None) -> Sight:
        """Let those who look on see the exchange."""
        sight = Sight(
            admission.opening,
            self.course,
            self.tap,
            self.caller,
            self.services.ring.name_of(credential),
            admission.taken,
            lambda: settle(self.course, self.tap.outcome, self._prices, running=True),
        )
        self.services.observers.admitted(sight, self.request.headers, body)
        return sight

    def _close(self, client: Client, admission: Admission, sight: Sight | None) -> None:
        """The end of every admitted exchange: whatever fails in here, its row is closed and nothing stays taken."""
        self.course.client_gone = client.gone
        closing = Closing(id=self.course.id, ended=base.FAILED, ended_us=self.course.clock(), error_type="internal")
        try:
            closing = settle(self.course, self.tap.finish(), self._prices)
            if closing.ended == base.FAILED and closing.error_type is None:
                closing = replace(closing, error_type="shutdown")  # nothing failed: the exchange was cancelled
        except Exception:
            bugs.exception("exchange %s cannot be settled", self.course.id)
        finally:
            self.services.ledger.close(closing)
            if sight is not None:
                self.services.observers.ended(sight, closing)
            admission.taken.settle(prompt_tokens(closing), closing.output_tokens, trio.current_time())
        expected = admission.costs.expected
        if expected is not None and closing.certainty == base.EXACT:
            asked = self.course.model_asked or ""
            self.services.govern.expectations.learn(self.caller.id, asked, expected.size, closing)


def _ending(fault: Fault) -> str:
    if isinstance(fault, ClientFault):
        return base.CLIENT_FAULT
    return _ENDINGS.get(type(fault), base.FAILED)
