"""`/health`: how the proxy does, in LiteLLM's shape with more beside it; and `/health/services`, which tries a channel
of the alerts.

| part | unwell when | `status` | answer |
|---|---|---|---|
| process | it drains | `draining` | 503 |
| ledger | it cannot be written | `unhealthy` | 503 |
| upstream | no HTTP comes back from its base URL | `unhealthy` | 503 |
| credentials | the upstream refused each of ours when it was last asked | `unhealthy` | 503 |
| credentials | it refused some of them | `degraded` | 200 |
| exports | one of them fails; nothing is lost, and nobody waits | `degraded` | 200 |

The upstream is asked with HEAD, without a credential and over a connection of its own: it spends no tokens, and any
answer will do. That is done at most once in `PROBE_SECONDS`, however often this page is asked for. Whether credentials
are valid is known from the exchanges alone: one that was not used yet counts as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import trio

from tproxy import __version__
from tproxy.alert.alert import TEST, Alert, Of, moment
from tproxy.alert.alerts import Alerts
from tproxy.alert.delivery import NAMES
from tproxy.errors import Fault, UpstreamFault
from tproxy.export.runner import SinkStatus
from tproxy.export.sink import NotTaken
from tproxy.manage import auth
from tproxy.manage.desk import Desk
from tproxy.manage.faults import Forbidden, Invalid
from tproxy.manage.gate import ASGIApp, Receive, Scope, Send, send_page
from tproxy.manage.health import DRAINING
from tproxy.manage.page import Page
from tproxy.settings import Settings
from tproxy.store.sqlite import SqliteLedger
from tproxy.store.subjects import ADMIN
from tproxy.wire.dial import tls_context
from tproxy.wire.pool import Bounds, Origin, Pool

PROBE_SECONDS: Final = 10.0
DEADLINE: Final = 5.0
EPISODES_SHOWN: Final = 100

_UNKEPT: Final = ((b"cache-control", b"no-store"),)
_REFUSED: Final = (401, 403)


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of asking the upstream: the status of its answer, or why there is none; and when, on trio's clock."""

    at: float
    milliseconds: float
    status: int | None
    fault: str | None = None


