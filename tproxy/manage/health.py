"""Is it up, and may it be sent traffic?

Liveness says that the process answers. Readiness says that it would serve: not while it drains, and not while the
ledger cannot be written, since what is not recorded is not served. Both are public, and neither says more than that.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from tproxy import __version__
from tproxy.errors import RouteUnknown

Send = Callable[[dict[str, Any]], Awaitable[None]]

_LIVE = (b"/health/liveliness", b"/health/liveness")
_READY = b"/health/readiness"


class Manage:
    """The management side as an ASGI application. So far it has the health pages.

    Args:
        unready: says why no traffic should be sent here, or None.
    """

    def __init__(self, unready: Callable[[], str | None]) -> None:
        self._unready = unready

    async def __call__(self, scope: dict[str, Any], receive: object, send: Send) -> None:
        """Answer one request.

        Raises:
            RouteUnknown: nothing is served at this path.
        """
        # The bytes that were routed on, not what they decode to.
        path, reads = scope["raw_path"], scope["method"] in ("GET", "HEAD")
        if reads and path in _LIVE:
            await _page(send, 200, {"status": "alive"})
        elif reads and path == _READY:
            why = self._unready()
            page = {"status": "ready" if why is None else why, "version": __version__}
            await _page(send, 200 if why is None else 503, page)
        else:
            shown = path[:200].decode("latin-1")
            raise RouteUnknown(f"Nothing is served at {shown!r}. The Anthropic API is below /anthropic, and at /v1.")


async def _page(send: Send, status: int, content: dict[str, str]) -> None:
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
