"""Bodies out of each framing, cut in every way, beside h11's judgement."""

from __future__ import annotations

from collections.abc import Sequence

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cuts import every_cut
from tproxy.protocol.chunked import MAX_PARTS
from tproxy.wire.bodies import Body, Chunked, Sized, ToEnd


def read(body: Body, pieces: Sequence[bytes]) -> tuple[bytes, bytes, str]:
    """The body bytes, what came after them, and how it ended: whole, open or faulty."""
    got, after = b"", b""
    for piece in pieces:
        if body.ended:
            after += piece
            continue
        try:
            got += body.feed(piece)
            while body.behind:
                got += body.feed(b"")
        except ValueError:
            return got, b"", "faulty"
    return got, body.rest + after, "whole" if body.ended else "open"


def by_h11(raw: bytes) -> tuple[bytes, bytes, str]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.receive_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + raw)
    client.next_event()
    got = b""
    try:
        while isinstance(event := client.next_event(), h11.Data):
            got += event.data
    except h11.RemoteProtocolError:
        return got, b"", "faulty"
    return (
        got,
        client.trailing_data[0] if event is not h11.NEED_DATA else b"",
        ("open" if event is h11.NEED_DATA else "whole"),
    )


SIZED = {
    "whole": (5, b"hello", (b"hello", b"", "whole")),
    "short": (9, b"hello", (b"hello", b"", "open")),
    "too much": (5, b"hello, you", (b"hello", b", you", "whole")),
    "nothing": (0, b"", (b"", b"", "whole")),
    "nothing, and too much": (0, b"x", (b"", b"x", "whole")),
}


@pytest.mark.parametrize(("length", "raw", "expected"), SIZED.values(), ids=SIZED)
def test_sized(length: int, raw: bytes, expected: tuple[bytes, bytes, str]) -> None:
    for pieces in every_cut(raw):
        body = Sized(length)
        assert read(body, pieces) == expected
        assert not body.to_end
        assert not body.idle


def test_to_the_end() -> None:
    for pieces in every_cut(b"all of it"):
        body = ToEnd()
        assert read(body, pieces) == (b"all of it", b"", "open")
        assert body.to_end
        assert not body.idle


CHUNKS = {
    "plain": b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "an extension": b"3\r\nabc\r\n3;a=b\r\ndef\r\n1\r\ng\r\n0\r\n\r\n",
    "an extension of the last": b"3\r\nabc\r\n0;x\r\n\r\n",
    "trailers": b"3\r\nabc\r\n0\r\na: b\r\nc: d\r\n\r\n",
    "spaces after the size": b"3 \r\nabc\r\n0\r\n\r\n",
    "a size of many digits": b"000000000003\r\nabc\r\n0\r\n\r\n",
    "too much": b"3\r\nabc\r\n0\r\n\r\nmore",
    "too much after trailers": b"3\r\nabc\r\n0\r\na: b\r\n\r\nmore",
    "open": b"3\r\nabc\r\n5\r\nde",
    "no size": b"3\r\nabc\r\nzz\r\nde",
    "a negative size": b"3\r\nabc\r\n-1\r\nde",
    "no end after an extension": b"3\r\nabc\r\n3;x\r\nabcdef",
    "a malformed trailer": b"3\r\nabc\r\n0\r\na b\r\n\r\n",
    "longer than its size says": b"3\r\nabc\r\n3\r\nabcdef",
}


@pytest.mark.parametrize("name", CHUNKS)
def test_chunked(name: str) -> None:
    expected = by_h11(CHUNKS[name])
    for pieces in every_cut(CHUNKS[name]):
        assert read(Chunked(1000), pieces) == expected


def test_idle_between_plain_chunks_alone() -> None:
    body, idle = Chunked(1000), []
    for piece in (b"3\r\n", b"abc", b"\r\n", b"1\r\nx\r\n2", b"\r\nyz\r\n", b"1;x\r\na\r\n", b"1\r\na\r\n"):
        body.feed(piece)
        idle.append(body.idle)
    assert idle == [False, False, True, False, True, False, False]


def test_tiny_unusual_chunks_come_by_portions() -> None:
    body = Chunked(1000)
    assert body.feed(b"1;x\r\na\r\n" * (MAX_PARTS + 1)) == b"a" * MAX_PARTS
    assert body.behind
    assert body.feed(b"") == b"a"
    assert not body.behind


@pytest.mark.parametrize("endless", [b"1;" + b"x" * 1001, b"0\r\na: " + b"x" * 1001], ids=["extension", "trailer"])
def test_what_h11_holds_is_bounded(endless: bytes) -> None:
    assert read(Chunked(1000), [endless]) == (b"", b"", "faulty")


WORDS = [b"3\r\n", b"abc", b"\r\n", b"0", b"0\r\n\r\n", b";x", b"1\r\na\r\n", b"\n", b"a: b\r\n", b" ", b"zz", b"\r"]


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.integers(1, 5))
def test_chunked_as_h11(words: list[bytes], size: int) -> None:
    raw = b"".join(words)
    pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
    assert read(Chunked(10_000), [raw]) == read(Chunked(10_000), pieces) == by_h11(raw)
