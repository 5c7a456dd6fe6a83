"""The gate of the management API: who asks, the body's bounds, and the end of all faults.

It lets nobody in whose key is not known, and hands on a body only once that has come whole, within its bounds. What
goes wrong behind it ends here too, as an answer and a line in the log. Paths are not logged: one can hold a key.

Behind it the API is made when somebody who was let in first asks for it: most processes serve streams alone, and it
takes half a second, and as much memory as a third of all else. So nothing here imports what it is made of.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

import structlog
import trio

from tproxy.errors import ClientGone, Header
from tproxy.manage import auth, faults
from tproxy.manage.desk import Desk
from tproxy.manage.faults import ApiFault, BodyTimeout, BodyTooLarge
from tproxy.protocol.headers import get
from tproxy.store.subjects import ADMIN

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY: Final = 1024 * 1024
BODY_SECONDS: Final = 30
PUBLIC: Final = frozenset({"/docs", "/openapi.json"})

_ALWAYS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
)

log = structlog.get_logger("tproxy.manage")


class Late:
    """An ASGI application that is made with its first request, in a thread. Requests that come meanwhile wait for it.

    Args:
        make: makes it. What it raises is raised to the request that waits, and the next one tries again.
    """

    def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._make = make
        self._made: ASGIApp | None = None
        self._making = trio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises what `make` raises, and what the application does."""
        if self._made is None:
            async with self._making:
                if self._made is None:
                    self._made = await trio.to_thread.run_sync(self._make, limiter=trio.CapacityLimiter(1))
        await self._made(scope, receive, send)


class Gate:
    """ASGI application: the management API `app`, closed to whoever is not known.

    A HEAD request is served as GET, and its answer's body left out.
    """

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app = app
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises nothing."""
        if scope["type"] != "http":
            return
        answer = _Answer(send, without_body=scope["method"] == "HEAD")
        scope = {**scope, "method": "GET"} if scope["method"] == "HEAD" else dict(scope)
        try:
            if scope["path"] in PUBLIC:
                scope[auth.ASKER] = auth.NOBODY
            else:
                scope[auth.ASKER] = auth.identify(self._desk, scope["headers"])
            body = await _whole(scope, receive)
            await self._app(scope, _once(body), answer.send)
            _log_change(scope, answer.status)
        except ApiFault as fault:
            client = scope["client"][0] if scope.get("client") else None
            log.info("not let in", method=scope["method"], client=client, status=fault.status, why=fault.type)
            await answer.give(scope, fault.status, faults.page(fault))
        except (OSError, ClientGone):
            log.debug("client_gone", method=scope["method"])
        except Exception:
            log.exception("management API: a bug", method=scope["method"])
            if answer.status is None:
                await answer.give(scope, 500, faults.bug())


class _Answer:
    """The way out: it knows whether an answer has begun, and with which status."""

    def __init__(self, send: Send, *, without_body: bool) -> None:
        self._send = send
        self._without_body = without_body
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], *_ALWAYS]}
        elif self._without_body:
            message = {**message, "body": b""}
        await self._send(message)

    async def give(self, scope: Scope, status: int, page: dict[str, Any]) -> None:
        """Answer with a fault; a client that has left is not told."""
        try:
            await send_page(self.send, status, page)
        except OSError:
            log.debug("client_gone", method=scope["method"])


async def send_page(send: Send, status: int, page: object, headers: Sequence[Header] = ()) -> None:
    """Send an answer of JSON."""
    body = json.dumps(page, ensure_ascii=False, separators=(",", ":")).encode()
    lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _log_change(scope: Scope, status: int | None) -> None:
    """One line for what was asked to be changed, by whom: the route's pattern, and no path."""
    route = scope.get("route")
    if route is not None and auth.needs(scope["endpoint"], scope["method"]) == ADMIN:
        log.info("asked", method=scope["method"], route=route.path, by=scope[auth.ASKER].name, status=status)


async def _whole(scope: Scope, receive: Receive) -> bytes:
    """The body.

    Raises:
        BodyTooLarge, BodyTimeout: it passes a bound.
        ClientGone: it will not come.
    """
    said = get(scope["headers"], b"content-length") or b"0"
    if said.isdigit() and int(said[:20]) > MAX_BODY:
        raise BodyTooLarge(f"The body must have at most {MAX_BODY} bytes.")
    body = bytearray()
    with trio.move_on_after(BODY_SECONDS):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > MAX_BODY:
                raise BodyTooLarge(f"The body must have at most {MAX_BODY} bytes.")
            if not message.get("more_body", False):
                return bytes(body)
    raise BodyTimeout(f"The body has not come whole within {BODY_SECONDS} seconds.")


def _once(body: bytes) -> Receive:
    """A `receive` that gives a body that has come whole."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive
