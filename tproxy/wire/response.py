"""The answer of one exchange, as its caller sees it."""

from __future__ import annotations

import trio

from tproxy.errors import UpstreamTimeout
from tproxy.wire.heads import Head
from tproxy.wire.outbound import Connection
from tproxy.wire.relay import Source
from tproxy.wire.upload import Upload


class Response:
    """The answer of one exchange, valid inside its context.

    Attributes:
        head: the final head.
        reused: whether the connection had served an exchange before.
        complete: whether `receive` has given all of the body; it may know that together with the last bytes.
        idle: seconds that `receive` waits; who relays from `source` has to keep the same deadline.
    """

    __slots__ = ("_at_once", "_connection", "_upload", "complete", "head", "idle", "reused")

    def __init__(self, head: Head, connection: Connection, upload: Upload | None, idle: float, *, reused: bool) -> None:
        self.head = head
        self.idle = idle
        self.reused = reused
        self.complete = False
        self._connection = connection
        self._upload = upload
        self._at_once = False  # the last `receive` did not wait

    def at_hand(self) -> bytes:
        """Body bytes that came with the head, or b""; `complete` tells if that was all. Never waits, nor raises."""
        if self.complete:
            return b""
        return self._given(self._connection.at_hand())

    async def receive(self) -> bytes:
        """All body bytes that one read of the socket brought; b"" exactly at the clean end.

        Raises:
            UpstreamBroken: the body was cut, or is not HTTP.
            UpstreamTimeout: nothing of the body came for `idle` seconds.
        """
        if self.complete:
            await trio.lowlevel.checkpoint()
            return b""  # the connection may serve others now
        if self._at_once:
            await trio.lowlevel.checkpoint()  # an upstream that never pauses leaves others their turn
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        data = self._connection.take()
        self._at_once = data is not None
        if data is None:
            with trio.CancelScope(relative_deadline=self.idle):
                while data is None:
                    await self._connection.readable()
                    data = self._connection.take()
            if data is None:
                raise self.timed_out()
        return self._given(data)

    def source(self) -> Source | None:
        """Where the rest of the answer may be relayed from as it comes; None as long as only `receive` can read it.

        That is given for a chunked body of which all that was read has been given out, and that is not in the midst of
        a chunk, once the request has been sent. `receive` goes on where the relaying has ended.
        """
        return None if self.complete else self._connection.source()

    def timed_out(self) -> UpstreamTimeout:
        """The fault of an upstream that sent nothing for `idle` seconds."""
        return UpstreamTimeout(f"{self._connection.name} sent nothing of its answer for {self.idle:g} s")

    def _given(self, data: bytes) -> bytes:
        if self._connection.ended:
            self.complete = True
            if self._upload is not None:
                self._upload.stop()
        return data
