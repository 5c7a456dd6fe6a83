"""An exchange without a server: the application is called as ASGI would, before a real pool and a scripted peer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from tests.flow.known import Known
from tests.store.memory import MemoryLedger
from tests.wire.peer import Peer, Script, peer
from tproxy.errors import Header
from tproxy.flow.admit import Governance
from tproxy.flow.body import Held
from tproxy.flow.expect import Expectations
from tproxy.flow.identify import KeyRing
from tproxy.flow.limits import Limiter
from tproxy.flow.line import Line
from tproxy.flow.observer import Observer, Observers
from tproxy.flow.outgoing import Upstream
from tproxy.flow.proxy import Proxy
from tproxy.flow.pulse import Pulse
from tproxy.flow.services import Services
from tproxy.manage.health import Manage
from tproxy.observe.lines import Lines
from tproxy.protocol.pricing import built_in
from tproxy.store.subjects import Subject
from tproxy.wire.asgi import Transport
from tproxy.wire.pool import Bounds, Pool

REAL_KEY = "sk-ant-real"
BODY = b'{"model":"claude-opus-5-5","max_tokens":10,"stream":true,"messages":[]}'
POST: list[Header] = [
    (b"Host", b"127.0.0.1:4000"),
    (b"x-api-key", b"sk-anything"),
    (b"content-type", b"application/json"),
    (b"content-length", str(len(BODY)).encode()),
]


@dataclass
class Asked:
    """One request as an ASGI server would make it, and what came back.

    `leave` makes the client leave. `sent` holds what the application sent until then. With `ours`, the server is our
    own connection class, which says that the client has left to whoever does not ask for the body.
    """

    method: str = "POST"
    path: bytes = b"/v1/messages"
    headers: list[Header] = field(default_factory=lambda: list(POST))
    body: list[bytes] = field(default_factory=lambda: [BODY])
    sent: list[dict[str, Any]] = field(default_factory=list)
    on_send: Callable[[], None] = lambda: None
    gone: trio.Event = field(default_factory=trio.Event)
    server: tuple[str, int | None] = ("127.0.0.1", 4000)
    ours: bool = False
    transport: Transport | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.ours:
            self.transport = Transport(self.path, list(self.headers), "1.1")
            self.transport.left = self.gone

    @property
    def scope(self) -> dict[str, Any]:
        return {
            "type": "http",
            "method": self.method,
            "raw_path": self.path,
            "path": self.path.decode(),
            "query_string": b"",
            "headers": self.headers,
            "http_version": "1.1",
            "scheme": "http",
            "client": ("127.0.0.1", 5),
            "server": self.server,
            "extensions": {"tproxy": self.transport} if self.transport is not None else {},
        }

    async def receive(self) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        if self.gone.is_set():
            return {"type": "http.disconnect"}
        if self.body:
            piece = self.body.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.body)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if self.gone.is_set():
            raise ConnectionResetError
        self.sent.append(message)
        self.on_send()

    def leave(self) -> None:
        self.gone.set()
        if self.transport is not None and self.transport.on_left is not None:
            self.transport.on_left()

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def answer(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def whole(self) -> bool:
        """Did the answer come to its proper end?"""
        return bool(self.sent) and self.sent[-1].get("more_body") is False


@dataclass
class Stage:
    """What a test has in hand."""

    proxy: Proxy
    pool: Pool
    ledger: MemoryLedger
    upstream: Peer
    directory: Known

    async def ask(self, asked: Asked) -> Asked:
        await self.proxy(asked.scope, asked.receive, asked.send)
        return asked

    @property
    def row(self) -> dict[str, Any]:
        [row] = self.ledger.rows.values()
        return row

    @property
    def at_rest(self) -> bool:
        """No place taken, no row open, nothing that the ledger had to refuse."""
        open_rows = [row for row in self.ledger.rows.values() if row["ended"] == "open"]
        return "active 0, waiting 0" in repr(self.pool) and not open_rows and not self.ledger.faults


@asynccontextmanager
async def stage(
    *scripts: Script,
    drain: bool = False,
    bounds: Bounds | None = None,
    known: Sequence[Subject] = (),
    observers: Sequence[Observer] = (Lines(),),
    **ring: Any,
) -> AsyncIterator[Stage]:
    """Open a stage before a peer that plays `scripts`. `known` are those whom its directory has."""
    async with peer(*scripts) as upstream:
        pool = Pool(upstream.origin, bounds or Bounds(), None)
        ledger = MemoryLedger()
        directory = Known(known)
        for subject in known:
            ledger.set_budgets(subject)
        services = Services(
            ring=KeyRing(**{"access": "open", "master": None, "directory": directory, "api_keys": [REAL_KEY], **ring}),
            upstream=Upstream(pool, upstream.origin, b"", b"tproxy-test"),
            upstream_name="test",
            base_url=f"http://127.0.0.1:{upstream.origin.port}",
            ledger=ledger,
            govern=Governance(directory, Limiter(), Expectations(), Line(), built_in()),
            clock=lambda: 1_795_000_000_000_000 + int(trio.current_time() * 1e6),
            draining=lambda: False,
            drain_on_disconnect=drain,
            drain_seconds=30,
            body_seconds=30,
            max_body_bytes=1000,
            max_upload_bytes=100_000,
            held=Held(1500),
            observers=Observers(observers),
            pulse=Pulse(),
        )
        yield Stage(Proxy(services, Manage(lambda: None)), pool, ledger, upstream, directory)
        await pool.aclose()
