"""Chunked bodies of the plain kind, beside h11, which knows all kinds."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cuts import every_cut
from tproxy.protocol.chunked import MAX_PARTS, ChunkReader, whole_chunks


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def by_h11(pieces: list[bytes]) -> tuple[bytes, bool, bytes]:
    """The body, whether it has ended, and what came after it. Raises RemoteProtocolError."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    assert isinstance(parser.next_event(), h11.Response)
    body, ended = b"", False
    for piece in pieces:
        if piece:
            parser.receive_data(piece)
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Data):
                body += event.data
                continue
            ended |= isinstance(event, h11.EndOfMessage)
            break
    return body, ended, parser.trailing_data[0]


def read(pieces: list[bytes]) -> tuple[bytes, ChunkReader]:
    reader, body, rest = ChunkReader(), b"", b""
    for piece in pieces:
        if reader.ended or reader.unusual is not None:
            rest += piece
            continue
        body += reader.feed(piece)
        while reader.behind:
            body += reader.feed(b"")
    if reader.ended:
        reader.rest += rest
    elif reader.unusual is not None:
        reader.unusual += rest
    return body, reader


PLAIN = {
    "one chunk": b"5\r\nhello\r\n0\r\n\r\n",
    "several": b"5\r\nhello\r\n1\r\n \r\n00A\r\n0123456789\r\n0\r\n\r\n",
    "upper and lower case": b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "data that looks like framing": b"7\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n",
    "many zeros": b"00000001\r\nx\r\n0000\r\n\r\n",
    "empty": b"0\r\n\r\n",
    "something after the end": b"1\r\nx\r\n0\r\n\r\nHTTP/1.1",
    "not ended": b"5\r\nhello\r\n",
    "in the midst of a chunk": b"5\r\nhel",
    "in the midst of a size": b"5\r\nhello\r\n1",
    "many tiny ones": b"1\r\nx\r\n" * (2 * MAX_PARTS + 3) + b"0\r\n\r\n",
}


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_reads_what_h11_reads(data: bytes) -> None:
    for pieces in every_cut(data):
        body, reader = read(pieces)
        assert (body, reader.ended, reader.rest) == (*by_h11([data])[:2], by_h11([data])[2] if reader.ended else b"")
        assert reader.unusual is None


UNUSUAL = {
    "an extension": (b"1\r\nx\r\n", b"5;a=b\r\nhello\r\n0\r\n\r\n"),
    "space after the size": (b"1\r\nx\r\n", b"5 \r\nhello\r\n0\r\n\r\n"),
    "a trailer": (b"1\r\nx\r\n", b"0\r\nx: y\r\n\r\n"),
    "an extension at the end": (b"", b"0;x\r\n\r\n"),
    "nine digits": (b"1\r\nx\r\n", b"000000001\r\nx\r\n0\r\n\r\n"),
    "no size": (b"1\r\nx\r\n", b"\r\nx\r\n"),
    "a sign": (b"", b"+1\r\nx\r\n"),
    "a bare LF": (b"", b"1\nx\r\n"),
    "not hex": (b"1\r\nx\r\n", b"g\r\n"),
}


@pytest.mark.parametrize(("before", "rest"), UNUSUAL.values(), ids=UNUSUAL)
def test_stops_before_what_is_unusual(before: bytes, rest: bytes) -> None:
    for pieces in every_cut(before + rest):
        body, reader = read(pieces)
        assert (body, reader.unusual, reader.ended) == (by_h11([before])[0], rest, False)
        assert not reader.at_boundary


def test_longer_than_its_size_says() -> None:
    for pieces in every_cut(b"2\r\nxyz\r\n"):
        with pytest.raises(ValueError, match="longer"):
            read(pieces)


def test_at_boundary() -> None:
    reader, at = ChunkReader(), []
    for number in b"3\r\nabc\r\n1\r\nx\r\n":
        reader.feed(bytes([number]))
        at.append(reader.at_boundary)
    assert at == [*[False] * 7, True, *[False] * 5, True]
    reader.feed(b"0\r\n\r\n")
    assert reader.ended
    assert not reader.at_boundary


def test_tiny_chunks_come_by_portions() -> None:
    reader = ChunkReader()
    assert reader.feed(chunk(b"x") * (MAX_PARTS + 1)) == b"x" * MAX_PARTS
    assert reader.behind
    assert not reader.at_boundary
    assert reader.feed(b"") == b"x"
    assert not reader.behind


WHOLE = {
    "one": (chunk(b"hello"), b"hello"),
    "several": (chunk(b"a") + chunk(b"\r\n0\r\n\r\n") + chunk(b"c" * 1000), b"a\r\n0\r\n\r\n" + b"c" * 1000),
    "the most": (chunk(b"x") * MAX_PARTS, b"x" * MAX_PARTS),
    "more than that": (chunk(b"x") * (MAX_PARTS + 1), None),
    "nothing": (b"", None),
    "the last chunk": (b"0\r\n\r\n", None),
    "one, and the last": (chunk(b"a") + b"0\r\n\r\n", None),
    "half of one": (chunk(b"hello")[:-3], None),
    "one without its end": (chunk(b"hello")[:-2], None),
    "one with half its end": (chunk(b"hello")[:-1], None),
    "one and a half": (chunk(b"a") + b"5\r\nhe", None),
    "one and half a size": (chunk(b"a") + b"5", None),
    "begins in the midst": (b"lo\r\n" + chunk(b"a"), None),
    "an extension": (b"1;x\r\na\r\n", None),
    "too long": (b"1\r\nab\r\n", None),
    "too long, and it ends right": (b"1\r\nab\n\r\n", None),
    "far too long a size": (b"fffffffff\r\na\r\n", None),
}


@pytest.mark.parametrize(("data", "body"), WHOLE.values(), ids=WHOLE)
def test_whole_chunks(data: bytes, body: bytes | None) -> None:
    assert whole_chunks(data) == body


@given(st.lists(st.sampled_from([b"1\r\na\r\n", b"2\r\n\r\n\r\n", b"0\r\n\r\n", b"a", b"\r\n", b"3\r\n", b"0", b";"])))
def test_whole_chunks_accepts_what_the_reader_accepts_and_nothing_else(parts: list[bytes]) -> None:
    data = b"".join(parts)
    reader = ChunkReader()
    try:
        body = reader.feed(data)
    except ValueError:
        assert whole_chunks(data) is None
        return
    assert whole_chunks(data) == (body if reader.at_boundary and body else None)
