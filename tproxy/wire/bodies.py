"""The body of an answer, out of its framing (RFC 9112 section 6): by its length, in chunks, or to the end.

    feed ──► body bytes        ended, rest   it is whole; these bytes came after it
                               behind        more can be read out of what was fed, without new bytes
                               idle          nothing is under way: what comes next is the beginning of a chunk

What is fed is never held but for the beginning of something. Bytes that came before a fault are given out before it is
raised. When the connection ends, `to_end` says whether that is the body's end, too.

Chunks that are not plain are left to h11: see `protocol/chunked.py`.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import h11

from tproxy.protocol.chunked import MAX_PARTS, ChunkReader

_CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Body(Protocol):
    """Reads one body; see above."""

    to_end: ClassVar[bool]
    ended: bool
    behind: bool
    rest: bytes

    @property
    def idle(self) -> bool: ...

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return what they hold of the body.

        Raises:
            ValueError: this is not HTTP/1.1.
        """


class Sized:
    """A body of so many bytes."""

    __slots__ = ("_left", "behind", "ended", "rest")

    to_end: ClassVar[bool] = False
    idle = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = not length
        self.behind = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        if len(data) > self._left:
            data, self.rest = data[: self._left], data[self._left :]
        self._left -= len(data)
        self.ended = not self._left
        return data


class ToEnd:
    """A body that lasts until the connection ends."""

    __slots__ = ("behind", "ended", "rest")

    to_end: ClassVar[bool] = True
    idle = False

    def __init__(self) -> None:
        self.ended = self.behind = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        return data


class Chunked:
    """A body in chunks.

    Args:
        max_bytes: the most that may be held of what h11 has to read: a line, or the trailers.
    """

    __slots__ = ("_h11", "_max_bytes", "_plain", "behind", "ended", "rest")

    to_end: ClassVar[bool] = False

    def __init__(self, max_bytes: int) -> None:
        self.ended = self.behind = False
        self.rest = b""
        self._max_bytes = max_bytes
        self._plain = ChunkReader()
        self._h11: h11.Connection | None = None

    @property
    def idle(self) -> bool:
        return self._h11 is None and self._plain.at_boundary

    def feed(self, data: bytes) -> bytes:
        if self._h11 is not None:
            return self._unusual(self._h11, data)
        plain = self._plain
        body = plain.feed(data)
        self.behind = plain.behind
        if plain.ended:
            self.ended, self.rest = True, plain.rest
        elif plain.unusual is not None:
            self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=self._max_bytes)
            self._h11.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
            self._h11.receive_data(_CHUNKED_HEAD)
            self._h11.next_event()
            body += self._unusual(self._h11, plain.unusual, before=bool(body))
        return body

    def _unusual(self, parser: h11.Connection, data: bytes, *, before: bool = False) -> bytes:
        """What h11 makes of the rest of the body.

        Args:
            before: there are bytes that came before these, and that are not to be lost in a fault.
        """
        if data:
            parser.receive_data(data)
        parts: list[bytes] = []
        self.behind = False
        try:
            while isinstance(event := parser.next_event(), h11.Data):
                parts.append(bytes(event.data))
                if len(parts) == MAX_PARTS:
                    self.behind = True
                    break
            if isinstance(event, h11.EndOfMessage):
                self.ended, self.rest = True, parser.trailing_data[0]
        except h11.RemoteProtocolError:
            if not (parts or before):
                raise ValueError("the chunks are not those of HTTP/1.1") from None
            self.behind = True  # h11 stays in its error, and raises it anew
        return b"".join(parts)
