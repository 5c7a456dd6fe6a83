"""The head of a request: where it ends, and whether it is one that we serve.

A plain request, as nearly all are, is read here (`open_plain`). Whatever is not plain goes to the judge, which is h11
with a strict eye on both sides of it: h11 is lenient where RFC 9112 lets a server be, and a proxy is where leniency
becomes request smuggling. So the raw bytes are looked at before h11 smooths them over, and the parsed request after.
What the judge refuses never reaches the application, and what is plain is what it would let pass just so. Refused
are, beyond what h11 refuses itself:

- 400: control characters, bare CR or LF, folded lines; Content-Length given twice or beside Transfer-Encoding;
  Transfer-Encoding in HTTP/1.0; a Host that is no host; `Upgrade: websocket` and `Upgrade: h2c`
- 417 unknown expectations · 431 heads too long or with too many fields, also when they come in one piece
- 501 CONNECT, TRACE, methods in lower case, codings other than chunked · 505 versions other than 1.0 and 1.1

Bytes in, values out: no I/O, no clock. The target is taken as it came; `protocol/target.py` judges it.
A refusal's message never repeats what the client sent: it may hold a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import h11
import msgspec

from tproxy import errors
from tproxy.errors import Header
from tproxy.protocol.head import plain_fields
from tproxy.wire.request_body import Body, ChunkedBody, CountedBody

# Also a CR whose LF may still be on its way is no fault, and a fold is seen with the LF that precedes it.
_FAULT = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:([^\r]*)", re.IGNORECASE)
# RFC 3986 section 3.2.2: IP-literal or reg-name, then a port; an empty host names nobody.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+)(?::[0-9]{0,5})?")
_LENGTH_DIGITS = 15
_PLAIN_LINE = re.compile(rb"([A-Z]+) ([\x21-\x7e]+) HTTP/1\.1\r\n")
_TELLING = frozenset((b"host", b"content-length", b"connection", b"transfer-encoding", b"upgrade", b"expect"))
_NOT_SERVED = (b"CONNECT", b"TRACE")


class Refused(Exception):  # not a Fault: there is no exchange yet
    """A request that is answered before the application sees it; its connection ends.

    Args:
        status: the HTTP status.
        message: one sentence for the client, with nothing in it that the client sent.

    Attributes:
        fault: what the answer's envelope says.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.fault = errors.BadRequest(message)


class Opening(msgspec.Struct, frozen=True):
    """A request whose head is whole and well-formed.

    Attributes:
        target: the request target as it came, query included.
        http_version: "1.0" or "1.1".
        headers: in the client's spelling, order and repetition; values without surrounding whitespace.
        host: the Host field, b"" where an HTTP/1.0 client sent none.
        last: the client takes no further answer on this connection.
        expects_continue: the client waits for 100 before it sends its body.
        body: takes the bytes that follow.
    """

    method: str
    target: bytes
    http_version: str
    headers: list[Header]
    host: bytes
    last: bool
    expects_continue: bool
    body: Body


def head_end(data: bytearray, seen: int, max_bytes: int) -> int:
    """The length of the head at the start of `data`, its empty line included; 0 when it is not whole yet.

    Args:
        data: what has come so far; it does not begin with an empty line.
        seen: how much of it an earlier call has looked at, so that a head in many pieces is not read many times.
        max_bytes: the longest head.

    Raises:
        Refused: too long; or not whole yet, and there is a byte in it that no head has.
    """
    end = data.find(b"\r\n\r\n", max(0, seen - 3)) + 4
    if end < 4:
        end = 0
    if (end or len(data)) > max_bytes:
        raise Refused(431, f"The request head is longer than {max_bytes} bytes.")
    if not end:
        _check_bytes(data, max(0, seen - 1))
    return end


def open_request(head: bytes, *, max_bytes: int, max_headers: int) -> Opening:
    """Read a whole head, as `head_end` measured it.

    Args:
        head: from the request line to the empty line.
        max_bytes: also bounds a chunk's size line and the trailers, which come later.
        max_headers: the most header fields.

    Raises:
        Refused: this request is not served.
    """
    opening = open_plain(head, max_headers)
    return opening if opening is not None else judge(head, max_bytes, max_headers)


