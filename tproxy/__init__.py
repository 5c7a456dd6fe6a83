"""tproxy: a streaming proxy for the Anthropic API, byte-exact, undelayed, and with books kept to the nano-dollar."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

__version__ = "0.1.0"


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """The ASGI application for hypercorn's own command: `hypercorn --config config.toml tproxy:app`."""
    # Imported when the server starts, so that reading a parser does not load the process.
    from tproxy.server import application

    await application(scope, receive, send)
