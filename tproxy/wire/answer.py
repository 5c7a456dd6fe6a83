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
import functools
import http.client
import re
import time
import uuid
from collections.abc import Iterable
from email.utils import formatdate

from tproxy import errors
from tproxy.errors import Header

_IN_NAMES = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz\n"  # a token's, in lower case, and what joins them
_UNSAFE = re.compile(rb"[\x00\r\n]")
_OURS = frozenset((b"connection", b"transfer-encoding", b"content-length"))
_REASONS = {int(status): reason.encode("ascii") for status, reason in http.client.responses.items()}


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

    @property
    def in_chunks(self) -> bool:
        """Whether it has its head, and its body goes out in chunks."""
        return self.state is State.OPEN and self._framing is Framing.CHUNKED

    def head(self, status: int, reason: bytes | None, headers: Iterable[Header]) -> bytes:
        """The status line and the header fields.

        Args:
            status: 200 to 999.
            reason: the phrase, where the standard one is not meant.
            headers: in any spelling. `Connection: close` among them sets `last`; framing fields other than
                Content-Length are dropped.

        Raises:
            ValueError: it would not be a response.
        """
        fields = [(name, value.strip()) for name, value in headers]
        if reason is None:
            reason = _REASONS.get(status, b"")
        names = _checked(status, reason, fields)
        dropped = _OURS.intersection(names)
        length: int | None = None
        if b"content-length" in dropped:
            length = _length(names, fields)
            if status == 204 or b"transfer-encoding" in dropped:  # RFC 9110 section 8.6, RFC 9112 section 6.2
                length = None
            else:
                dropped -= {b"content-length"}
        if self._method == "HEAD" or status in (204, 304):
            self._framing = Framing.EMPTY
        elif length is not None:
            self._framing = Framing.LENGTH
            self._remaining = length
        elif self._version == "1.0":
            self._framing = Framing.CLOSE
        else:
            self._framing = Framing.CHUNKED
        if dropped:
            named = list(zip(names, fields, strict=True))
            self.last |= any(name == b"connection" and value.lower() == b"close" for name, (_, value) in named)
            fields = [field for name, field in named if name not in dropped]

        lines = [b"HTTP/1.1 %d %b" % (status, reason)]
        lines += [b": ".join(field) for field in fields]
        if b"date" not in names:  # a gateway adds it (RFC 9110 section 6.6.1)
            lines.append(b"Date: " + _date())
        if self._framing is Framing.CHUNKED:
            lines.append(b"Transfer-Encoding: chunked")
        elif self.last:
            lines.append(b"Connection: close")
        lines.append(b"\r\n")
        self.state = State.OPEN
        return b"\r\n".join(lines)

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


def _checked(status: int, reason: bytes, fields: list[Header]) -> list[bytes]:
    """The names of the fields in lower case.

    Raises:
        ValueError: this is no head of a response.
    """
    if not 200 <= status <= 999 or _UNSAFE.search(reason):
        raise ValueError(f"a response cannot have status {status}, or not with this reason")
    # All at once: a line end within one of them makes a line too many.
    joined = b"\n".join([name for name, _ in fields]).lower()
    values = b"\n".join([value for _, value in fields])
    names = joined.split(b"\n") if fields else []
    well_formed = (
        len(names) == len(fields)
        and all(names)
        and not joined.translate(None, _IN_NAMES)
        and values.count(b"\n") == max(0, len(fields) - 1)
        and b"\r" not in values
        and b"\0" not in values
    )
    if not well_formed:
        raise ValueError(f"a response header has a malformed name or value: one of {[name for name, _ in fields]}")
    return names


def _length(names: list[bytes], fields: list[Header]) -> int:
    lengths = [value for name, (_, value) in zip(names, fields, strict=True) if name == b"content-length"]
    if len(lengths) > 1 or not lengths[0].isdigit():
        raise ValueError("the response's Content-Length is not one number")
    return int(lengths[0])


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
    return _date_of(int(time.time()))


@functools.lru_cache(maxsize=1)
def _date_of(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode("ascii")
