"""`/live`: what runs now, as a stream of server-sent events that goes on for as long as the client stays.

    id: 17
    event: snapshot
    data: {"at_us": …, "totals": {…}, "exchanges": […]}

Each event is whole by itself, so that a client that missed some has lost nothing; `docs/live.md` has the fields. The
stream ends with the event `end` when the server drains, which it does not hold up, and when the key that opened it
opens it no more; without a word when the client leaves, or takes nothing for `SEND_SECONDS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qsl

import structlog
import trio

from tproxy.manage import auth
from tproxy.manage.desk import Desk
from tproxy.manage.faults import ApiFault, Invalid
from tproxy.manage.gate import Message, Receive, Scope, Send
from tproxy.manage.health import DRAINING
from tproxy.manage.page import Page
from tproxy.observe.live import LEAST_SECONDS, MAX_VIEWERS, MOST_SECONDS, Full, Live
from tproxy.store.subjects import ADMIN, VIEWER

log = structlog.get_logger("tproxy.manage")

SEND_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.5  # the most that an end waits
_EARLY: Final = 0.9  # of the interval, after which the next tick is the one: ticks are not that even
_HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-accel-buffering", b"no"),  # nginx holds back what is small
)


class TooManyViewers(ApiFault):
    """As many look already as may."""

    status = 429
    type = "rate_limit_error"


def live_page(desk: Desk, live: Live) -> Page:
    """The page at `/live`."""
    return Page(desk, _Show(live, desk))


class _Show:
    """Answers one request that was let in."""

    def __init__(self, live: Live, desk: Desk) -> None:
        self._live = live
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seconds = _interval(scope["query_string"])
        try:
            with self._live.watching(seconds):
                await self._answer(scope, seconds, receive, send)
        except Full:
            raise TooManyViewers(f"{MAX_VIEWERS} others look already, and no more can: end one of them.") from None

    async def _answer(self, scope: Scope, seconds: float, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
            try:
                await self._stream(scope, seconds, send)
            except OSError:
                log.debug("client_gone", method=scope["method"])  # raised here, for a nursery would wrap it
            nursery.cancel_scope.cancel()

    async def _stream(self, scope: Scope, seconds: float, send: Send) -> None:
        number, due = 0, -math.inf
        if not await _taken(send, [{"type": "http.response.start", "status": 200, "headers": _HEADERS}]):
            return
        while (why := self._ending(scope)) is None:
            snapshot = None
            with trio.move_on_after(POLL_SECONDS):
                await trio.sleep_until(due)
                snapshot = await self._live.newer(number)
            if snapshot is None:
                continue
            number, due = snapshot.number, trio.current_time() + _EARLY * seconds
            first, *others = snapshot.pieces
            pieces = [b"id: %d\nevent: snapshot\ndata: %b" % (number, first), *others, b"\n\n"]
            if not await _taken(send, [_body(piece, more=True) for piece in pieces]):
                log.info("who looks at /live takes nothing, and is dropped", seconds=SEND_SECONDS)
                return
        await _taken(send, [_body(b'event: end\ndata: {"reason":"%b"}\n\n' % why, more=False)])

    def _ending(self, scope: Scope) -> bytes | None:
        """Why a stream is to end, if it is: also a key that was blocked meanwhile shows no more."""
        transport = scope.get("extensions", {}).get("tproxy")  # under hypercorn's own command it alone knows
        if self._desk.unready() == DRAINING or (transport is not None and transport.draining()):
            return b"draining"
        try:
            may = auth.identify(self._desk, scope["headers"]).role in (ADMIN, VIEWER)
        except ApiFault:
            may = False
        return None if may else b"not_allowed"


def _body(piece: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": piece, "more_body": more}


async def _taken(send: Send, messages: Sequence[Message]) -> bool:
    """Send messages, within `SEND_SECONDS`; False: they were not taken by then."""
    with trio.move_on_after(SEND_SECONDS) as patience:
        for message in messages:
            await trio.lowlevel.checkpoint()  # a write that is taken at once lets nobody run
            await send(message)
    return not patience.cancelled_caught


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    """End the stream when the client leaves, also while nothing is sent."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _interval(query: bytes) -> float:
    """The seconds between two snapshots that a query asks for; one, where it does not.

    Raises:
        Invalid: they are out of bounds, or it asks for something else.
    """
    seconds = 1.0
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name != "interval":
            raise Invalid("This page has no such parameter; it has interval.", param="query")
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
            raise Invalid(f"It must be a number of seconds, {LEAST_SECONDS:g} to {MOST_SECONDS:g}.", param="interval")
    return seconds
