"""What our connection class offers beside ASGI: the request as it came, the client's leaving, and the way round `send`.

This file does not know how requests are served.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from tproxy.errors import Header
from tproxy.wire.channel import ClientDisconnected


class Direct(Protocol):
    """A request that is being served; see `Transport`."""

    @property
    def ready(self) -> bool: ...

    def sink(self) -> int | None: ...

    async def rest(self, data: bytes) -> None: ...


def _never() -> bool:
    return False


class Transport:
    """What ASGI's scope loses of a request, and the way round its messages: `scope["extensions"]["tproxy"]`.

    Attributes:
        target: the request target as it came, query included.
        headers: in the client's spelling, order and repetition.
        http_version: "1.0" or "1.1".
        left: set when the client has left, whether or not the body was asked for; never by the end of the answer.
        on_left: called once, when `left` is set; whoever sets it looks at `left` after that. It may be called by a
            `send` that finds out.
        draining: whether the server shuts down, and waits for this request.
    """

    __slots__ = ("_direct", "draining", "headers", "http_version", "left", "on_left", "target")

    def __init__(self, target: bytes, headers: list[Header], http_version: str) -> None:
        self.target = target
        self.headers = headers
        self.http_version = http_version
        self.left = trio.Event()
        self.on_left: Callable[[], None] | None = None
        self.draining: Callable[[], bool] = _never
        self._direct: Direct | None = None

    def attach(self, direct: Direct | None) -> None:
        """What `sink` and `rest` go to, as long as the application runs."""
        self._direct = direct

    def let_go(self) -> None:
        """The header fields are not asked for any more, here and in the scope: an answer may run for long."""
        self.headers.clear()

    def leave(self) -> None:
        """The client has left: tell who wants to know."""
        self.left.set()
        if self.on_left is not None:
            self.on_left()

    def ready(self) -> bool:
        """Whether `receive` gives the next part of the body without waiting, for it has come already."""
        return self._direct is not None and self._direct.ready

    def sink(self) -> int | None:
        """The descriptor of the client's socket, where whole chunks may be written to it as they are.

        None where that is not possible, or not now: before the head has gone out, when the client has left, over TLS,
        where the answer is not chunked. What was said holds until the next `send`. When a write takes only a part,
        the remainder has to go through `rest` before anything else.
        """
        return self._direct.sink() if self._direct is not None else None

    async def rest(self, data: bytes) -> None:
        """Write what is left of a chunk of which the client's socket took only a part.

        Raises:
            ClientDisconnected: as `send` does.
        """
        if self._direct is None:
            raise ClientDisconnected("the request is over")
        await self._direct.rest(data)
