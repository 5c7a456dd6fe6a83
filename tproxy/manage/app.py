"""The management API as one application: its routes behind a gate.

The gate stands before everything: it lets nobody in whose key is not known, and hands on a body only once that has
come whole, within its bounds. Behind it, one dependency of the whole application decides by role (`auth.py`). So a
route that is added is closed until it says otherwise.

What goes wrong below ends at the gate too, as an answer and a line in the log. Paths are not logged: one can hold a
key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

import structlog
import trio
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.security import HTTPBearer
from starlette.requests import ClientDisconnect

from tproxy import __version__
from tproxy.errors import ClientGone
from tproxy.manage import auth, budgets, customers, docs_page, faults, keys, models, rotate, spend, tags, teams, users
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

_DESCRIPTION: Final = """\
Keys, teams, users, customers, budgets, tags and what they spend, in the shapes of LiteLLM's proxy. Every path but these
two pages needs a key: Authorization: Bearer, with the master key or a key with a role.\
"""
# Decides nothing: it says in the OpenAPI document how a key is given.
_BEARER: Final = HTTPBearer(auto_error=False, description="the master key, or a key with a role")
_ALWAYS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
)

log = structlog.get_logger("tproxy.manage")


def routers(desk: Desk) -> Sequence[APIRouter]:
    """All routes, each part's in a router of its own."""
    parts = (keys, rotate, teams, users, customers, budgets, tags, spend, models)
    return [part.router(desk) for part in parts]


def build(desk: Desk) -> FastAPI:
    """The management API. `app.state.sections` has the first segments of its paths."""
    app = FastAPI(
        title="tproxy",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(_BEARER), Depends(auth.permitted)],
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    faults.install(app)
    app.add_middleware(Gate, desk=desk)

    paths = {"/docs", "/openapi.json"}
    for router in routers(desk):
        app.include_router(router)
        paths |= {str(getattr(route, "path", "/")) for route in router.routes}
    page = docs_page.page(app.openapi())  # made once, and at the start: it takes a fifth of a second

    @app.get("/docs", include_in_schema=False)
    @auth.for_any_key
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(page)

    app.state.sections = frozenset(path.split("/")[1] for path in paths)
    return app


class Gate:
    """ASGI middleware: who asks, the body's bounds, and the end of all faults.

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
            await answer.give(faults.answer(fault), scope)
        except (OSError, ClientGone, ClientDisconnect):
            log.debug("client_gone", method=scope["method"])
        except Exception:
            log.exception("management API: a bug", method=scope["method"])
            if answer.status is None:
                await answer.give(faults.internal(), scope)


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

    async def give(self, response: Response, scope: Scope) -> None:
        """Answer with a fault; a client that has left is not told."""
        try:
            await response(scope, _once(b""), self.send)
        except OSError:
            log.debug("client_gone", method=scope["method"])


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
