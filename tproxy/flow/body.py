"""The request body, read whole or passed on piece by piece, with a bound on its size and on its time.

Bodies of inference calls are read whole: what they ask for decides what happens to them. So are small ones of known
length. Everything else (files, batches) streams through and is never held.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from tproxy.errors import BadRequest, BodyTimeout, BodyTooLarge, ClientGone, Header, Overloaded
from tproxy.protocol import headers as header

Receive = Callable[[], Awaitable[dict[str, Any]]]

# A body of at most this many bytes and of known length is read whole on any path.
SMALL_BYTES = 64 * 1024


def announced_length(headers: Sequence[Header]) -> int | None:
    """The body's length in bytes as its framing says it: 0 where there is no body, None where it is chunked."""
    if header.get(headers, b"transfer-encoding") is not None:
        return None
    value = header.get(headers, b"content-length")
    if value is None:
        return 0
    if not value.isdigit():
        raise BadRequest("The Content-Length is not a number.")
    return int(value)


class Held:
    """The bytes that all running exchanges hold together.

    Args:
        limit: how many they may be.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> None:
        """Raises Overloaded where there is no room for `size` bytes more."""
        if self.used + size > self.limit:
            raise Overloaded("This proxy holds as many request bodies as it may. Send the request again in a moment.")
        self.used += size


class RequestBody:
    """One request's body, as it arrives.

    Args:
        receive: ASGI's `receive`.
        limit: how many bytes are taken.
        timeout: seconds for the whole body, from now.
        on_end: called once, when the last byte has been read.
        held: counts what is read by `whole`, until `release`.
        ready: tells whether `receive` need not wait; None where nobody knows.

    Attributes:
        length: bytes read so far.
        ended: True when all of it has been read.
    """

    def __init__(
        self,
        receive: Receive,
        *,
        announced: int | None,
        limit: int,
        timeout: float,
        on_end: Callable[[], None],
        held: Held,
        ready: Callable[[], bool] | None = None,
    ) -> None:
        if announced is not None and announced > limit:
            raise _too_large(limit)
        self.length = 0
        self.ended = False
        self._receive = receive
        self._limit = limit
        self._timeout = timeout
        self._deadline = trio.current_time() + timeout
        self._on_end = on_end
        self._held = held
        self._ready = ready
        self._holds = 0

    async def piece(self) -> bytes:
        """The next bytes of the body; `b""` exactly at its end.

        Raises:
            BodyTooLarge, BodyTimeout: a bound was passed.
            ClientGone: the client left before the body was whole.
        """
        while not self.ended:
            message = await self._next()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = bytes(message.get("body", b""))
            self.length += len(piece)
            if self.length > self._limit:
                raise _too_large(self._limit)
            if not message.get("more_body", False):
                self.ended = True
                self._on_end()
            if piece:
                return piece
        return b""

    async def _next(self) -> dict[str, Any]:
        if self._ready is not None and self._ready():  # nearly always, where the whole request came at once
            return await self._receive()
        with trio.CancelScope(deadline=self._deadline):
            return await self._receive()
        raise BodyTimeout(f"The request body was not complete within {self._timeout:g} seconds.")

    async def whole(self) -> bytes:
        """All of the body. Raises what `piece` raises, and Overloaded."""
        pieces: list[bytes] = []
        while piece := await self.piece():
            self._held.take(len(piece))
            self._holds += len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def release(self) -> None:
        """The body is held no longer."""
        self._held.used -= self._holds
        self._holds = 0


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than the {limit} bytes that this proxy takes on this path.")
