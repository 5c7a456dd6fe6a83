"""Heads: what is written, what is refused, and that what is read in one step is read as h11 reads it."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cuts import every_cut
from tproxy.errors import BadRequest, Header
from tproxy.wire.bodies import Body, Chunked, Sized, ToEnd
from tproxy.wire.heads import BadHead, Head, HeadReader, request_head

HOST: Header = (b"host", b"h")
CHUNKED: Header = (b"transfer-encoding", b"chunked")

# (headers beside the host, the body's length, whether the connection is kept)
WRITTEN: dict[str, tuple[list[Header], int | None, bool]] = {
    "no body": ([], 0, True),
    "a length": ([(b"Content-Length", b"12")], 12, True),
    "chunks": ([(b"Transfer-Encoding", b"Chunked")], None, True),
    "close": ([(b"Connection", b"te, Close")], 0, False),
    "keep-alive": ([(b"connection", b"keep-alive")], 0, True),
    "an empty value": ([(b"x", b"")], 0, True),
    "all that a value may hold": ([(b"x", b"\t !~\x80\xff\x01")], 0, True),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_request_head(name: str) -> None:
    headers, length, keep = WRITTEN[name]
    head = request_head(b"POST", b"/a?b=%20", [HOST, *headers])
    lines = b"".join(b"%s: %s\r\n" % header for header in headers)
    assert head.raw == b"POST /a?b=%20 HTTP/1.1\r\nhost: h\r\n" + lines + b"\r\n"
    assert (head.method, head.length, head.keep) == (b"POST", length, keep)
    h11.Connection(h11.SERVER).receive_data(head.raw)


# (method, target, headers)
REFUSED: dict[str, tuple[bytes, bytes, list[Header]]] = {
    "CR LF in a value": (b"GET", b"/", [HOST, (b"x", b"sk-secret\r\ny: z")]),
    "LF in a value": (b"GET", b"/", [HOST, (b"x", b"sk-secret\ny: z")]),
    "CR in a value": (b"GET", b"/", [HOST, (b"x", b"sk-secret\ry: z")]),
    "CR LF at a value's end": (b"GET", b"/", [HOST, (b"x", b"sk-secret\r\n")]),
    "a head in a value": (b"GET", b"/", [HOST, (b"x", b"sk-secret\r\n\r\nGET / HTTP/1.1\r\nhost: h")]),
    "NUL in a value": (b"GET", b"/", [HOST, (b"x", b"sk-secret\0")]),
    "a line in a name": (b"GET", b"/", [HOST, (b"x: y\r\nz", b"sk-secret")]),
    "a colon in a name": (b"GET", b"/", [HOST, (b"x: y", b"sk-secret")]),
    "a space in a name": (b"GET", b"/", [HOST, (b"x y", b"sk-secret")]),
    "no name": (b"GET", b"/", [HOST, (b"", b"sk-secret")]),
    "a space in the target": (b"GET", b"/ sk-secret", [HOST]),
    "a line in the target": (b"GET", b"/ HTTP/1.1\r\nx: sk-secret\r\nhost: h\r\n\r\nGET /", [HOST]),
    "no target": (b"GET", b"", [HOST]),
    "beyond ASCII in the target": (b"GET", b"/\xe4", [HOST]),
    "a space in the method": (b"GET /", b"/", [HOST]),
    "no method": (b"", b"/", [HOST]),
    "no host": (b"GET", b"/", []),
    "two hosts": (b"GET", b"/", [HOST, HOST]),
    "no number": (b"GET", b"/", [HOST, (b"content-length", b"sk-secret")]),
    "a signed number": (b"GET", b"/", [HOST, (b"content-length", b"+1")]),
    "two numbers": (b"GET", b"/", [HOST, (b"content-length", b"1, 1")]),
    "two lengths": (b"GET", b"/", [HOST, (b"content-length", b"1"), (b"content-length", b"1")]),
    "a length and chunks": (b"GET", b"/", [HOST, (b"content-length", b"1"), CHUNKED]),
    "another coding": (b"GET", b"/", [HOST, (b"transfer-encoding", b"gzip, chunked")]),
    "a tunnel": (b"CONNECT", b"h:443", [HOST]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_request_that_is_not_http(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        request_head(*REFUSED[name])
    assert "sk-secret" not in caught.value.message
    assert caught.value.__cause__ is caught.value.__context__ is None


@given(st.lists(st.tuples(st.binary(max_size=4), st.binary(max_size=4)), max_size=3), st.binary(max_size=4))
def test_what_is_written_is_one_head_that_says_what_was_given(headers: list[Header], target: bytes) -> None:
    try:
        head = request_head(b"GET", target, [HOST, *headers])
    except BadRequest:
        return
    server = h11.Connection(h11.SERVER)
    server.receive_data(head.raw)
    request = server.next_event()
    assert isinstance(request, h11.Request)
    assert server.trailing_data[0] == b""
    assert (request.target, len(request.headers)) == (target, 1 + len(headers))
    assert [name for name, _ in request.headers.raw_items()] == [name for name, _ in [HOST, *headers]]


Read = tuple[Head, Body, bytes, bool]


def read(pieces: list[bytes], method: bytes = b"GET") -> Read | str:
    """What the reader makes of a head: also the rest and whether the connection is kept; or why it refuses it."""
    reader = HeadReader(method, max_bytes=2000, max_headers=12)
    for i, piece in enumerate(filter(None, pieces)):
        try:
            found = reader.feed(piece)
        except BadHead as exc:
            return str(exc)
        if found is not None:
            left = b"".join([piece for piece in pieces if piece][i + 1 :])
            return *found, reader.rest + left, reader.keep
    return "needs more"


def by_h11(raw: bytes, method: bytes = b"GET") -> Read | str:
    """What h11 makes of it."""
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=2000)
    client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    client.receive_data(raw)
    event = client.next_event()
    if not isinstance(event, h11.Response):
        return "no final head"
    head = Head(event.status_code, bytes(event.reason), event.headers.raw_items(), event.http_version)
    reader = client._reader
    kind = type(reader).__name__
    body: Body = ToEnd()
    if kind == "ContentLengthReader":
        body = Sized(reader._length)  # type: ignore[union-attr]
    elif kind == "ChunkedReader":
        body = Chunked(2000)
    rest = client.trailing_data[0]
    client.send(h11.EndOfMessage())
    keep = client.our_state is h11.DONE and kind != "Http10Reader"
    return head, body, rest, keep


def same(one: Read, other: Read) -> bool:
    sizes = [getattr(body, "_left", None) for body in (one[1], other[1])]
    return one[0] == other[0] and one[2:] == other[2:] and type(one[1]) is type(other[1]) and sizes[0] == sizes[1]


OK = b"HTTP/1.1 200 OK\r\n"
USUAL = {
    "a length": OK + b"content-length: 5\r\n\r\nhello",
    "chunks": OK + b"Transfer-Encoding: chunked\r\nX: y\r\n\r\n5\r\n",
    "to the end": OK + b"\r\nall",
    "no reason": b"HTTP/1.1 529 \r\ncontent-length: 0\r\n\r\n",
    "a reason of many words": b"HTTP/1.1 404 \tNot  \xe4 there \r\ncontent-length: 0\r\n\r\n",
    "close": OK + b"content-length: 0\r\nConnection: x, Close\r\n\r\n",
    "keep-alive": OK + b"content-length: 0\r\nconnection: keep-alive\r\n\r\n",
    "204": b"HTTP/1.1 204 No\r\ncontent-length: 7\r\n\r\nbytes",
    "304": b"HTTP/1.1 304 No\r\ntransfer-encoding: chunked\r\n\r\n",
    "repeated fields": OK + b"set-cookie: a\r\nB: \t c \r\nSet-Cookie: a\r\ncontent-length: 1\r\n\r\n",
    "599": b"HTTP/1.1 599 Odd\r\ncontent-length: 12345678901234567890\r\n\r\n",
}


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("name", USUAL)
def test_usual_heads_are_read_without_h11(name: str, method: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = by_h11(USUAL[name], method)
    assert not isinstance(expected, str)
    monkeypatch.setattr("tproxy.wire.heads.h11.Connection", None)
    for pieces in every_cut(USUAL[name]):
        found = read(pieces, method)
        assert not isinstance(found, str)
        assert same(found, expected)


# What is left to h11, and what comes of it: a status, or words of the fault.
UNUSUAL = {
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", 200),
    "1xx": (b"HTTP/1.1 103 Hints\r\na: b\r\n\r\n" + OK + b"content-length: 0\r\n\r\n", 200),
    "folded": (OK + b"a: b\r\n c\r\ncontent-length: 0\r\n\r\n", 200),
    "bare line feeds": (b"HTTP/1.1 201 OK\ncontent-length: 0\n\n", 201),
    "no space after the status": (b"HTTP/1.1 529\r\ncontent-length: 0\r\n\r\n", 529),
    "a list of equal lengths": (OK + b"content-length: 5, 5\r\n\r\n", 200),
    "equal lengths": (OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\n", 200),
    "Chunked": (OK + b"transfer-encoding: Chunked\r\n\r\n", 200),
    "a control character": (OK + b"a: \x01\r\ncontent-length: 0\r\n\r\n", 200),
    "just within the bounds": (OK + b"a:" + b"x" * 1977 + b"\r\n\r\n", 200),
    "101": (b"HTTP/1.1 101 Switching\r\n\r\n", "switched protocols"),
    "600": (b"HTTP/1.1 600 Odd\r\n\r\n", "means nothing"),
    "HTTP/2.0": (b"HTTP/2.0 200 OK\r\n\r\n", "means nothing"),
    "other lengths": (OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\n", "not valid HTTP"),
    "a length of 21 digits": (OK + b"content-length: 123456789012345678901\r\n\r\n", "not valid HTTP"),
    "a length and chunks": (OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", "both a transfer"),
    "twice chunked": (OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", "not valid HTTP"),
    "gzip": (OK + b"transfer-encoding: gzip\r\n\r\n", "not valid HTTP"),
    "space before the colon": (OK + b"a : b\r\n\r\n", "not valid HTTP"),
    "NUL": (OK + b"a: \0\r\n\r\n", "not valid HTTP"),
    "an empty line first": (b"\r\n" + OK + b"\r\n", "not valid HTTP"),
    "no HTTP": (b"\x15\x03\x01", "not valid HTTP"),
    "13 headers": (OK + b"a: b\r\n" * 13 + b"\r\n", "more than 12 headers"),
    "too long": (OK + b"a: " + b"x" * 2000 + b"\r\n\r\n", "head of more than 2000 bytes"),
    "too long, and never whole": (OK + b"a: " + b"x" * 2000, "head of more than 2000 bytes"),
    "never whole": (OK + b"a: b", "needs more"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_all_else_is_left_to_h11(name: str) -> None:
    raw, outcome = UNUSUAL[name]
    for pieces in every_cut(raw, random_cuts=5):
        found = read(pieces)
        if isinstance(outcome, str):
            assert isinstance(found, str), found
            assert outcome in found
        else:
            assert not isinstance(found, str), found
            assert found[0].status == outcome


WORDS = [
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 204 \r\n", b"HTTP/1.0 200 OK\r\n", b"content-length", b"Transfer-Encoding",
    b"connection", b"chunked", b"close", b"5", b",", b": ", b":", b" ", b"\t", b"x", b"\xe4", b"\0", b"\r", b"\n",
    b"\r\n", b"\r\n", b"\r\n\r\n", b"a: b\r\n", b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.sampled_from([b"GET", b"HEAD"]))
def test_reads_nothing_otherwise_than_h11(words: list[bytes], method: bytes) -> None:
    raw = b"HTTP/1.1 200 OK\r\n" + b"".join(words)
    reader = HeadReader(method, max_bytes=2000, max_headers=12)
    end = raw.find(b"\n\r\n") + 3
    found = reader._usual(raw, end) if end > 2 else None
    if found is None:
        return
    expected = by_h11(raw, method)
    assert not isinstance(expected, str)
    assert same((*found, reader.rest, reader.keep), expected)
