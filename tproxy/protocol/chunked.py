"""A chunked body (RFC 9112 section 7.1), as long as it is of the plain kind: sizes in hex, data, and the end.

What is not plain (a chunk extension, a trailer, a size of more than eight digits, anything malformed) is not judged
here. The reader stops before it, at the boundary between two chunks, and says so in `unusual`; from there on a full
parser takes over. So this file accepts less than others do, and never anything else.

    feed ──► body bytes        at_boundary   nothing of a chunk has begun: the next byte is that of a size
                               ended, rest   the last chunk has come; these bytes came after it
                               unusual       from here on another parser must read
"""

from __future__ import annotations

import re

MAX_PARTS = 512  # chunks that are joined at a time: a read full of tiny ones must not hold up everyone else

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_BEGUN = re.compile(rb"[0-9A-Fa-f]{0,8}\r?")
_END = b"\r\n"


class ChunkReader:
    """Reads one body.

    Attributes:
        ended: the last chunk has come.
        rest: what came after it.
        unusual: where this reader stopped: bytes that begin at the boundary of a chunk. None: it has not.
        behind: more can be read out of what was fed, without new bytes.
    """

    __slots__ = ("_closing", "_held", "_left", "behind", "ended", "rest", "unusual")

    def __init__(self) -> None:
        self._held = b""  # fed, but not read yet
        self._left = 0  # data bytes of the running chunk that are to come
        self._closing = False  # the line end after a chunk's data is to come
        self.behind = False
        self.ended = False
        self.rest = b""
        self.unusual: bytes | None = None

    @property
    def at_boundary(self) -> bool:
        """Whether all that was fed has been read, and no chunk is under way."""
        return not (self._left or self._closing or self._held or self.ended or self.unusual is not None)

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return what they hold of the body, of MAX_PARTS chunks at most.

        Not to be called when `ended`, or when there is something `unusual`.

        Raises:
            ValueError: a chunk's data is longer than its size says. What came before that is given first.
        """
        if self._held:
            data, self._held = self._held + data, b""
        parts: list[bytes] = []
        at, length = 0, len(data)
        self.behind = False
        while True:
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                if self._left:
                    break
                self._closing = True
            if self._closing:
                end = data[at : at + 2]
                if end != _END:
                    if not _END.startswith(end):
                        if not parts:
                            raise ValueError("a chunk is longer than its size says")
                        self.behind = True  # what came before it is good, and goes out first
                    self._held = data[at:]
                    break
                self._closing = False
                at += 2
            if len(parts) >= MAX_PARTS:
                self._held = data[at:]
                self.behind = bool(self._held)
                break
            size = _SIZE.match(data, at)
            if size is None:
                rest = data[at:]
                if _BEGUN.fullmatch(rest):
                    self._held = rest
                else:
                    self.unusual = rest
                break
            if int(size[1], 16) == 0:
                self._finish(data, at, size.end())
                break
            self._left = int(size[1], 16)
            at = size.end()
            if at == length:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _finish(self, data: bytes, start: int, at: int) -> None:
        """The last chunk's line has come: it ends at `at`."""
        end = data[at : at + 2]
        if end == _END:
            self.ended = True
            self.rest = data[at + 2 :]
        elif _END.startswith(end):
            self._held = data[start:]
        else:
            self.unusual = data[start:]  # a trailer


def whole_chunks(data: bytes) -> bytes | None:
    """The body bytes in `data` if that is whole chunks and nothing else, none of them the last; otherwise None.

    What one read brought of a stream of events is nearly always of this kind, and can then go on as it is.
    """
    length = len(data)
    size = _SIZE.match(data)
    if size is None:
        return None
    at = size.end()
    end = at + int(size[1], 16)
    if end + 2 == length:  # by far the most common: a single chunk
        return data[at:end] if end > at and data.endswith(_END) else None
    parts: list[bytes] = []
    while True:
        if end == at or data[end : end + 2] != _END:
            return None
        parts.append(data[at:end])
        if end + 2 == length:
            return b"".join(parts)
        size = _SIZE.match(data, end + 2)
        if size is None or len(parts) == MAX_PARTS:
            return None
        at = size.end()
        end = at + int(size[1], 16)
