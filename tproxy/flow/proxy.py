"""The ASGI application: what every request meets first, and what every refusal is answered with.

A request is routed on the bytes of its target as they came. What is not the upstream's is handed to the management
side. A fault that is raised before the exchange is admitted is answered here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from tproxy.errors import BadRequest, ClientGone, Fault, Header, envelope
from tproxy.flow.answers import fault_headers, json_head
from tproxy.flow.attribution import new_id
from tproxy.flow.body import Receive
from tproxy.flow.exchange import Exchange
from tproxy.flow.forward import Send
from tproxy.flow.identify import ANONYMOUS
from tproxy.flow.observer import Refused
from tproxy.flow.request import Request, Scope
from tproxy.flow.route import Manage, Passage, Probe, route
from tproxy.flow.services import Services
from tproxy.protocol import headers as header
from tproxy.protocol.keys import holds_key, masked
from tproxy.protocol.target import parse_target

# Of `send`, frameworks demand more than that it takes a dict.
ASGIApp = Callable[[Scope, Receive, Any], Awaitable[None]]

log = structlog.get_logger("tproxy.exchange")


class Proxy:
    """The ASGI application. Paths that are not the upstream's go to `manage`.

    Attributes:
        running: how many requests to the upstream are being served.
    """

    def __init__(self, services: Services, manage: ASGIApp) -> None:
        self.services = services
        self.running = 0
        self._manage = manage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (scope type `http`)."""
        services, request = self.services, Request.of(scope)
        accepted_us = services.clock()
        id = new_id(accepted_us)
        exchange: Exchange | None = None
        ids = ((b"x-tproxy-id", id.encode()), (b"x-litellm-call-id", id.encode()))
        try:
            target = parse_target(request.target, header.get(request.headers, b"host"))
            where = route(request.method, target)
            if isinstance(where, Passage):
                if b"sk-" in request.target and holds_key(request.target):
                    raise BadRequest("The address of this request holds a key of this proxy. Send keys in a header.")
                self.running += 1
                try:
                    transport = scope.get("extensions", {}).get("tproxy")
                    exchange = Exchange(services, request, where, id, ids, accepted_us, transport)
                    await exchange.run(receive, send)
                finally:
                    self.running -= 1
            elif isinstance(where, Probe):
                await _answer(send, 200, b"", ids)
            elif isinstance(where, Manage):
                await self._manage(scope, receive, _naming(send, ids))
        except Fault as fault:
            path = masked(request.target.partition(b"?")[0][:200].decode("latin-1"))
            services.observers.refused(
                Refused(
                    id=id,
                    method=request.method,
                    path=path,
                    fault=fault,
                    caller=exchange.caller if exchange is not None else ANONYMOUS,
                    model=exchange.course.model_asked if exchange is not None else None,
                    client_address=request.client_address,
                )
            )
            await _answer(send, fault.status, envelope(fault, id), fault_headers(fault, ids))
        except ClientGone:
            log.info("client_gone", id=id, method=request.method)


def _naming(send: Send, ids: Sequence[Header]) -> Send:
    """`send`, with the headers that name the exchange on the answer."""

    async def named(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *ids]}
        await send(message)

    return named


async def _answer(send: Send, status: int, body: bytes, more: Sequence[Header]) -> None:
    try:
        await send({"type": "http.response.start", "status": status, "headers": json_head(body, more)})
        await send({"type": "http.response.body", "body": body, "more_body": False})
    except OSError:
        pass  # nobody is left to be told
