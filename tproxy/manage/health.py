"""The management side as an ASGI application: the health pages, and before all else which bytes are read as a path.

Liveness says that the process answers. Readiness says that it would serve: not while it drains, and not while the
ledger cannot be written, since what is not recorded is not served. Both are public, in LiteLLM's shapes, and neither
says more than that.

Whatever else there is belongs to the management API (`app.py`), which is behind its gate (`gate.py`). A path reaches it
only as it came: one with a `%` in it is nobody's, so that nothing is decided on one spelling and served by another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote_to_bytes

from tproxy import __version__
from tproxy.errors import RouteUnknown
from tproxy.manage import faults
from tproxy.manage.gate import ASGIApp, Message, Receive, Send, send_page

# The first segments of the management API's paths, known without it.
SECTIONS: Final = frozenset(
    {
        *("docs", "openapi.json", "health", "key", "team", "user", "customer", "end_user", "budget", "tag"),
        *("spend", "global", "model", "models", "model_group", "v2", "capture"),
    }
)

_LIVE = (b"/health/liveliness", b"/health/liveness")
_READY = b"/health/readiness"
_UNKEPT = ((b"cache-control", b"no-store"),)

# What `unready` says.
DRAINING = "draining"
LEDGER_FAILS = "the ledger cannot be written"


class Manage:
    """The management side.

    Args:
        unready: says why no traffic should be sent here, or None.
        api: the management API behind its gate; without it, there are the health pages only.
        pages: others, by their path, each with a gate of its own.
    """

    def __init__(
        self,
        unready: Callable[[], str | None],
        api: ASGIApp | None = None,
        pages: Mapping[bytes, ASGIApp] = MappingProxyType({}),
    ) -> None:
        self._unready = unready
        self._api = api
        self._pages = pages

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            RouteUnknown: nothing is served at this path.
        """
        # The bytes that were routed on, not what they decode to.
        path: bytes = scope["raw_path"]
        reads = scope["method"] in ("GET", "HEAD")
        if reads and path in _LIVE:
            await send_page(send, 200, "I'm alive!", _UNKEPT)
        elif reads and path == _READY:
            why = self._unready()
            page = {
                "status": "healthy" if why is None else why,
                "db": "Not connected" if why == LEDGER_FAILS else "connected",
                "version": __version__,
                "litellm_version": f"tproxy {__version__}",
            }
            await send_page(send, 200 if why is None else 503, page, _UNKEPT)
        elif path in self._pages:
            await self._pages[path](scope, receive, send)
        elif self._api is not None and _section(path) in SECTIONS:
            if b"%" in path or not path.isascii():
                # Not raised: what is raised is logged with its path, and this one may hold a key.
                await _nothing_here(send)
            else:
                await self._api({**scope, "path": path.decode("ascii"), "root_path": ""}, receive, send)
        else:
            shown = repr(path[:200].decode("latin-1")) if b"sk-" not in path else "this path"
            raise RouteUnknown(f"Nothing is served at {shown}. The Anthropic API is below /anthropic, and at /v1.")


def _section(path: bytes) -> str:
    """The first segment of a path, however it is spelt."""
    return unquote_to_bytes(path).decode("latin-1").lower().lstrip("/").partition("/")[0]


async def _nothing_here(send: Send) -> None:
    page = faults.content(404, "Nothing is served at this path; it must be spelt without %.", "not_found_error")
    try:
        await send_page(send, 404, page)
    except OSError:
        return  # nobody is left to be told