class Upstream:
    """Asks the upstream of the newest settings, and remembers what came of it for a while."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._last: tuple[object, Probe] | None = None
        self._turn = trio.Lock()

    async def probe(self) -> Probe:
        """What came of the last try, if that is not long ago; else of another one."""
        async with self._turn:  # who comes meanwhile takes what the first one finds
            settings = self._settings().upstream
            if self._last is not None:
                asked, last = self._last
                if asked == settings and trio.current_time() - last.at < PROBE_SECONDS:
                    return last
            found = await self._ask(settings.base_url, settings.ca_file)
            self._last = settings, found
            return found

    async def _ask(self, base_url: str, ca_file: Any) -> Probe:
        began = trio.current_time()

        def since() -> float:
            return round((trio.current_time() - began) * 1000, 1)

        url = urlsplit(base_url)
        origin = Origin.parse(f"{url.scheme}://{url.netloc}")
        headers = [(b"Host", origin.host_header), (b"User-Agent", f"tproxy/{__version__}".encode())]
        try:
            with trio.fail_after(DEADLINE):
                tls = await trio.to_thread.run_sync(tls_context, ca_file) if origin.scheme == "https" else None
                pool = Pool(
                    origin, Bounds(connect=DEADLINE, first_byte=DEADLINE, idle=DEADLINE, max_connections=1), tls
                )
                async with pool.exchange(b"HEAD", url.path.encode() or b"/", headers, b"") as answer:
                    status = answer.head.status
                await pool.aclose()
            return Probe(trio.current_time(), since(), status)
        except trio.TooSlowError:
            return Probe(trio.current_time(), since(), None, f"no answer within {DEADLINE:g} s")
        except UpstreamFault as fault:
            return Probe(trio.current_time(), since(), None, fault.message)
        except (Fault, OSError) as fault:
            return Probe(trio.current_time(), since(), None, type(fault).__name__)


class Health:
    """Makes the page.

    Args:
        settings: the newest.
        sinks: how the exports do.
    """

    def __init__(
        self,
        desk: Desk,
        ledger: SqliteLedger,
        alerts: Alerts,
        settings: Callable[[], Settings],
        sinks: Callable[[], Sequence[SinkStatus]] = lambda: (),
    ) -> None:
        self._desk = desk
        self._ledger = ledger
        self._alerts = alerts
        self._settings = settings
        self._sinks = sinks
        self._upstream = Upstream(settings)
        self._since_us = desk.clock()

    async def show(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the page."""
        probe = await self._upstream.probe()
        size = await trio.to_thread.run_sync(_size, self._desk.database)
        page = self.page(probe, size)
        await send_page(send, 200 if page["status"] in ("healthy", "degraded") else 503, page, _UNKEPT)

    def page(self, probe: Probe, size: int | None) -> dict[str, Any]:
        """How all of it does.

        Args:
            size: of the ledger's file, in bytes.
        """
        desk, ledger, settings = self._desk, self._ledger, self._settings()
        endpoints = self._endpoints(probe, settings)
        well = [each for each in endpoints if "error" not in each]
        unwell = [each for each in endpoints if "error" in each]
        sinks = [_sink(each) for each in self._sinks()]
        episodes = self._alerts.episodes.open
        status = "healthy"
        if unwell or any(each["error"] for each in sinks):
            status = "degraded"
        if not ledger.writable or not well:
            status = "unhealthy"
        if desk.unready() == DRAINING:
            status = "draining"
        return {
            "healthy_endpoints": well,
            "unhealthy_endpoints": unwell,
            "healthy_count": len(well),
            "unhealthy_count": len(unwell),
            "status": status,
            "version": __version__,
            "uptime_seconds": max(0, (desk.clock() - self._since_us) // 1_000_000),
            "running": desk.running(),
            "upstream": {
                "base_url": settings.upstream.base_url,
                "reachable": probe.fault is None,
                "status": probe.status,
                "latency_ms": probe.milliseconds,
                "error": probe.fault,
            },
            "ledger": {
                "writable": ledger.writable,
                "queued": ledger.queued,
                "behind_seconds": round(ledger.behind_us / 1_000_000, 3),
                "file_bytes": size,
                "recovered": ledger.recovered,
                "faults": ledger.faults,
            },
            "exports": sinks,
            "alerts": {
                "open": [
                    {"kind": each.kind, "subject": Of.parse(each.subject).id, "began": moment(each.began_us)}
                    for each in episodes[:EPISODES_SHOWN]
                ],
                "open_count": len(episodes),
                "delivered": self._alerts.delivery.delivered,
                "lost": self._alerts.delivery.lost,
            },
        }

    def _endpoints(self, probe: Probe, settings: Settings) -> list[dict[str, Any]]:
        """One for each of our credentials; one, if each client has its own."""
        base = {"model": "anthropic/*", "api_base": settings.upstream.base_url}
        names = [f"api_keys[{place}]" for place in range(len(settings.upstream.api_keys))] or ["own"]
        found = []
        for name in names:
            endpoint: dict[str, Any] = {**base, "credential": name, "last_status": None, "last_seen": None}
            seen = self._alerts.seen.credentials.get(name)
            if seen is not None:
                endpoint |= {"last_status": seen.status, "last_seen": moment(seen.at_us)}
            if probe.fault is not None:
                endpoint["error"] = probe.fault
            elif seen is not None and seen.status in _REFUSED:
                endpoint["error"] = f"the upstream refused this credential with {seen.status}"
            found.append(endpoint)
        return found

    async def try_channel(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a test alert by the channel that the query names as `service`, and say what came of it."""
        if auth.identify(self._desk, scope["headers"]).role != ADMIN:
            raise Forbidden("To send a test alert takes the master key, or a key with a role that may change things.")
        if scope["method"] != "GET":
            raise Invalid("A test alert is sent by GET alone.")
        name = parse_qs(scope["query_string"].decode("latin-1")).get("service", [""])[0]
        if name not in NAMES:
            raise Invalid(f"The query must name a service: {', '.join(NAMES)}.", param="service")
        now_us = self._desk.clock()
        alert = Alert(TEST, "warning", Of(), "", "This is a test: alerts of this proxy come this way.", {}, now_us)
        try:
            await self._alerts.delivery.try_now(name, alert)
        except NotTaken as fault:
            page = {"status": "error", "message": f"The alert was not delivered by {name}: {fault.why}."}
            await send_page(send, 502, page, _UNKEPT)
            return
        page = {"status": "success", "message": f"A test alert was delivered by {name}."}
        await send_page(send, 200, page, _UNKEPT)


def health_pages(desk: Desk, health: Health) -> Mapping[bytes, ASGIApp]:
    """The pages by their paths."""
    return {b"/health": Page(desk, health.show), b"/health/services": Page(desk, health.try_channel)}


def _sink(status: SinkStatus) -> dict[str, Any]:
    return {
        "name": status.name,
        "behind": status.behind,
        "last_taken": None if status.last_us is None else moment(status.last_us),
        "failures": status.failures,
        "error": status.fault,
    }


def _size(path: os.PathLike[str]) -> int | None:
    try:
        return os.stat(path).st_size + _size_of_wal(path)
    except OSError:
        return None


def _size_of_wal(path: os.PathLike[str]) -> int:
    """What was written last may stand beside the file for a while."""
    try:
        return os.stat(f"{os.fspath(path)}-wal").st_size
    except FileNotFoundError:
        return 0
