"""The least of HTTP/1.1 that reading well-formed answers and requests takes: fast, and strict where it matters.

Not a client for use elsewhere: no 1xx, no close-delimited bodies, no trailers, no pipelining.
"""

from __future__ import annotations


class Malformed(Exception):
    """Not what this small reader takes for HTTP."""


def headers(head: bytes) -> dict[bytes, bytes]:
    """The fields of a head, with names in lower case. The first line is left out."""
    pairs = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.lower(): value.strip() for name, _, value in pairs}


class Answer:
    """One answer, fed as it arrives."""

    __slots__ = ("_held", "_left", "ended", "status")

    def __init__(self) -> None:
        self._held = b""
        self._left: int | None = None  # bytes of a body of known length that are to come; None: the body is chunked
        self.status = 0  # until the head is there
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return what they hold of the body.

        Raises:
            Malformed: an unusual framing, or more bytes than the answer has.
        """
        self._held += data
        if not self.status and not self._head():
            return b""
        body = self._chunks() if self._left is None else self._plain(self._left)
        if self.ended and self._held:
            raise Malformed(f"after the end of an answer: {self._held[:200]!r}")
        return body

    def _head(self) -> bool:
        head, end, rest = self._held.partition(b"\r\n\r\n")
        if not end:
            return False
        fields = headers(head)
        if fields.get(b"transfer-encoding", b"").lower() != b"chunked":
            if b"content-length" not in fields:
                raise Malformed(f"a body of unknown length: {head!r}")
            self._left = int(fields[b"content-length"])
        self.status = int(head[9:12])
        self._held = rest
        return True

    def _plain(self, left: int) -> bytes:
        body, self._held = self._held[:left], self._held[left:]
        self._left = left - len(body)
        self.ended = self._left == 0
        return body

    def _chunks(self) -> bytes:
        held, at, pieces = self._held, 0, []
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
        self._held = held[at:]
        return b"".join(pieces)
