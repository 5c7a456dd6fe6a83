"""The small HTTP reader of the bench."""

from __future__ import annotations

import gzip

import pytest

from bench.http1 import Answer, Body, Malformed, headers
from tests.cuts import every_cut

GZIPPED = gzip.compress(b"0123456789")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWERS = {
    "chunks": (CHUNKED + b"3\r\nabc\r\n1;ext=1\r\n\r\r\nA\r\n0123456789\r\n0\r\n\r\n", 200, b"abc\r0123456789"),
    "no chunks": (CHUNKED + b"0\r\n\r\n", 200, b""),
    "a length": (b"HTTP/1.1 529 Over\r\nContent-Length:  4\r\n\r\nbusy", 529, b"busy"),
    "gzip": (
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b" % (len(GZIPPED), GZIPPED),
        200,
        b"0123456789",
    ),
    "length 0": (b"HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n", 400, b""),
}


@pytest.mark.parametrize(("data", "status", "body"), ANSWERS.values(), ids=ANSWERS.keys())
def test_answers(data: bytes, status: int, body: bytes) -> None:
    for pieces in every_cut(data):
        answer = Answer()
        got, read = b"", 0
        for piece in pieces:
            got += answer.feed(piece)
            read += len(piece)
            assert answer.ended == (read == len(data))
        assert (answer.status, got) == (status, body)


MALFORMED = {
    "no length": b"HTTP/1.1 200 OK\r\n\r\n",
    "a chunk without its end": CHUNKED + b"3\r\nabcd\r\n",
    "no size": CHUNKED + b"\r\nabc\r\n",
    "bytes after the chunks": CHUNKED + b"0\r\n\r\nHTTP",
    "gzip that is cut": CHUNKED[:-2]
    + b"content-encoding: gzip\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(GZIPPED) - 1, GZIPPED[:-1]),
    "no gzip": CHUNKED[:-2] + b"content-encoding: gzip\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "two gzip members": CHUNKED[:-2]
    + b"content-encoding: gzip\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (2 * len(GZIPPED), GZIPPED * 2),
    "bytes after the length": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(data: bytes) -> None:
    with pytest.raises((Malformed, ValueError)):
        Answer().feed(data)


REQUESTS = {
    "chunks": ({b"transfer-encoding": b"Chunked"}, b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
    "a length": ({b"content-length": b"3"}, b"abc", b"abc"),
    "nothing": ({}, b"", b""),
}


@pytest.mark.parametrize(("fields", "data", "body"), REQUESTS.values(), ids=REQUESTS.keys())
def test_bodies_of_requests(fields: dict[bytes, bytes], data: bytes, body: bytes) -> None:
    for pieces in every_cut(data):
        reader, got = Body(fields, b""), b""
        for piece in [b"", *pieces]:
            reader.held += piece
            got += reader.take()
        assert (reader.ended, reader.held, got) == (True, b"", body)


def test_what_follows_a_body_is_kept() -> None:
    reader = Body({b"content-length": b"3"}, b"abcGET")
    assert (reader.take(), reader.ended, reader.held) == (b"abc", True, b"GET")


def test_header_names_are_lowered_and_values_kept() -> None:
    assert headers(b"GET / HTTP/1.1\r\nHost: A:1\r\nX-Y:  Z ") == {b"host": b"A:1", b"x-y": b"Z"}
