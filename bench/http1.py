"""The least of HTTP/1.1 that reading well-formed answers and requests takes: fast, and strict where it matters.

Not a client for use elsewhere: no 1xx, no close-delimited bodies, no trailers, no pipelining.
"""

from __future__ import annotations

import zlib

GZIP = zlib.MAX_WBITS | 16  # zlib's word for the gzip format


class Malformed(Exception):
    """Not what this small reader takes for HTTP."""


def headers(head: bytes) -> dict[bytes, bytes]:
    """The fields of a head, with names in lower case. The first line is left out."""
    pairs = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.lower(): value.strip() for name, _, value in pairs}


class Body:
    """The body that follows a head, of a length or chunked; of one that has neither, there is none.

    Attributes:
        held: what is not taken yet: of the body, and of what comes after it.
        ended: the body is whole.
    """

    __slots__ = ("_left", "ended", "held")

    def __init__(self, fields: dict[bytes, bytes], held: bytes) -> None:
        self.held = held
        self.ended = False
        self._left: int | None = None  # bytes of a body of known length that are to come; None: the body is chunked
        if fields.get(b"transfer-encoding", b"").lower() != b"chunked":
            self._left = int(fields.get(b"content-length", b"0"))

    def take(self) -> bytes:
        """What of `held` belongs to the body.

        Raises:
            Malformed: a chunk that does not end where it should.
        """
        return self._chunks() if self._left is None else self._plain(self._left)

    def _plain(self, left: int) -> bytes:
        body, self.held = self.held[:left], self.held[left:]
        self._left = left - len(body)
        self.ended = self._left == 0
        return body

    def _chunks(self) -> bytes:
        held, at, pieces = self.held, 0, []
        while not self.ended:
            line = held.find(b"\r\n", at)
            if line < 0:
                break
            size = int(held[at:line].partition(b";")[0], 16)
            end = line + 2 + size
            if len(held) < end + 2:
                break
            if held[end : end + 2] != b"\r\n":
                raise Malformed(f"a chunk without its end: {held[at : end + 2]!r}")
            pieces.append(held[line + 2 : end])
            self.ended = size == 0
            at = end + 2
        self.held = held[at:]
        return b"".join(pieces)


class Answer:
    """One answer, fed as it arrives; a gzipped one is unpacked."""

    __slots__ = ("_body", "_held", "_unpack", "status")

    def __init__(self) -> None:
        self._held = b""
        self._body: Body | None = None
        self._unpack: zlib._Decompress | None = None
        self.status = 0  # until the head is there

    @property
    def ended(self) -> bool:
        """Whether all of it is there."""
        return self._body is not None and self._body.ended

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return what they hold of the body.

        Raises:
            Malformed: an unusual framing, a broken coding, or more bytes than the answer has.
        """
        if self._body is None:
            self._held += data
            head, end, rest = self._held.partition(b"\r\n\r\n")
            if not end:
                return b""
            self._body = self._begin(head, rest)
        else:
            self._body.held += data
        piece = self._body.take()
        if self.ended and self._body.held:
            raise Malformed(f"after the end of an answer: {self._body.held[:200]!r}")
        return piece if self._unpack is None else self._unpacked(self._unpack, piece)

    def _begin(self, head: bytes, rest: bytes) -> Body:
        fields = headers(head)
        if not fields.keys() & {b"transfer-encoding", b"content-length"}:
            raise Malformed(f"a body of unknown length: {head!r}")
        if fields.get(b"content-encoding", b"identity") == b"gzip":
            self._unpack = zlib.decompressobj(GZIP)
        self.status = int(head[9:12])
        return Body(fields, rest)

    def _unpacked(self, unpack: zlib._Decompress, piece: bytes) -> bytes:
        try:
            plain = unpack.decompress(piece)
        except zlib.error as error:
            raise Malformed(f"not gzip: {error}") from None
        if unpack.unused_data or (self.ended and not unpack.eof):
            raise Malformed("the gzip data does not end where the body does")
        return plain
