"""The management side as an ASGI application: the health pages, and before all else which bytes are read as a path.

Liveness says that the process answers. Readiness says that it would serve: not while it drains, and not while the
ledger cannot be written, since what is not recorded is not served. Both are public, in LiteLLM's shapes, and neither
says more than that.

Whatever else there is belongs to the management API (`app.py`). A path reaches it only as it came: one with a `%` in
it is nobody's, so that nothing is decided on one spelling and served by another.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from tproxy import __version__
from tproxy.errors import RouteUnknown
from tproxy.manage import faults

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_LIVE = (b"/health/liveliness", b"/health/liveness")
_READY = b"/health/readiness"

# What `unready` says.
DRAINING = "draining"
LEDGER_FAILS = "the ledger cannot be written"


class Manage:
    """The management side.

    Args:
        unready: says why no traffic should be sent here, or None.
        api: the management API; without it, there are the health pages only.
    """

    def __init__(self, unready: Callable[[], str | None], api: FastAPI | None = None) -> None:
        self._unready = unready
        self._api = api
        self._sections: frozenset[str] = api.state.sections if api is not None else frozenset()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            RouteUnknown: nothing is served at this path.
        """
        # The bytes that were routed on, not what they decode to.
        path: bytes = scope["raw_path"]
        reads = scope["method"] in ("GET", "HEAD")
        if reads and path in _LIVE:
            await _page(send, 200, "I'm alive!")
        elif reads and path == _READY:
            why = self._unready()
            page = {
                "status": "healthy" if why is None else why,
                "db": "Not connected" if why == LEDGER_FAILS else "connected",
                "version": __version__,
                "litellm_version": f"tproxy {__version__}",
            }
            await _page(send, 200 if why is None else 503, page)
        elif self._api is not None and _section(path) in self._sections:
            if b"%" in path or not path.isascii():
                # Not raised: what is raised is logged with its path, and this one may hold a key.
                await _nothing_here(scope, receive, send)
            else:
                await self._api({**scope, "path": path.decode("ascii"), "root_path": ""}, receive, send)
        else:
            shown = repr(path[:200].decode("latin-1")) if b"sk-" not in path else "this path"
            raise RouteUnknown(f"Nothing is served at {shown}. The Anthropic API is below /anthropic, and at /v1.")


def _section(path: bytes) -> str:
    """The first segment of a path, however it is spelt."""
    return unquote_to_bytes(path).decode("latin-1").lower().lstrip("/").partition("/")[0]


async def _nothing_here(scope: Message, receive: Receive, send: Send) -> None:
    page = faults.content(404, "Nothing is served at this path; it must be spelt without %.", "not_found_error")
    try:
        await JSONResponse(page, 404)(scope, receive, send)
    except OSError:
        return  # nobody is left to be told


async def _page(send: Send, status: int, content: dict[str, str] | str) -> None:
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
