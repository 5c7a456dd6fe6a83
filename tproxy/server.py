"""The process: what is started, in which order, and how it ends.

    serve ── settings ── sandbox? ── ledger ── pool ── hypercorn, with our connection class ── signals

- SIGTERM and SIGINT drain: the listeners close at once, running exchanges have `graceful_timeout` seconds to finish,
  the ledger is flushed, and `serve` returns. A second signal cancels what still runs.
- SIGHUP reloads keys, prices and every setting that can change while it runs. A file with faults changes nothing.

The same application runs under hypercorn's own command: there the lifespan opens what `serve` opens here, and
hypercorn has the signals.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

import hypercorn.trio
import structlog
import trio
from hypercorn.config import Config

from tproxy import logs
from tproxy.assembly import House, open_house
from tproxy.errors import LedgerUnavailable
from tproxy.flow.body import Receive
from tproxy.flow.forward import Send
from tproxy.flow.proxy import ASGIApp
from tproxy.flow.request import Scope
from tproxy.protocol.pricing import PriceFault
from tproxy.sandbox.server import serve_sandbox
from tproxy.settings import Settings, SettingsFault, load
from tproxy.store.migrate import LedgerUnusable
from tproxy.wire import inbound

log = structlog.get_logger("tproxy.server")

_LONG_KEY = 16  # characters, as of the keys that people choose


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

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[ASGIApp]]) -> None:
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
        except (SettingsFault, PriceFault, LedgerUnusable, LedgerUnavailable, OSError) as fault:
            await send({"type": "lifespan.startup.failed", "message": str(fault)})
            return
        await send({"type": "lifespan.shutdown.complete"})


@asynccontextmanager
async def _under_hypercorn() -> AsyncIterator[ASGIApp]:
    settings = load(Path(os.environ.get("TPROXY_CONFIG", "config.toml")))
    logs.configure(settings.log.level, settings.log.format)
    _raise_descriptor_limit()
    # hypercorn looks its connection class up after the lifespan has started.
    inbound.install(inbound_bounds(settings))
    async with open_house(settings) as house:
        _tune_collector()
        log.info("started", access=settings.access, upstream=settings.upstream.base_url)
        yield house.proxy


application = Application(_under_hypercorn)


async def serve(config: Path, *, sandbox: bool, announce: Callable[[str, Settings], None]) -> bool:
    """Serve until a signal ends it. Returns whether it drained and the ledger has it all; if not, a second signal cut
    what still ran, or the end of exchanges could not be written.

    Args:
        config: the configuration file.
        sandbox: use the built-in sandbox as the upstream.
        announce: called with the first address and the settings, once connections are accepted.

    Raises:
        SettingsFault, PriceFault, LedgerUnusable: it cannot start. In an exception group, as trio's nurseries have it.
        OSError: an address is in use.
    """
    stopping, drained = trio.Event(), False
    unwritten: list[int] = []
    async with trio.open_nursery() as nursery:
        upstream = (await nursery.start(partial(serve_sandbox, paced=True))).url if sandbox else None
        settings = load(config, sandbox=upstream)
        logs.configure(settings.log.level, settings.log.format)
        _raise_descriptor_limit()
        inbound.install(inbound_bounds(settings))
        async with open_house(settings, stopping.is_set, sandbox=sandbox, on_unwritten=unwritten.append) as house:
            reloading = partial(reload, house, settings, config, upstream)
            await nursery.start(_signals, stopping, nursery, reloading)
            async with trio.open_nursery() as server:
                addresses = await _start(server, listening(house.proxy, settings, stopping), settings)
                log.info("started", listening=addresses, access=settings.access, upstream=settings.upstream.base_url)
                if settings.master_key is not None and len(settings.master_key.get_secret_value()) < _LONG_KEY:
                    log.warning("the master key is short, and it opens everything: make a longer one")
                if settings.access == "open" and not sandbox:
                    log.warning("access is open: whoever can reach a listening address spends the real key's money")
                _tune_collector()
                announce(addresses[0], settings)
        drained = True
        log.info("stopped")
        nursery.cancel_scope.cancel()
    return drained and not unwritten


async def _start(server: trio.Nursery, serving: Callable[..., Awaitable[None]], settings: Settings) -> list[str]:
    addresses: list[str] = []
    try:
        addresses = await server.start(serving)
    except* OSError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):  # one for each of hypercorn's nurseries
            error = error.exceptions[0]
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        binds = ", ".join(settings.hypercorn["bind"])
        raise OSError(f"cannot listen on {binds}: {why}; change bind in the configuration") from group
    return addresses


def listening(proxy: ASGIApp, settings: Settings, stopping: trio.Event) -> Callable[..., Awaitable[None]]:
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


async def reload(house: House, started_with: Settings, config: Path, sandbox: str | None) -> None:
    """Read the files again and let new exchanges work with what they say. With faults, nothing changes."""
    try:
        settings = load(config, sandbox=sandbox)
        old_pool = await house.take(settings)
    except (SettingsFault, PriceFault, LedgerUnavailable, OSError) as fault:
        log.error("not reloaded, going on as before", faults=str(fault).splitlines())
        return
    logs.configure(settings.log.level, settings.log.format)
    before, now = _fixed(started_with), _fixed(settings)
    fixed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    log.info("reloaded")
    if fixed:
        log.warning("these settings change with a restart only", settings=fixed)
    await old_pool.aclose()


def _fixed(settings: Settings) -> dict[str, object]:
    """What a reload cannot change: it is built into listeners, connections and open files."""
    timeouts, limits = settings.timeouts, settings.limits
    return {
        **settings.hypercorn,
        "tproxy.database": settings.database,
        "tproxy.limits.max_customers": limits.max_customers,
        "tproxy.timeouts.head": timeouts.head,
        "tproxy.timeouts.write": timeouts.write,
        "tproxy.limits.max_header_bytes": limits.max_header_bytes,
        "tproxy.limits.max_headers": limits.max_headers,
    }


async def _signals(
    stopping: trio.Event,
    nursery: trio.Nursery,
    reloading: Callable[[], Awaitable[None]],
    task_status: trio.TaskStatus[None],
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        task_status.started()
        async for number in received:
            if number == signal.SIGHUP:
                await reloading()
            elif stopping.is_set():
                log.warning("a second signal: what still runs is cut")
                nursery.cancel_scope.cancel()
            else:
                stopping.set()
                log.info("draining", signal=signal.Signals(number).name)


def _tune_collector() -> None:
    """Look for cycles seldom, and never among what the start has made.

    With a thousand streams a full collection walks all of their tasks and holds up each of them for 20 to 300 ms
    (measured), and Python's own thresholds bring one every few seconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _raise_descriptor_limit() -> None:
    """An open stream holds two descriptors; the usual soft limit of 1,024 would end at 500 streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
