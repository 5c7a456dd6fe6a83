"""Request bodies, however they are cut: the same bytes, the same end, the same rest."""

from __future__ import annotations

from collections.abc import Callable

import h11
import pytest

from tests.cuts import every_cut
from tproxy.wire.request_body import Body, ChunkedBody, CountedBody

NEXT = b"GET / HTTP/1.1\r\n"


def counted(length: int) -> Body:
    return CountedBody(length)


def in_chunks(_: int) -> Body:
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    parser.next_event()
    return ChunkedBody(parser)


BODIES = [
    # name, how it is framed, its length, what comes, what of it is the body
    ("empty", counted, 0, b"", b""),
    ("empty before the next", counted, 0, NEXT, b""),
    ("counted", counted, 5, b"hello", b"hello"),
    ("counted before the next", counted, 5, b"hello" + NEXT, b"hello"),
    ("chunked", in_chunks, 0, b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\n", b"hello world"),
    ("chunked before the next", in_chunks, 0, b"5\r\nhello\r\n0\r\nx: y\r\n\r\n" + NEXT, b"hello"),
    ("empty in chunks", in_chunks, 0, b"0\r\n\r\n", b""),
    ("many chunks", in_chunks, 0, b"1\r\nx\r\n" * 200 + b"0\r\n\r\n" + NEXT, b"x" * 200),
]  # fmt: skip


def read_through(reader: Body, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """What a body holds, and what came after it."""
    left = filter(None, pieces)  # of h11's, an empty piece would be the connection's end
    body = b""
    while True:
        if (found := reader.read()) is None:
            reader.feed(next(left))
            continue
        part, more = found
        assert len(part) <= 64 or isinstance(reader, CountedBody)
        body += part
        if not more:
            return body, reader.rest + b"".join(left)


@pytest.mark.parametrize(("name", "framed", "length", "wire", "body"), BODIES, ids=[row[0] for row in BODIES])
def test_a_body(name: str, framed: Callable[[int], Body], length: int, wire: bytes, body: bytes) -> None:
    rest = NEXT if wire.endswith(NEXT) else b""
    for pieces in every_cut(wire):
        assert read_through(framed(length), pieces) == (body, rest)


@pytest.mark.parametrize("wire", [b"x\r\n", b"1\r\nxx", b"-1\r\n", b"1\nx\r\nz", b"0\r\n bad\r\n\r\n"])
def test_a_body_that_is_not_framed_as_announced(wire: bytes) -> None:
    for pieces in every_cut(wire):
        with pytest.raises(ValueError, match="not framed"):
            read_through(in_chunks(0), pieces)
