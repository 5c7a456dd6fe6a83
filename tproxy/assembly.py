"""From settings to a proxy that is ready: the ledger, the pool, the keys, the prices.

Used by both ways to run it: `tproxy serve`, and hypercorn's own command.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import structlog
import trio
from pydantic import SecretStr

from tproxy.flow.body import Held
from tproxy.flow.exchange import Services
from tproxy.flow.identify import KeyRing
from tproxy.flow.proxy import Proxy
from tproxy.manage.health import Manage
from tproxy.protocol.pricing import PriceBook, built_in
from tproxy.settings import Settings
from tproxy.store.base import Ledger
from tproxy.store.keyfile import hash_key, load_keys
from tproxy.store.sqlite import open_ledger
from tproxy.wire.dial import tls_context
from tproxy.wire.pool import Bounds, Origin, Pool

log = structlog.get_logger("tproxy.server")

# What the ledger calls the built-in upstream: `spend` keeps its figures apart from money.
SANDBOX = "sandbox"


def now_us() -> int:
    """Wall-clock microseconds since the epoch."""
    return time.time_ns() // 1000


def services(
    settings: Settings, ledger: Ledger, *, pseudonym: bytes, draining: Callable[[], bool], sandbox: bool = False
) -> Services:
    """Build what exchanges work with.

    Raises:
        SettingsFault: the key file has faults.
        PriceFault: the price file has faults.
    """
    upstream, timeouts = settings.upstream, settings.timeouts
    url = urlsplit(upstream.base_url)
    origin = Origin.parse(f"{url.scheme}://{url.netloc}")
    bounds = Bounds(
        connect=timeouts.connect,
        first_byte=timeouts.first_byte,
        idle=timeouts.idle,
        write=timeouts.write,
        queue=timeouts.queue,
        max_connections=upstream.max_connections,
        max_idle=upstream.max_idle_seconds,
        max_age=upstream.max_age_seconds,
    )
    return Services(
        ring=KeyRing(
            access=settings.access,
            master=_digest(settings.master_key),
            keys=load_keys(settings.key_file, os.environ) if settings.key_file is not None else {},
            api_keys=[key.get_secret_value() for key in upstream.api_keys],
        ),
        pool=Pool(origin, bounds, tls_context(upstream.ca_file) if origin.scheme == "https" else None),
        origin=origin,
        upstream=SANDBOX if sandbox else upstream.base_url,
        base_url=upstream.base_url,
        base_path=url.path.encode(),
        ledger=ledger,
        prices=prices(settings),
        pseudonym=pseudonym,
        clock=now_us,
        draining=draining,
        drain_on_disconnect=upstream.on_disconnect == "drain",
        drain_seconds=timeouts.drain,
        body_seconds=timeouts.body,
        max_body_bytes=settings.limits.max_body_bytes,
        max_upload_bytes=settings.limits.max_upload_bytes,
        held=Held(settings.limits.max_held_bytes),
    )


def prices(settings: Settings) -> PriceBook:
    """The built-in prices, with those of the price file over them.

    Raises:
        PriceFault: the price file has faults.
    """
    if settings.price_file is None:
        return built_in()
    return built_in().with_overrides(settings.price_file.read_bytes(), settings.price_file.name)


def _digest(secret: SecretStr | None) -> str | None:
    return None if secret is None else hash_key(secret.get_secret_value())


@asynccontextmanager
async def open_proxy(
    settings: Settings,
    draining: Callable[[], bool] = lambda: False,
    *,
    sandbox: bool = False,
    on_unwritten: Callable[[int], object] = lambda count: None,
) -> AsyncIterator[Proxy]:
    """Open the ledger and the pool, and give the application that works with them.

    Args:
        sandbox: the upstream is the built-in sandbox, so that nothing is really spent; rows say so.
        on_unwritten: told at the end how many entries the ledger could not write, if there are any.

    Raises:
        SettingsFault, PriceFault: files named by the settings have faults.
        LedgerUnusable: the ledger cannot be opened.
    """
    async with open_ledger(settings.database_path, on_fault=lambda what: log.error("ledger", what=what)) as ledger:
        if ledger.recovered:
            log.warning("exchanges of a process that died are closed as lost", count=ledger.recovered)
        # Unlike any other process's, also those of the same service: a Via that names us has been through here.
        pseudonym = b"tproxy-" + os.urandom(4).hex().encode()
        first = services(settings, ledger, pseudonym=pseudonym, draining=draining, sandbox=sandbox)

        def unready() -> str | None:
            if draining():
                return "draining"
            return None if ledger.writable else "the ledger cannot be written"

        proxy = Proxy(first, Manage(unready))
        try:
            yield proxy
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await proxy.services.pool.aclose()
    if ledger.unwritten:
        on_unwritten(ledger.unwritten)
