"""Pages that are not the management API's: `/metrics`, `/live`, `/health`. They need none of what that is made of, and
some of them go on for as long as the client stays.

Who may see one is decided here, as by the gate (`gate.py`); what one shows is its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from tproxy.errors import ClientGone
from tproxy.manage import auth, faults
from tproxy.manage.desk import Desk
from tproxy.manage.faults import ApiFault, Forbidden
from tproxy.manage.gate import Message, Receive, Scope, Send, send_page
from tproxy.store.subjects import ADMIN, VIEWER

log = structlog.get_logger("tproxy.manage")

Show = Callable[[Scope, Receive, Send], Awaitable[None]]

_METHODS: Final = ("GET", "HEAD")


class Page:
    """ASGI application: one page for GET and HEAD.

    Args:
        show: answers a request that was let in; for HEAD, what it sends of a body is left out.
        public: whether the page is for everybody, asked anew each time. Else it is for the master key, and for keys
            with a role that may read.
    """

    def __init__(self, desk: Desk, show: Show, public: Callable[[], bool] = lambda: False) -> None:
        self._desk = desk
        self._show = show
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises nothing but Cancelled."""
        begun = False
        without_body = scope["method"] == "HEAD"

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            if without_body and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            if scope["method"] not in _METHODS:
                page = faults.content(405, "This path has no such method.", "method_not_allowed")
                await send_page(sending, 405, page, ((b"allow", b"GET, HEAD"),))
                return
            if not self._public():
                asker = auth.identify(self._desk, scope["headers"])
                if asker.role not in (ADMIN, VIEWER):
                    raise Forbidden("This page is for the master key, and for keys with a role that may read.")
            await self._show(scope, receive, sending)
        except ApiFault as fault:
            client = scope["client"][0] if scope.get("client") else None
            log.info("not let in", method=scope["method"], client=client, status=fault.status, why=fault.type)
            await _tell(sending, fault.status, faults.page(fault))
        except (OSError, ClientGone):
            log.debug("client_gone", method=scope["method"])
        except Exception:
            log.exception("a page: a bug", method=scope["method"])
            if not begun:
                await _tell(sending, 500, faults.bug())


async def _tell(send: Send, status: int, page: dict[str, object]) -> None:
    try:
        await send_page(send, status, page)
    except OSError:
        log.debug("client_gone")
