"""The page `/metrics`.

A scrape looks at what runs, reads how budgets stand in a thread, and is written on the loop, piece by piece, one scrape
at a time. Where the ledger's file cannot be read, the page goes out without its part and says so.
"""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from itertools import chain
from typing import Final

import structlog
import trio

from tproxy.capture.capturing import Capturing
from tproxy.errors import Header
from tproxy.export.runner import SinkStatus
from tproxy.manage import faults
from tproxy.manage.desk import Desk
from tproxy.manage.gate import ASGIApp, Receive, Scope, Send, send_page
from tproxy.manage.page import Page
from tproxy.observe.metrics import Metrics
from tproxy.observe.series import Family, by, single
from tproxy.observe.standing import standing
from tproxy.protocol import headers as header
from tproxy.setting_tables import Metrics as MetricsTable
from tproxy.store.migrate import LedgerUnusable

log = structlog.get_logger("tproxy.metrics")

Extra = Callable[[], Iterable[Family]]
"""What another part tells: called on the loop at each scrape; it neither waits nor reads a file."""

_FAST: Final = 1  # of gzip: a page is mostly repetition
_LOOKING: Final = 10.0  # seconds that a scrape waits for those before it


def metrics_page(
    desk: Desk,
    settings: Callable[[], MetricsTable],
    metrics: Metrics,
    now: Callable[[], Awaitable[Sequence[Family]]],
    extra: Sequence[Extra] = (),
) -> ASGIApp:
    """ASGI application: the page, or 404 while metrics are off.

    Args:
        now: what is so at this moment.
        extra: what other parts tell; one that fails is logged, and the page goes out without it.
    """
    turn = trio.Lock()

    async def show(scope: Scope, receive: Receive, send: Send) -> None:
        gathered = [*await now(), *_told(extra), *await _standing(desk, settings().max_label_sets)]
        accept = (header.joined(scope["headers"], b"accept") or b"").decode("latin-1")
        compressed = _takes_gzip(scope["headers"])
        with trio.move_on_after(_LOOKING) as patience:
            await turn.acquire()
        if patience.cancelled_caught:
            busy = faults.content(503, "Other scrapes are being answered. Try again.", "overloaded")
            await send_page(send, 503, busy, ((b"retry-after", b"1"),))
            return
        try:
            content_type, body = await _written(chain(metrics.families(), gathered), accept)
            if compressed:
                body = await trio.to_thread.run_sync(gzip.compress, body, _FAST)
        finally:
            turn.release()
        lines: list[Header] = [
            (b"content-type", content_type.encode("ascii")),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            (b"vary", b"accept, accept-encoding"),
        ]
        if compressed:
            lines.append((b"content-encoding", b"gzip"))
        await send({"type": "http.response.start", "status": 200, "headers": lines})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    page = Page(desk, show, public=lambda: settings().public)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if settings().enabled:
            await page(scope, receive, send)
            return
        off = faults.content(404, "Metrics are off: tproxy.metrics.enabled is false.", "not_found_error")
        try:
            await send_page(send, 404, off)
        except OSError:
            log.debug("client_gone")

    return app


async def _standing(desk: Desk, most: int) -> list[Family]:
    read = partial(standing, find=desk.directory.find, most=most, now_us=desk.clock(), zone=desk.zone())
    try:
        families = await desk.look(read)
    except LedgerUnusable as fault:
        log.warning("metrics: the budgets cannot be read", why=str(fault))
        families = []
    return [*families, single("tproxy_budgets_read", "gauge", "Could the budgets be read?", 1 if families else 0)]


def exported(sinks: Iterable[SinkStatus]) -> list[Family]:
    """How the exports do."""
    each = list(sinks)
    return [
        Family(
            "tproxy_export_lag_exchanges",
            "gauge",
            "Exchanges that a sink has not taken.",
            ("sink",),
            [((sink.name,), sink.behind) for sink in each],
        ),
        Family(
            "tproxy_export_failures",
            "counter",
            "How often a sink did not take what it was given.",
            ("sink",),
            [((sink.name,), sink.failures) for sink in each],
        ),
    ]


def captured(capturing: Capturing) -> list[Family]:
    """How the captures do."""
    counts = {"kept": capturing.kept, "dropped": capturing.dropped, "failed": capturing.failed}
    return [
        by("tproxy_captures", "Exchanges whose bodies were to be kept, by what became of them.", "outcome", counts),
        single("tproxy_captures_held_bytes", "gauge", "Bodies that are held until they are kept.", capturing.held),
    ]


def _told(extra: Sequence[Extra]) -> list[Family]:
    told: list[Family] = []
    for each in extra:
        try:
            told += each()
        except Exception:
            log.exception("metrics: a part cannot tell its figures")
    return told


async def _written(families: Iterable[Family], accept: str) -> tuple[str, bytes]:
    """The content type of the page, and the page."""
    exposition = await trio.to_thread.run_sync(import_module, "tproxy.observe.exposition")
    writing = exposition.Writing(families, accept)
    pieces: list[bytes] = []
    for piece in writing.pieces():
        pieces.append(piece)
        await trio.lowlevel.checkpoint()
    return writing.content_type, b"".join(pieces)


def _takes_gzip(headers: Sequence[Header]) -> bool:
    """Does the client take gzip? (RFC 9110 section 12.5.3, as far as scrapers use it.)"""
    codings = (header.joined(headers, b"accept-encoding") or b"").lower().split(b",")
    for coding in codings:
        name, _, weight = coding.partition(b";")
        if name.strip() == b"gzip":
            return weight.replace(b" ", b"") not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000")
    return False
