"""The process: what is opened, in which order, and how it ends.

    serve ── settings ── sandbox? ── ledger ── pool ── hypercorn, with our connection class ── signals

- SIGTERM and SIGINT drain: the listeners close at once, running exchanges have `graceful_timeout` seconds to finish,
  the ledger is flushed, and `serve` returns. A second signal cancels what still runs.
- SIGHUP reloads keys, prices and every setting that can change while it runs. A file with faults changes nothing.

The same application runs under hypercorn's own command: there the lifespan opens what `serve` opens here, and
hypercorn has the signals.
"""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import hypercorn.trio
import structlog
import trio
from hypercorn.config import Config
from pydantic import SecretStr

from tproxy import logs
from tproxy.flow.body import Receive
from tproxy.flow.exchange import Services
from tproxy.flow.forward import Send
from tproxy.flow.identify import KeyRing
from tproxy.flow.proxy import Proxy
from tproxy.flow.request import Scope
from tproxy.manage.health import Manage
from tproxy.protocol.pricing import PriceBook, PriceFault, built_in
from tproxy.sandbox.server import serve_sandbox
from tproxy.settings import Settings, SettingsFault, load
from tproxy.store.base import Ledger
from tproxy.store.keyfile import load_keys
from tproxy.store.migrate import LedgerUnusable
from tproxy.store.sqlite import open_ledger
from tproxy.wire import inbound
from tproxy.wire.dial import tls_context
from tproxy.wire.pool import Bounds, Origin, Pool

log = structlog.get_logger("tproxy.server")

# What a reload cannot change: it is built into listeners, connections and open files.
_FIXED = ("hypercorn", "database", "limits")


def now_us() -> int:
    """Wall-clock microseconds since the epoch."""
    return time.time_ns() // 1000


def services(settings: Settings, ledger: Ledger, *, pseudonym: bytes, draining: Callable[[], bool]) -> Services:
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
    return None if secret is None else hashlib.sha256(secret.get_secret_value().encode()).hexdigest()


@asynccontextmanager
async def open_proxy(settings: Settings, draining: Callable[[], bool] = lambda: False) -> AsyncIterator[Proxy]:
    """Open the ledger and the pool, and give the application that works with them.

    Raises:
        SettingsFault, PriceFault: files named by the settings have faults.
        LedgerUnusable: the ledger cannot be opened.
    """
    async with open_ledger(settings.database_path, on_fault=lambda what: log.error("ledger", what=what)) as ledger:
        if ledger.recovered:
            log.warning("exchanges of a process that died are closed as lost", count=ledger.recovered)
        # Unlike any other process's, also those of the same service: a Via that names us has been through here.
        pseudonym = b"tproxy-" + os.urandom(4).hex().encode()
        first = services(settings, ledger, pseudonym=pseudonym, draining=draining)

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


def inbound_bounds(settings: Settings) -> inbound.Bounds:
    """What holds for every connection of a client."""
    return inbound.Bounds(
        head=settings.timeouts.head,
        write=settings.timeouts.write,
        max_header_bytes=settings.limits.max_header_bytes,
        max_headers=settings.limits.max_headers,
    )


class Application:
    """The proxy as hypercorn wants it: lifespan and requests.

    Args:
        opening: gives the proxy when the lifespan starts.
    """

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[Proxy]]) -> None:
        self._opening = opening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope. Only plain requests come here: the connection class refuses everything else."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await scope["state"]["proxy"](scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self._opening() as proxy:
                scope["state"]["proxy"] = proxy
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except (SettingsFault, PriceFault, LedgerUnusable, OSError) as fault:
            await send({"type": "lifespan.startup.failed", "message": str(fault)})
            return
        await send({"type": "lifespan.shutdown.complete"})


@asynccontextmanager
async def _under_hypercorn() -> AsyncIterator[Proxy]:
    settings = load(Path(os.environ.get("TPROXY_CONFIG", "config.toml")))
    logs.configure(settings.log.level, settings.log.format)
    _raise_descriptor_limit()
    # hypercorn looks its connection class up after the lifespan has started.
    inbound.install(inbound_bounds(settings))
    async with open_proxy(settings) as proxy:
        log.info("started", access=settings.access, upstream=settings.upstream.base_url)
        yield proxy


