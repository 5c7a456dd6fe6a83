"""An answer on its way: what has been handed to the socket, what comes next, and what the books say of it.

A paced or cut-up answer goes piece by piece, any other in blocks of many pieces; each piece is a chunk of its own where
the answer is chunked. What the socket does not take at once is left in `rest`, for who can wait.
"""

from __future__ import annotations

from collections.abc import Callable

from tproxy.sandbox.reply import INFORMATIONAL, LAST_CHUNK, UNASKED, End, Reply

_BLOCK_BYTES = 64 * 1024


class Sending:
    """The state of one answer.

    Args:
        last: it is the connection's last answer, and says so.
        offer: gives the socket what it takes at once and returns the rest.
        complete: called when all has gone, before anything else can run: who has the answer finds it in the books.
    """

    def __init__(
        self, reply: Reply, *, last: bool, offer: Callable[[bytes], bytes], complete: Callable[[], None]
    ) -> None:
        script = reply.script
        self._reply = reply
        self._offer = offer
        self._complete = complete
        self._pieces = () if reply.bodiless else reply.body.pieces
        self._chunked = reply.framing == "chunked" and not reply.bodiless
        self._alone = bool(script.tps or script.chunk)
        self._lead = (INFORMATIONAL if script.informational else b"") + reply.head(close=last)
        self._tail = b""
        if reply.end is End.CLEAN:
            self._tail = (LAST_CHUNK if self._chunked else b"") + (UNASKED if script.trailing else b"")
        self._size = 0
        self.at = 0
        self.rest = b""
        self.finished = False

    def step(self) -> bool:
        """Hand the next block to the socket; whether another can follow at once.

        Raises:
            trio.BrokenResourceError: the client is gone.
        """
        self.rest = self._offer(self._block())
        if self.rest:
            return False
        self.gone()
        return not self.finished

    def gone(self) -> None:
        """The last block has gone as a whole."""
        entry = self._reply.entry
        entry.status = self._reply.status
        entry.events_sent = self.at
        entry.bytes_sent = self._size
        self.rest = b""
        self.finished = self.at == len(self._pieces)
        if self.finished and self._reply.end is End.CLEAN:
            self._complete()

    def _block(self) -> bytes:
        parts, self._lead = [self._lead], b""
        size = 0
        while self.at < len(self._pieces) and size < _BLOCK_BYTES:
            piece = self._pieces[self.at]
            self.at += 1
            size += len(piece)
            # An empty chunk would be the last one.
            parts.append(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked and piece else piece)
            if self._alone:
                break
        self._size += size
        if self.at == len(self._pieces):
            parts.append(self._tail)
        return b"".join(parts)
