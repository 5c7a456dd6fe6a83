"""The bytes of one response: its head in the application's spelling, its body in our framing.

- Header fields keep their names, order and repetition. Ours are only the framing and the connection: Content-Length
  where the application gave one, else chunked, else (HTTP/1.0) the end of the connection.
- A chunked response never says `Connection: close`: Node's client would take a cut for its end. Others say it when
  the connection closes after them.
- A body that is not the length that was announced is an error before a byte of it goes out.

Values in, bytes out: no I/O. It does not know whether the bytes arrive.
"""

from __future__ import annotations

import enum
import http.client
import re
import time
import uuid
from collections.abc import Iterable
from email.utils import formatdate

from tproxy import errors

_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_UNSAFE = re.compile(rb"[\x00\r\n]")


class State(enum.Enum):
    """How far a response is."""

    WAITING = "has no head yet"
    OPEN = "has its head, but not all of its body"
    COMPLETE = "is whole"


class Framing(enum.Enum):
    """What tells the client where the response ends (RFC 9112 section 6.3)."""

    EMPTY = "the head"
    LENGTH = "Content-Length"
    CHUNKED = "the last chunk"
    CLOSE = "the end of the connection"


class Answer:
    """Writes one response.

    Args:
        method: of the request; HEAD has no body in its answer.
        http_version: of the request, "1.0" or "1.1".
        last: the connection closes after it.

    Attributes:
        state: how far it is.
        last: as given; it may still be set until the head is made.
    """

    __slots__ = ("_framing", "_method", "_remaining", "_version", "last", "state")

    def __init__(self, method: str, http_version: str, *, last: bool) -> None:
        self._method = method
        self._version = http_version
        self._framing = Framing.EMPTY
        self._remaining = 0  # bytes until Content-Length is met
        self.state = State.WAITING
        self.last = last

    @property
    def cut_looks_whole(self) -> bool:
        """Whether a client would take the end of the connection, here and now, for the end of the response."""
        return self.state is State.OPEN and self._framing is Framing.CLOSE

    def head(self, status: int, reason: bytes | None, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The status line and the header fields.

        Args:
            status: 200 to 999.
            reason: the phrase, where the standard one is not meant.
            headers: in any spelling. `Connection: close` among them sets `last`; framing fields other than
                Content-Length are dropped.

        Raises:
            ValueError: it would not be a response.
        """
        fields = [(bytes(name), bytes(value).strip()) for name, value in headers]
        if reason is None:
            reason = http.client.responses.get(status, "").encode("ascii")
        self._check(status, reason, fields)
        names = {name.lower() for name, _ in fields}
        dropped = {b"connection", b"transfer-encoding"}
        if status == 204 or b"transfer-encoding" in names:  # RFC 9110 section 8.6, RFC 9112 section 6.2
            dropped.add(b"content-length")
        lengths = [value for name, value in fields if name.lower() == b"content-length"]
        if self._method == "HEAD" or status in (204, 304):
            self._framing = Framing.EMPTY
        elif lengths and b"content-length" not in dropped:
            self._framing = Framing.LENGTH
            self._remaining = int(lengths[0])
        elif self._version == "1.0":
            self._framing = Framing.CLOSE
        else:
            self._framing = Framing.CHUNKED
        self.last |= any(name.lower() == b"connection" and value.lower() == b"close" for name, value in fields)

        lines = [b"HTTP/1.1 %d %b" % (status, reason)]
        lines += [b"%b: %b" % field for field in fields if field[0].lower() not in dropped]
        if b"date" not in names:  # a gateway adds it (RFC 9110 section 6.6.1)
            lines.append(b"Date: " + _date())
        if self._framing is Framing.CHUNKED:
            lines.append(b"Transfer-Encoding: chunked")
        elif self.last:
            lines.append(b"Connection: close")
        self.state = State.OPEN
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def body(self, data: bytes, *, more: bool) -> bytes:
        """What goes over the wire for a part of the body; with `more` false, for the last one.

        Raises:
            RuntimeError: the body is longer or shorter than Content-Length said.
        """
        if self._framing is Framing.LENGTH:
            self._remaining -= len(data)
            if self._remaining < 0 or (self._remaining and not more):
                raise RuntimeError(f"the body's length differs from Content-Length by {-self._remaining} bytes")
        if not more:
            self.state = State.COMPLETE
        if self._framing is Framing.CHUNKED:
            chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            return chunk if more else chunk + b"0\r\n\r\n"
        return b"" if self._framing is Framing.EMPTY else data

    @staticmethod
    def _check(status: int, reason: bytes, fields: list[tuple[bytes, bytes]]) -> None:
        if not 200 <= status <= 999 or _UNSAFE.search(reason):
            raise ValueError(f"a response cannot have status {status}, or not with this reason")
        for name, value in fields:
            if not _NAME.fullmatch(name) or _UNSAFE.search(value):
                raise ValueError(f"response header {name!r} has a malformed name or value")
        lengths = [value for name, value in fields if name.lower() == b"content-length"]
        if len(lengths) > 1 or not all(value.isdigit() for value in lengths):
            raise ValueError("the response's Content-Length is not one number")


def error_answer(status: int, fault: errors.Fault, *, body: bool = True) -> bytes:
    """A whole response with Anthropic's envelope, after which the connection closes.

    Args:
        status: the HTTP status; it may be another than the fault's own.
        fault: what the envelope says.
        body: false for an answer to HEAD.
    """
    exchange_id = uuid.uuid4().hex
    content = errors.envelope(fault, exchange_id)
    fields = (
        b"HTTP/1.1 %d %b" % (status, http.client.responses[status].encode("ascii")),
        b"Date: " + _date(),
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(content),
        b"x-tproxy-id: " + exchange_id.encode("ascii"),
        b"x-litellm-call-id: " + exchange_id.encode("ascii"),
        b"Connection: close",
    )
    return b"\r\n".join(fields) + b"\r\n\r\n" + (content if body else b"")


def _date() -> bytes:
    return formatdate(time.time(), usegmt=True).encode("ascii")
