"""The whole house on loopback, inside a test: the sandbox (or another upstream), and tproxy under hypercorn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.wire.peer import Peer, Script, peer
from tproxy import assembly
from tproxy.flow.body import Receive
from tproxy.flow.forward import Send
from tproxy.flow.proxy import ASGIApp, Proxy
from tproxy.flow.request import Scope
from tproxy.sandbox.server import Sandbox, serve_sandbox
from tproxy.server import inbound_bounds, listening
from tproxy.settings import load
from tproxy.store import reading
from tproxy.wire import inbound

REAL_KEY = "sk-ant-api03-the-real-one"

# Whether the next house gets requests as any ASGI server would give them; see the fixture `both_paths`.
PLAIN_ASGI = False


@dataclass
class House:
    """A running proxy.

    Attributes:
        url: where it listens.
        upstream_url: what it stands before.
        stopping: set it to drain.
    """

    url: str
    upstream_url: str
    sandbox: Sandbox | None
    database: Path
    proxy: Proxy
    stopping: trio.Event

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    async def row(self, id: str) -> dict[str, Any]:
        """The row of an exchange, once it is closed."""
        with trio.fail_after(5):
            while True:
                row = await trio.to_thread.run_sync(reading.exchange, self.database, id)
                if row is not None and row["ended"] != "open":
                    return row
                await trio.sleep(0.01)  # the ledger's thread is not on trio's clock

    async def rows(self, count: int) -> list[dict[str, Any]]:
        """All rows, once there are `count` of them and all are closed."""
        with trio.fail_after(10):
            while True:
                rows = await trio.to_thread.run_sync(reading.recent, self.database, 10_000)
                if len(rows) >= count and all(row["ended"] != "open" for row in rows):
                    return rows
                await trio.sleep(0.01)


def config_text(upstream_url: str, *, tproxy: str = "", upstream: str = "", tables: str = "", top: str = "") -> str:
    """A configuration on a free port, with the real key in it."""
    return f"""
bind = ["127.0.0.1:0"]
worker_class = "trio"
graceful_timeout = 20
{top}
[tproxy]
database = "sqlite:books.db"
{tproxy}
[tproxy.upstream]
base_url = "{upstream_url}"
api_keys = ["{REAL_KEY}"]
{upstream}
{tables}
"""


@asynccontextmanager
async def open_house(folder: Path, *, upstream_url: str | None = None, **config: str) -> AsyncIterator[House]:
    """Open a house with its books in `folder`. Without `upstream_url`, before a sandbox that takes the real key only.

    Args:
        config: what goes into the configuration; see `config_text`.
    """
    async with trio.open_nursery() as nursery:
        sandbox = None
        if upstream_url is None:
            sandbox = await nursery.start(partial(serve_sandbox, keys=[REAL_KEY]))
            upstream_url = sandbox.url
        file = folder / "config.toml"
        file.write_text(config_text(upstream_url, **config))
        settings = load(file)
        inbound.install(inbound_bounds(settings))
        stopping = trio.Event()
        async with assembly.open_house(settings, stopping.is_set) as house, trio.open_nursery() as server:
            app = _without_extensions(house.proxy) if PLAIN_ASGI else house.proxy
            addresses = await server.start(listening(app, settings, stopping))
            yield House(addresses[0], upstream_url, sandbox, settings.database_path, house.proxy, stopping)
            stopping.set()
        nursery.cancel_scope.cancel()


def _without_extensions(proxy: Proxy) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await proxy({**scope, "extensions": {}}, receive, send)

    return app


@asynccontextmanager
async def open_house_before(
    folder: Path, *scripts: Script, path: str = "", **config: str
) -> AsyncIterator[tuple[House, Peer]]:
    """Open a house before a scripted upstream, see `tests/wire/peer.py`; `path` is that of its base URL."""
    async with (
        peer(*scripts) as upstream,
        open_house(folder, upstream_url=f"http://{upstream.origin}{path}", **config) as house,
    ):
        yield house, upstream
