from __future__ import annotations

import zlib

import pytest

from tproxy.sandbox.body import Body
from tproxy.sandbox.script import Place

BODY = Body.of([(b"abc", 1), (b"", 0), (b"defgh", 2), (b"i", 4)])


def joined(body: Body) -> bytes:
    return b"".join(body.pieces)


def test_tokens_go_with_their_pieces() -> None:
    assert [BODY.delivered(pieces) for pieces in range(5)] == [0, 1, 1, 3, 7]
    assert BODY.size == 9


@pytest.mark.parametrize("size", range(1, 11))
def test_slices_hold_all_bytes_and_give_tokens_to_the_last_byte_of_their_event(size: int) -> None:
    sliced = BODY.sliced(size)
    assert joined(sliced) == b"abcdefghi"
    assert all(len(piece) == size for piece in sliced.pieces[:-1])
    for sent in range(len(sliced.pieces) + 1):
        whole = sum(worth for end, worth in ((3, 1), (8, 2), (9, 4)) if end <= min(sent * size, 9))
        assert sliced.delivered(sent) == whole


@pytest.mark.parametrize("size", range(11))
def test_up_to_a_byte(size: int) -> None:
    cut = BODY.up_to(size)
    assert joined(cut) == b"abcdefghi"[:size]
    assert cut.delivered(len(cut.pieces)) == sum(worth for end, worth in ((3, 1), (8, 2), (9, 4)) if end <= size)


def test_before_a_place() -> None:
    assert joined(BODY.before(Place(3, "events"))) == b"abcdefgh"
    assert joined(BODY.before(Place(4, "bytes"))) == b"abcd"


def test_coded_keeps_pieces_and_tokens() -> None:
    coded = BODY.coded("gzip")
    assert zlib.decompress(joined(coded), 31) == b"abcdefghi"
    assert [coded.delivered(pieces) for pieces in range(5)] == [0, 1, 1, 3, 7]


def test_coded_without_an_end_is_cut_off() -> None:
    unzip = zlib.decompressobj(wbits=31)
    assert unzip.decompress(joined(BODY.coded("gzip", ended=False))) == b"abcdefghi"
    assert not unzip.eof


def test_nothing_can_be_coded_too() -> None:
    assert zlib.decompress(joined(Body.of([]).coded("gzip")), 31) == b""


def test_spoilt_changes_the_last_byte_alone() -> None:
    assert joined(BODY.spoiled()) == b"abcdefgh" + bytes([ord("i") ^ 0xFF])
    assert joined(Body.of([]).spoiled()) == b""
    assert joined(Body.of([(b"a", 0), (b"", 0)]).spoiled()) == bytes([ord("a") ^ 0xFF])