def open_plain(head: bytes, max_headers: int) -> Opening | None:
    """Read a request that nothing is unusual about. None: it is for `judge` to say what it is.

    What it reads, `judge` would read alike, only not as fast.
    """
    line = _PLAIN_LINE.match(head)
    if line is None or line[1] in _NOT_SERVED:
        return None
    headers = plain_fields(head[line.end() : -2])
    if headers is None or len(headers) > max_headers:
        return None
    host: bytes | None = None
    length: int | None = None
    last = False
    for name, value in headers:
        name = name.lower()
        if name not in _TELLING:
            continue
        if name == b"host" and host is None:
            host = value
        elif name == b"content-length" and length is None and value.isdigit() and len(value) <= _LENGTH_DIGITS:
            length = int(value)
        elif name == b"connection":
            last |= b"close" in _members((value,))
        else:
            return None
    if host is None or not _HOST.fullmatch(host):
        return None
    return Opening(
        method=line[1].decode("ascii"),
        target=line[2],
        http_version="1.1",
        headers=headers,
        host=host,
        last=last,
        expects_continue=False,
        body=CountedBody(length or 0),
    )


def judge(head: bytes, max_bytes: int, max_headers: int) -> Opening:
    """Read any request. As `open_request`."""
    _check_bytes(head, 0)
    if head.count(b"\r\n") - 2 > max_headers:
        raise Refused(431, f"The request has more than {max_headers} header fields.")
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=max_bytes)
    try:
        parser.receive_data(head)
        request = parser.next_event()
    except h11.RemoteProtocolError as error:
        reason = "uses a transfer coding other than chunked" if error.error_status_hint == 501 else "is malformed"
        raise Refused(error.error_status_hint, f"The request head {reason}.") from None
    if not isinstance(request, h11.Request):
        raise Refused(400, "The request head is malformed.")
    fields: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        fields.setdefault(name, []).append(value)
    _check_line(request)
    _check_framing(request, fields, _CONTENT_LENGTH.findall(head))
    _check_fields(fields)
    chunked = b"transfer-encoding" in fields
    return Opening(
        method=request.method.decode("ascii"),
        target=request.target,
        http_version=request.http_version.decode("ascii"),
        headers=request.headers.raw_items(),
        host=fields.get(b"host", [b""])[0],
        last=request.http_version == b"1.0" or b"close" in _members(fields.get(b"connection", ())),
        # An HTTP/1.0 client's expectation is not one (RFC 9110 section 10.1.1).
        expects_continue=request.http_version == b"1.1" and b"expect" in fields,
        body=ChunkedBody(parser) if chunked else CountedBody(int(fields.get(b"content-length", [b"0"])[0])),
    )


def _check_bytes(data: bytes | bytearray, start: int) -> None:
    if _FAULT.search(data, start):
        raise Refused(400, "The request head holds a control character, a bare CR or LF, or a folded line.")


def _check_line(request: h11.Request) -> None:
    if request.http_version not in (b"1.0", b"1.1"):
        raise Refused(505, "Only HTTP/1.0 and HTTP/1.1 are served.")
    if request.method in _NOT_SERVED or request.method != request.method.upper():
        raise Refused(501, "This method is not served.")


def _check_framing(request: h11.Request, fields: dict[bytes, list[bytes]], raw_lengths: list[bytes]) -> None:
    if b"transfer-encoding" in fields:
        if raw_lengths:
            raise Refused(400, "The request has both Content-Length and Transfer-Encoding.")
        if request.http_version == b"1.0":
            raise Refused(400, "Transfer-Encoding is not part of HTTP/1.0.")
    # h11 has made one value of equal ones, and of a list of them.
    if len(raw_lengths) > 1 or any(b"," in value for value in raw_lengths):
        raise Refused(400, "Content-Length is given more than once.")
    if any(len(value) > _LENGTH_DIGITS for value in fields.get(b"content-length", ())):
        raise Refused(400, "Content-Length is not a possible length.")


def _check_fields(fields: dict[bytes, list[bytes]]) -> None:
    if not all(_HOST.fullmatch(value) for value in fields.get(b"host", ())):
        raise Refused(400, "The Host header is not a host and an optional port.")
    if {token.partition(b"/")[0] for token in _members(fields.get(b"upgrade", ()))} & {b"websocket", b"h2c"}:
        raise Refused(400, "This connection cannot be upgraded to another protocol.")
    if _members(fields.get(b"expect", ())) - {b"100-continue"}:
        raise Refused(417, "The only expectation that is met is 100-continue.")


def _members(values: Iterable[bytes]) -> set[bytes]:
    """The members of a comma-separated field, in lower case."""
    return {token.strip().lower() for value in values for token in value.split(b",")}
