"""The body of one request, as its head says that it is framed (RFC 9112 section 6): bytes in, body bytes out.

    feed ──► read ──► (part, more)     more is False with the last part, which may be empty
                      None             what was fed does not hold a part
             rest                      what came after the end

No I/O, no clock. What does not fit the framing is a `ValueError`.
"""

from __future__ import annotations

import h11

_MAX_PARTS = 64  # chunks that one part joins, so that tiny ones do not hold up everyone else


class CountedBody:
    """A body of a known length, 0 for a request without one.

    Attributes:
        left: bytes that have not been read.
    """

    __slots__ = ("_fed", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self._fed = b""

    def feed(self, data: bytes) -> None:
        """Take what has come next."""
        self._fed = self._fed + data if self._fed else data

    def read(self) -> tuple[bytes, bool] | None:
        """The next part, and whether more will follow. To be called until there is no more."""
        if self.left and not self._fed:
            return None
        part, self._fed = self._fed[: self.left], self._fed[self.left :]
        self.left -= len(part)
        return part, self.left > 0

    @property
    def rest(self) -> bytes:
        """What came after the body's end."""
        return self._fed


class ChunkedBody:
    """A chunked body. Its trailers are dropped.

    Args:
        parser: in the server's role, past the head.
    """

    __slots__ = ("_parser",)

    def __init__(self, parser: h11.Connection) -> None:
        self._parser = parser

    def feed(self, data: bytes) -> None:
        """Take what has come next."""
        self._parser.receive_data(data)

    def read(self) -> tuple[bytes, bool] | None:
        """The next part, and whether more will follow. To be called until there is no more.

        Raises:
            ValueError: it is not framed as announced.
        """
        parts: list[bytes] = []
        try:
            while len(parts) < _MAX_PARTS:
                event = self._parser.next_event()
                if isinstance(event, h11.Data):
                    parts.append(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    return b"".join(parts), False
                else:
                    break
        except h11.RemoteProtocolError:
            raise ValueError("the body is not framed as its head says") from None
        return (b"".join(parts), True) if parts else None

    @property
    def rest(self) -> bytes:
        """What came after the body's end."""
        return self._parser.trailing_data[0]


Body = CountedBody | ChunkedBody
