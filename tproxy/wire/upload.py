"""The sending of a request, as far as it goes on beside the reading of the answer.

An upstream may answer before it has read all, and may then stop reading. So what the kernel does not take at once is
sent by a task beside the reader. Of a request that went out in one write, there is no such task.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from tproxy.wire.heads import Head
from tproxy.wire.outbound import Connection

LAST_WORD = 2.0  # seconds for the answer that an upstream may have left before it stopped reading
_PIECE_BYTES = 65536

Pieces = Callable[[], Awaitable[bytes]]
"""Gives the next piece of a body, b"" at its end. It may raise anything."""


class Upload:
    """One request on its way.

    `patience` is the wait for the answer's head. It has no end while the request is under way, since sending has
    deadlines of its own.

    Args:
        first_byte: seconds from the request's end to the answer's head.
    """

    __slots__ = ("_connection", "_fault", "_first_byte", "_scope", "patience")

    def __init__(self, connection: Connection, first_byte: float) -> None:
        self.patience = trio.CancelScope()
        self._connection = connection
        self._first_byte = first_byte
        self._scope = trio.CancelScope()
        self._fault: Exception | None = None

    def stop(self) -> None:
        """The answer is complete: what is left of the body interests nobody."""
        self._scope.cancel()

    @asynccontextmanager
    async def sending(
        self, left: memoryview, pieces: Pieces | None, head: Callable[[], Awaitable[Head]]
    ) -> AsyncIterator[Head]:
        """Send beside the waiting for the `head`, and then beside the block.

        A fault of either ends both, and comes out as itself, not in a group.

        Args:
            left: what `Connection.start` has left.
            pieces: the body that follows it; None if there is none.
        """
        fault: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, left, pieces, nursery.cancel_scope)
            del left, pieces  # a body must not be held for as long as its answer lasts
            try:
                yield await head()
            except Exception as exc:
                fault = exc
            nursery.cancel_scope.cancel()
        if fault := fault or self._fault:
            raise fault

    async def _send(self, left: memoryview, pieces: Pieces | None, block: trio.CancelScope) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        connection = self._connection
        with self._scope:
            try:
                if left:
                    await connection.send_left(left, whole=pieces is None)
                while pieces is not None and not connection.deaf:
                    piece = await pieces()
                    await connection.send(piece)
                    if not piece:
                        break
            except Exception as exc:
                self._fault = exc
                block.cancel()
            self.patience.deadline = trio.current_time() + (LAST_WORD if connection.deaf else self._first_byte)


def in_pieces(body: bytes) -> Pieces:
    """A large body, in pieces that keep nobody else waiting."""
    starts = iter(range(0, len(body), _PIECE_BYTES))

    async def piece() -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        start = next(starts, len(body))
        return body[start : start + _PIECE_BYTES]

    return piece
