"""From settings to a proxy that is ready: the ledger, the pool, the keys, the prices, the management side.

Used by both ways to run it: `tproxy serve`, and hypercorn's own command.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import structlog
import trio
from pydantic import SecretStr

from tproxy.flow.admit import Governance
from tproxy.flow.body import Held
from tproxy.flow.expect import Expectations
from tproxy.flow.identify import KeyRing
from tproxy.flow.limits import Limiter
from tproxy.flow.line import Line
from tproxy.flow.outgoing import Upstream
from tproxy.flow.proxy import Proxy
from tproxy.flow.services import Services
from tproxy.manage.desk import Desk
from tproxy.manage.gate import ASGIApp, Gate, Late
from tproxy.manage.health import DRAINING, LEDGER_FAILS, Manage
from tproxy.observation import Observation
from tproxy.protocol.pricing import PriceBook, built_in
from tproxy.settings import Settings
from tproxy.store.directory import Directory, open_directory
from tproxy.store.keyfile import hash_key, load_keys
from tproxy.store.sqlite import SqliteLedger, open_ledger
from tproxy.store.subjects import KEY, NO_TERMS, Budget, Terms
from tproxy.wire.dial import tls_context
from tproxy.wire.pool import Bounds, Origin, Pool

log = structlog.get_logger("tproxy.server")

# What the ledger calls the built-in upstream: `spend` keeps its figures apart from money.
SANDBOX = "sandbox"


def now_us() -> int:
    """Wall-clock microseconds since the epoch."""
    return time.time_ns() // 1000


class House:
    """All that lives as long as the process, and the settings that it goes by now.

    Attributes:
        proxy: the ASGI application.
        settings: the newest that were taken.
    """

    proxy: Proxy
    desk: Desk

    def __init__(
        self, settings: Settings, ledger: SqliteLedger, *, draining: Callable[[], bool], sandbox: bool = False
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.directory: Directory
        self._draining = draining
        self._sandbox = sandbox
        # Unlike any other process's, also those of the same service: a Via that names us has been through here.
        self._pseudonym = b"tproxy-" + os.urandom(4).hex().encode()
        self._limiter = Limiter()
        self.observation = Observation(settings, ledger, lambda: self.proxy.services, now_us)
        self._expectations = Expectations()
        self._line = Line()

    async def open(self) -> None:
        """Load who is known, and take the settings for the first time.

        Raises:
            SettingsFault, PriceFault: files named by the settings have faults.
        """
        self.directory = await open_directory(self.settings.database_path, self.ledger, zone=self.zone, clock=now_us)
        self.directory.on_rotated = partial(self._limiter.move, KEY)
        services = await self._taken(self.settings)
        self.desk = self._desk()
        api = Gate(Late(partial(_api, self.desk)), self.desk)
        self.proxy = Proxy(services, Manage(self._unready, api, self.observation.pages(self.desk)))

    async def take(self, settings: Settings) -> Pool:
        """Let new exchanges work with other settings. Returns the pool that they no longer use.

        Raises:
            SettingsFault, PriceFault, OSError: a file named by them has faults; nothing has changed.
            LedgerUnavailable: the budgets of the file could not be written; its keys may have been taken.
        """
        before, self.settings = self.settings, settings  # the time zone is asked for while budgets are written
        try:
            services = await self._taken(settings)
        except BaseException:
            self.settings = before
            raise
        self.observation.take(settings)
        old, self.proxy.services = self.proxy.services, services
        return old.upstream.pool

    async def aclose(self) -> None:
        """Close the connections to the upstream."""
        await self.proxy.services.upstream.pool.aclose()

    def zone(self) -> ZoneInfo:
        """Where the days and months of budgets begin."""
        return ZoneInfo(self.settings.budgets.timezone)

    async def _taken(self, settings: Settings) -> Services:
        keys = load_keys(settings.key_file, os.environ) if settings.key_file is not None else {}
        book = prices(settings)
        url = urlsplit(settings.upstream.base_url)
        origin = Origin.parse(f"{url.scheme}://{url.netloc}")
        tls = tls_context(settings.upstream.ca_file) if origin.scheme == "https" else None
        # All files have been read: from here on nothing is at fault with the settings.
        await self.directory.set_file_keys(keys)
        await self.directory.set_proxy(_proxy_terms(settings))
        return Services(
            ring=KeyRing(
                access=settings.access,
                master=_digest(settings.master_key),
                directory=self.directory,
                api_keys=[key.get_secret_value() for key in settings.upstream.api_keys],
            ),
            upstream=Upstream(
                Pool(origin, _bounds(settings), tls),
                origin,
                url.path.encode(),
                self._pseudonym,
                settings.upstream.forward_traceparent,
            ),
            upstream_name=SANDBOX if self._sandbox else settings.upstream.base_url,
            base_url=settings.upstream.base_url,
            ledger=self.ledger,
            govern=Governance(
                self.directory,
                self._limiter,
                self._expectations,
                self._line,
                book,
                budget_mode=settings.budgets.mode,
                budget_wait=settings.budgets.wait,
                default_geo=settings.upstream.inference_geo,
                customers=not settings.metrics.disable_end_user_cost_tracking,
            ),
            clock=now_us,
            draining=self._draining,
            drain_on_disconnect=settings.upstream.on_disconnect == "drain",
            drain_seconds=settings.timeouts.drain,
            body_seconds=settings.timeouts.body,
            max_body_bytes=settings.limits.max_body_bytes,
            max_upload_bytes=settings.limits.max_upload_bytes,
            held=Held(settings.limits.max_held_bytes),
            observers=self.observation.observers,
            pulse=self.observation.pulse,
        )

    def _desk(self) -> Desk:
        return Desk(
            directory=self.directory,
            database=self.settings.database_path,
            clock=now_us,
            zone=self.zone,
            master=lambda: self.proxy.services.ring.master,
            prices=lambda: self.proxy.services.govern.prices,
            models=lambda: sorted({model.id for model in self.proxy.services.govern.prices.table.models.values()}),
            unready=self._unready,
            running=lambda: self.proxy.running,
            mode=lambda: self.settings.budgets.mode,
            captures=lambda: self.observation.capturing.shelf,
        )

    def _unready(self) -> str | None:
        if self._draining():
            return DRAINING
        return None if self.ledger.writable else LEDGER_FAILS


def _api(desk: Desk) -> ASGIApp:
    from tproxy.manage.app import build

    api = build(desk)
    gc.freeze()  # as at the start: it stays, and no collection need walk it
    return api


def prices(settings: Settings) -> PriceBook:
    """The built-in prices, with those of the price file over them.

    Raises:
        PriceFault: the price file has faults.
    """
    if settings.price_file is None:
        return built_in()
    return built_in().with_overrides(settings.price_file.read_bytes(), settings.price_file.name)


def _bounds(settings: Settings) -> Bounds:
    upstream, timeouts = settings.upstream, settings.timeouts
    return Bounds(
        connect=timeouts.connect,
        first_byte=timeouts.first_byte,
        idle=timeouts.idle,
        write=timeouts.write,
        queue=timeouts.queue,
        max_connections=upstream.max_connections,
        max_idle=upstream.max_idle_seconds,
        max_age=upstream.max_age_seconds,
    )


def _proxy_terms(settings: Settings) -> Terms:
    """What the setting for the whole proxy says."""
    budgets = settings.budgets
    if budgets.max_budget is None:
        return NO_TERMS
    return Terms(budgets=(Budget(period=budgets.budget_duration, limit_nano=budgets.max_budget),))


def _digest(secret: SecretStr | None) -> str | None:
    return None if secret is None else hash_key(secret.get_secret_value())


@asynccontextmanager
async def open_house(
    settings: Settings,
    draining: Callable[[], bool] = lambda: False,
    *,
    sandbox: bool = False,
    on_unwritten: Callable[[int], object] = lambda count: None,
) -> AsyncIterator[House]:
    """Open the ledger and the pool, and give the house whose `proxy` works with them.

    Args:
        sandbox: the upstream is the built-in sandbox, so that nothing is really spent; rows say so.
        on_unwritten: told at the end how many entries the ledger could not write, if there are any.

    Raises:
        SettingsFault, PriceFault: files named by the settings have faults.
        LedgerUnusable: the ledger cannot be opened.
    """
    house: House | None = None

    def zone() -> ZoneInfo:
        return ZoneInfo((settings if house is None else house.settings).budgets.timezone)

    async with open_ledger(
        settings.database_path,
        zone=zone,
        max_customers=settings.limits.max_customers,
        on_fault=lambda what: log.error("ledger", what=what),
        on_soft=lambda _: house.observation.alerts.soft_limit_passed() if house is not None else None,
    ) as ledger:
        if ledger.recovered:
            log.warning("exchanges of a process that died are closed as lost", count=ledger.recovered)
        house = House(settings, ledger, draining=draining, sandbox=sandbox)
        await house.open()
        try:
            async with trio.open_nursery() as beside:
                beside.start_soon(house.observation.run, house.desk)
                yield house
                beside.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await house.aclose()
    if ledger.unwritten:
        on_unwritten(ledger.unwritten)
