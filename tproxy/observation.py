"""From settings to all who look on: what is built once for the process, what a reload changes, what runs beside it.

Each part is made here and nowhere else, and is told here of new settings. What a part does is its own. One that fails
is begun again after a while: the server goes on without it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import structlog
import trio

from tproxy import logs
from tproxy.alert.alerts import Alerts
from tproxy.capture.capturing import Capturing
from tproxy.export.exports import Exports
from tproxy.flow.observer import Observers
from tproxy.flow.pulse import Pulse
from tproxy.flow.services import Services
from tproxy.manage.desk import Desk
from tproxy.manage.gate import ASGIApp
from tproxy.manage.health_page import Health, health_pages
from tproxy.manage.live_page import live_page
from tproxy.manage.metrics_page import Extra, captured, exported, metrics_page
from tproxy.observe.lines import Lines
from tproxy.observe.live import Live
from tproxy.observe.metrics import Metrics
from tproxy.observe.now import Now
from tproxy.observe.running import Running
from tproxy.settings import Settings
from tproxy.store import retention
from tproxy.store.sqlite import SqliteLedger

log = structlog.get_logger("tproxy.observation")

_AGAIN_SECONDS = 10.0  # until a part that failed is begun again


class Observation:
    """All who look on.

    Attributes:
        observers: what the flow tells.
        pulse: what its taps count.
        exports: who is given every exchange.
        capturing: what keeps bodies.
        extra: what parts tell the metrics beside what is counted.

    Args:
        services: those of now.
        clock: wall-clock microseconds since the epoch.
    """

    def __init__(
        self, settings: Settings, ledger: SqliteLedger, services: Callable[[], Services], clock: Callable[[], int]
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self._clock = clock
        self.pulse = Pulse()
        self.exports = Exports(settings, ledger, clock=clock)
        self.running = Running()
        self.live = Live(self.running, self.pulse, clock)
        self.metrics = Metrics(settings.metrics, lambda: services().govern.prices)
        self.extra: list[Extra] = [lambda: exported(self.exports.status()), lambda: captured(self.capturing)]
        self._services = services
        self.capturing = Capturing(settings.capture, clock)
        self.alerts = Alerts(settings.alerts, ledger, self.exports.status)
        self.observers = Observers([self.alerts.seen, self.running, self.capturing, self.live, self.metrics, Lines()])

    def take(self, settings: Settings) -> None:
        """Go by other settings from now on."""
        if settings.upstream.api_keys != self.settings.upstream.api_keys:
            self.alerts.seen.credentials.clear()  # the same names stand for others now
        self.settings = settings
        self.metrics.take(settings.metrics)
        self.exports.take(settings)
        self.alerts.take(settings.alerts)
        self.capturing.take(settings.capture)

    def pages(self, desk: Desk) -> Mapping[bytes, ASGIApp]:
        """The pages that are not the management API's, by their paths."""
        health = Health(desk, self.ledger, self.alerts, lambda: self.settings, self.exports.status)
        return {
            b"/live": live_page(desk, self.live),
            b"/metrics": self._metrics_page(desk),
            **health_pages(desk, health),
        }

    async def run(self, desk: Desk) -> None:
        """What goes on beside the server, until cancelled."""
        parts: Mapping[str, Callable[[], Awaitable[None]]] = {
            "live": self.live.run,
            "retention": self._retain,
            "exports": self.exports.run,
            "alerts": partial(self.alerts.run, desk),
            "captures": self.capturing.run,
        }
        async with trio.open_nursery() as nursery:
            for name, run in parts.items():
                nursery.start_soon(_kept, name, run)

    def _metrics_page(self, desk: Desk) -> ASGIApp:
        now = Now(
            self.metrics,
            self.running,
            self.pulse,
            self.observers,
            self.ledger,
            self._services,
            logs.dropped,
        )
        return metrics_page(desk, lambda: self.settings.metrics, self.metrics, now.families, self.extra)

    async def _retain(self) -> None:
        await retention.run(
            self.ledger,
            lambda: self.settings.retention_days,
            self.exports.position,
            now_us=self._clock,
        )


async def _kept(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a part until it returns, again and again where it fails."""
    while True:
        try:
            await run()
            return
        except Exception:
            log.exception("a part that looks on failed, and is begun again", part=name)
            await trio.sleep(_AGAIN_SECONDS)