application = Application(_under_hypercorn)


async def serve(config: Path, *, sandbox: bool, announce: Callable[[str, Settings], None]) -> bool:
    """Serve until a signal ends it. Returns whether it drained; if not, a second signal cut what still ran.

    Args:
        config: the configuration file.
        sandbox: use the built-in sandbox as the upstream.
        announce: called with the first address and the settings, once connections are accepted.

    Raises:
        SettingsFault, PriceFault, LedgerUnusable: it cannot start. In an exception group, as trio's nurseries have it.
        OSError: an address is in use.
    """
    stopping, drained = trio.Event(), False
    async with trio.open_nursery() as nursery:
        upstream = (await nursery.start(partial(serve_sandbox, paced=True))).url if sandbox else None
        settings = load(config, sandbox=upstream)
        logs.configure(settings.log.level, settings.log.format)
        _raise_descriptor_limit()
        inbound.install(inbound_bounds(settings))
        async with open_proxy(settings, stopping.is_set) as proxy:
            reloading = partial(reload, proxy, settings, config, upstream)
            await nursery.start(_signals, stopping, nursery, reloading)
            async with trio.open_nursery() as server:
                addresses = await server.start(listening(proxy, settings, stopping))
                log.info("started", listening=addresses, access=settings.access, upstream=settings.upstream.base_url)
                if settings.access == "open":
                    log.warning("access is open: whoever can reach a listening address spends the real key's money")
                announce(addresses[0], settings)
        drained = True
        log.info("stopped")
        nursery.cancel_scope.cancel()
    return drained


def listening(proxy: Proxy, settings: Settings, stopping: trio.Event) -> Callable[..., Awaitable[None]]:
    """hypercorn, ready for `nursery.start`, which gives the list of addresses. It returns when it has drained."""
    return partial(
        hypercorn.trio.serve,
        Application(lambda: nullcontext(proxy)),  # type: ignore[arg-type]
        _hypercorn_config(settings),
        shutdown_trigger=stopping.wait,
        mode="asgi",
    )


def _hypercorn_config(settings: Settings) -> Config:
    config = Config.from_mapping(dict(settings.hypercorn))
    config.workers = 1
    config.alpn_protocols = ["http/1.1"]
    # hypercorn's lines join ours; where it listens is said by us.
    config.errorlog = logging.getLogger("hypercorn.error")
    config.errorlog.setLevel(logging.WARNING)
    return config


def reload(proxy: Proxy, started_with: Settings, config: Path, sandbox: str | None, nursery: trio.Nursery) -> None:
    """Read the files again and let new exchanges work with what they say. With faults, nothing changes."""
    try:
        settings = load(config, sandbox=sandbox)
        old = proxy.services
        proxy.services = services(settings, old.ledger, pseudonym=old.pseudonym, draining=old.draining)
    except (SettingsFault, PriceFault, OSError) as fault:
        log.error("not reloaded, going on as before", faults=str(fault).splitlines())
        return
    logs.configure(settings.log.level, settings.log.format)
    nursery.start_soon(old.pool.aclose)
    fixed = [name for name in _FIXED if getattr(settings, name) != getattr(started_with, name)]
    log.info("reloaded", needs_a_restart=fixed)


async def _signals(
    stopping: trio.Event,
    nursery: trio.Nursery,
    reloading: Callable[[trio.Nursery], None],
    task_status: trio.TaskStatus[None],
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        task_status.started()
        async for number in received:
            if number == signal.SIGHUP:
                reloading(nursery)
            elif stopping.is_set():
                log.warning("a second signal: what still runs is cut")
                nursery.cancel_scope.cancel()
            else:
                log.info("draining", signal=signal.Signals(number).name)
                stopping.set()


def _raise_descriptor_limit() -> None:
    """An open stream holds two descriptors; the usual soft limit of 1,024 would end at 500 streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
