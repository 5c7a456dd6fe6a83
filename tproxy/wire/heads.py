"""Heads of HTTP/1.1 messages on the upstream's side: that of a request written, that of an answer read.

Usual heads of answers are read here, in one step, once they are whole. All others (1xx, HTTP/1.0, folded lines, odd
lengths, anything malformed) are left to h11: what is accepted here, it would have accepted, and read in the same way.

Faults never quote a header, which may be a credential, nor what the peer sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import h11

from tproxy.errors import BadRequest, Header
from tproxy.protocol.head import plain_fields
from tproxy.wire.bodies import Body, Chunked, Sized, ToEnd

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST = re.compile(rb"%b [\x21-\x7e]+ HTTP/1\.1\r\n(?:%b: [^\x00\n\x0b\x0c\r]*\r\n)*\r\n" % (_TOKEN, _TOKEN))
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_BLANK_LINE = re.compile(rb"\n\r?\n")  # where h11 sees a head's end
_STATUS = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)\r\n")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The head of a request, ready to be sent.

    Attributes:
        length: of the body; None: it goes out in chunks.
        keep: the connection may serve another exchange after this one.
    """

    raw: bytes
    method: bytes
    length: int | None
    keep: bool


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a final answer (200 to 599), headers as the peer spelled, ordered and repeated them."""

    status: int
    reason: bytes
    headers: list[Header]
    http_version: bytes


class BadHead(Exception):
    """What came is no head of an answer that a client could be given; the message says why, of the peer."""


def request_head(method: bytes, target: bytes, headers: Sequence[Header]) -> RequestHead:
    """Write a head. The headers go out as they are given.

    Raises:
        BadRequest: HTTP/1.1 cannot carry it, or it says no host, or two lengths.
    """
    lines = [b"%b %b HTTP/1.1\r\n" % (method, target)]
    framing: list[Header] = []
    hosts, keep, one_line_each = 0, True, True
    for name, value in headers:
        lines.append(b"%b: %b\r\n" % (name, value))
        one_line_each = one_line_each and b":" not in name
        lower = name.lower()
        if lower in _FRAMING:
            framing.append((lower, value))
        elif lower == b"host":
            hosts += 1
        elif lower == b"connection":
            keep = keep and not _says_close(value)
    lines.append(b"\r\n")
    raw = b"".join(lines)
    # All of it is lines, and none of what was given is more than one.
    if not one_line_each or _REQUEST.fullmatch(raw) is None or raw.count(b"\n") != len(lines):
        raise BadRequest("The request has a line that HTTP/1.1 cannot carry.")
    if hosts != 1 or len(framing) > 1 or method == b"CONNECT":
        raise BadRequest("The request has not one host, or more than one length, or asks for a tunnel.")
    length = _length(framing[0]) if framing else 0
    return RequestHead(raw, method, length, keep)


class HeadReader:
    """Reads the head of one final answer.

    Args:
        method: of the request.
        max_bytes, max_headers: bounds on each head; 1xx ones count by themselves.

    Attributes:
        rest: what came after the head.
        keep: the peer is willing to serve another exchange on this connection.
    """

    def __init__(self, method: bytes, *, max_bytes: int, max_headers: int) -> None:
        self.rest = b""
        self.keep = True
        self._method = method
        self._max_bytes = max_bytes
        self._max_headers = max_headers
        self._data = b""
        self._h11: h11.Connection | None = None

    def feed(self, data: bytes) -> tuple[Head, Body] | None:
        """Take the next bytes. None: more are needed.

        Raises:
            BadHead: no answer can come of it.
        """
        if self._h11 is None:
            seen = len(self._data)
            data = self._data = self._data + data if seen else data
            end = _BLANK_LINE.search(data, max(0, seen - 2))
            if end is not None:
                if (found := self._usual(data, end.end())) is not None:
                    return found
            elif data[0] > 0x20 and len(data) <= self._max_bytes:
                return None
            self._data = b""
            self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=self._max_bytes)
            # Of the request, h11 has to know what an answer depends on. A 101 is then one to an upgrade, and refused.
            self._h11.send(h11.Request(method=self._method, target="/", headers=[("host", "x"), ("upgrade", "x")]))
        return self._unusual(self._h11, data)

    def _usual(self, data: bytes, end: int) -> tuple[Head, Body] | None:
        """Read the head that ends at `end`, if it is of the usual kind."""
        status = _STATUS.match(data)
        if status is None:
            return None
        fields = plain_fields(data[status.end() : end - 2])
        if fields is None or len(fields) > self._max_headers or end + len(fields) > self._max_bytes:
            return None
        length, chunked, keep = None, False, True
        for name, value in fields:
            lower = name.lower()
            if lower == b"content-length":
                if length is not None or not _is_length(value):
                    return None
                length = int(value)
            elif lower == b"transfer-encoding":
                if chunked or value != b"chunked":
                    return None
                chunked = True
            elif lower == b"connection":
                keep = keep and not _says_close(value)
        if chunked and length is not None:
            return None
        head = Head(int(status[1]), status[2], fields, b"1.1")
        self.rest = data[end:]
        self.keep = keep
        return head, self._body(head.status, length, chunked=chunked)

    def _unusual(self, parser: h11.Connection, data: bytes) -> tuple[Head, Body] | None:
        parser.receive_data(data)
        try:
            while True:
                event = parser.next_event()
                if not isinstance(event, h11.InformationalResponse):
                    break
                self._check_bounds(event)
                if event.status_code == 101:
                    raise BadHead("switched protocols unasked")
        except h11.RemoteProtocolError as exc:
            # h11's own words may quote the peer's bytes: they go no further.
            if exc.error_status_hint == 431:
                raise BadHead(f"sent a head of more than {self._max_bytes} bytes") from None
            raise BadHead("sent an answer that is not valid HTTP/1.1") from None
        if not isinstance(event, h11.Response):
            return None
        self._check_bounds(event)
        named = dict(event.headers)
        length = named.get(b"content-length")
        chunked = b"transfer-encoding" in named
        if event.status_code > 599 or not event.http_version.startswith(b"1."):
            raise BadHead("sent a status line that means nothing in HTTP/1.1")
        if chunked and length is not None:
            # Two lengths for one body: what a response-splitting upstream would send (RFC 9112 section 6.3).
            raise BadHead("sent both a transfer-encoding and a content-length")
        self.rest = parser.trailing_data[0]
        self.keep = event.http_version >= b"1.1" and not any(
            name == b"connection" and _says_close(value) for name, value in event.headers
        )
        head = Head(event.status_code, bytes(event.reason), event.headers.raw_items(), event.http_version)
        return head, self._body(head.status, None if length is None else int(length), chunked=chunked)

    def _body(self, status: int, length: int | None, *, chunked: bool) -> Body:
        """What follows the head (RFC 9112 section 6.3)."""
        if self._method == b"HEAD" or status in (204, 304):
            return Sized(0)
        if chunked:
            return Chunked(self._max_bytes)
        if length is not None:
            return Sized(length)
        self.keep = False
        return ToEnd()

    def _check_bounds(self, event: h11.InformationalResponse | h11.Response) -> None:
        """h11 bounds only heads that are incomplete after a read."""
        headers = event.headers.raw_items()
        if len(headers) > self._max_headers:
            raise BadHead(f"sent more than {self._max_headers} headers")
        if sum(len(name) + len(value) + 4 for name, value in headers) > self._max_bytes:
            raise BadHead(f"sent a head of more than {self._max_bytes} bytes")


def _length(framing: Header) -> int | None:
    """The length of a request's body as its framing says it."""
    name, value = framing
    if name == b"transfer-encoding":
        if value.lower() == b"chunked":
            return None
    elif _is_length(value):
        return int(value)
    raise BadRequest("The request's framing is not that of HTTP/1.1.")


def _is_length(value: bytes) -> bool:
    return value.isdigit() and len(value) <= 20


def _says_close(value: bytes) -> bool:
    return any(option.strip() == b"close" for option in value.lower().split(b","))
