from __future__ import annotations

import gzip
import random
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterable

import brotli
import pytest

from tests.cuts import every_cut
from tproxy.protocol.coding import (
    FREE_OUTPUT,
    MAX_CODINGS,
    MAX_PARTS,
    MAX_RATIO,
    PIECE,
    CodingBroken,
    CodingFault,
    CodingOverflow,
    CodingUnknown,
    Decoder,
    decode,
    decoder,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ROOMY = 1 << 30


def raw_deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


def br(data: bytes) -> bytes:
    return bytes(brotli.compress(data, quality=1))


CODERS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "identity": (b"identity", bytes),
    "gzip": (b"gzip", gzip.compress),
    "zlib": (b"deflate", zlib.compress),
    "raw deflate": (b"deflate", raw_deflate),
    "br": (b"br", br),
    "zstd": (b"zstd", zstd.compress),
}
CODED = {name: row for name, row in CODERS.items() if name != "identity"}
coders = pytest.mark.parametrize(("coding", "code"), CODERS.values(), ids=CODERS)
coded = pytest.mark.parametrize(("coding", "code"), CODED.values(), ids=CODED)

TEXT = b'{"model":"claude-sonnet-4-5","stream":true,"messages":[{"role":"user","content":"h\xc3\xa9llo"}]}'
BODIES = {
    "empty": b"",
    "one byte": b"{",
    "text": TEXT,
    "noise": random.Random(1).randbytes(500),
}


def drain(taken_off: Decoder, pieces: Iterable[bytes]) -> bytes:
    """All that comes out, whole only if it may end here."""
    out = b"".join(part for piece in pieces for part in taken_off.feed(piece))
    taken_off.finish()
    return out


@coders
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bodies_at_any_cuts(coding: bytes, code: Callable[[bytes], bytes], body: bytes) -> None:
    for pieces in every_cut(code(body)):
        assert drain(decoder(coding, max_output=len(body)), pieces) == body


@coders
@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 7, 1_000_000])
@pytest.mark.parametrize("content", ["even", "noise"])
def test_large_bodies(coding: bytes, code: Callable[[bytes], bytes], size: int, content: str) -> None:
    body = b"a" * size if content == "even" else random.Random(size).randbytes(size)
    parts = list(decoder(coding, max_output=size).feed(code(body)))
    assert b"".join(parts) == body
    assert all(0 < len(part) <= PIECE for part in parts)
    assert decode(code(body), coding, size) == body


def flushing(coding: bytes) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    """How a streaming upstream codes: a block flushed for each event, and the end."""
    if coding == b"br":
        brotli_coder = brotli.Compressor()
        return lambda data: brotli_coder.process(data) + brotli_coder.flush(), brotli_coder.finish
    if coding == b"zstd":
        zstd_coder = zstd.ZstdCompressor()
        return lambda data: zstd_coder.compress(data) + zstd_coder.flush(zstd_coder.FLUSH_BLOCK), zstd_coder.flush
    coder = zlib.compressobj(wbits={b"gzip": 31, b"deflate": 15}[coding])
    return lambda data: coder.compress(data) + coder.flush(zlib.Z_SYNC_FLUSH), coder.flush


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd", b"gzip, br", b"zstd, deflate"])
@pytest.mark.parametrize("sizes", [[1, 80, 80, 1000, 3], [PIECE, 2 * PIECE, 1], [200_000, 1, 200_000]])
def test_a_flushed_block_comes_out_at_once(coding: bytes, sizes: list[int]) -> None:
    coders = [flushing(each) for each in coding.split(b", ")]
    taken_off = decoder(coding, max_output=ROOMY)
    for number, size in enumerate(sizes):
        event = bytes([97 + number]) * size
        sent = event
        for flushed, _ in coders:
            sent = flushed(sent)
        assert b"".join(taken_off.feed(sent)) == event
    with pytest.raises(CodingBroken, match="ended before"):
        taken_off.finish()


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd"])
def test_a_stream_ends(coding: bytes) -> None:
    flushed, end = flushing(coding)
    taken_off = decoder(coding, max_output=ROOMY)
    assert b"".join(taken_off.feed(flushed(TEXT))) == TEXT
    assert b"".join(taken_off.feed(end())) == b""
    taken_off.finish()


MULTIPLE = {
    "gzip members": (b"gzip", gzip.compress(b"one,") + gzip.compress(b"") + gzip.compress(b"two")),
    "padded gzip members": (b"gzip", gzip.compress(b"one,") + b"\0\0\0" + gzip.compress(b"two") + b"\0" * 9),
    "zstd frames": (b"zstd", zstd.compress(b"one,") + zstd.compress(b"") + zstd.compress(b"two")),
    "skippable zstd frames": (
        b"zstd",
        b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zstd.compress(b"one,two") + b"\x5f\x2a\x4d\x18\0\0\0\0",
    ),
}


@pytest.mark.parametrize(("coding", "body"), MULTIPLE.values(), ids=MULTIPLE)
def test_several_parts(coding: bytes, body: bytes) -> None:
    for pieces in every_cut(body):
        assert drain(decoder(coding, max_output=7), pieces) == b"one,two"


@pytest.mark.parametrize(
    "content_encoding",
    [b"gzip, br", b"GZIP,BR", b" gzip ,\tbr ", b",gzip,,br,", b"identity, gzip, identity, br", b"x-gzip, br"],
)
def test_lists_are_taken_off_in_reverse(content_encoding: bytes) -> None:
    body = br(gzip.compress(TEXT))
    for pieces in every_cut(body):
        assert drain(decoder(content_encoding, max_output=len(TEXT)), pieces) == TEXT


@pytest.mark.parametrize("content_encoding", [None, b"", b" ", b",", b"identity", b"Identity, identity"])
def test_no_coding(content_encoding: bytes | None) -> None:
    for pieces in every_cut(TEXT):
        assert drain(decoder(content_encoding, max_output=len(TEXT)), pieces) == TEXT


@pytest.mark.parametrize(
    "content_encoding",
    [
        b"compress",
        b"gzip, foo",
        b"gzip;q=1",
        b"gzip br",
        b"br\xff",
        b"aes128gcm",
        b"*",
        b", ".join([b"gzip"] * (MAX_CODINGS + 1)),
    ],
)
def test_unknown_codings(content_encoding: bytes) -> None:
    with pytest.raises(CodingUnknown):
        decoder(content_encoding, max_output=1)
    with pytest.raises(CodingUnknown):
        decode(b"", content_encoding, 1)


@pytest.mark.parametrize("content_encoding", [b"gzip", b"deflate", b"br", b"zstd", b"gzip, br"])
def test_a_body_of_no_bytes_is_whole(content_encoding: bytes) -> None:
    taken_off = decoder(content_encoding, max_output=0)
    assert list(taken_off.feed(b"")) == []
    taken_off.finish()


@coded
def test_a_body_cut_short_is_broken(coding: bytes, code: Callable[[bytes], bytes]) -> None:
    body = code(TEXT)
    for length in range(1, len(body)):
        taken_off = decoder(coding, max_output=len(TEXT))
        got = b"".join(taken_off.feed(body[:length]))
        assert TEXT.startswith(got)
        for _ in range(2):
            with pytest.raises(CodingBroken):
                taken_off.finish()
        with pytest.raises(CodingBroken):
            next(taken_off.feed(body[length:]))


CORRUPT = {
    "gzip, not": (b"gzip", TEXT),
    "gzip, checksum": (b"gzip", gzip.compress(TEXT)[:-8] + b"\0" * 8),
    "gzip, followed by text": (b"gzip", gzip.compress(TEXT) + TEXT),
    "gzip, zeros first": (b"gzip", b"\0" + gzip.compress(TEXT)),
    "gzip, as deflate": (b"deflate", gzip.compress(TEXT)),
    "deflate, not": (b"deflate", b"\xff" + TEXT),
    "deflate, checksum": (b"deflate", zlib.compress(TEXT)[:-4] + b"\0" * 4),
    "deflate, followed by text": (b"deflate", zlib.compress(TEXT) + TEXT),
    "raw deflate, followed by text": (b"deflate", raw_deflate(TEXT) + TEXT),
    "br, not": (b"br", b"\xff" + TEXT),
    "br, followed by text": (b"br", br(TEXT) + TEXT),
    "zstd, not": (b"zstd", TEXT),
    "zstd, followed by text": (b"zstd", zstd.compress(TEXT) + TEXT),
    "inner": (b"gzip, br", br(TEXT)),
    "outer": (b"gzip, br", gzip.compress(TEXT)),
}


@pytest.mark.parametrize(("coding", "body"), CORRUPT.values(), ids=CORRUPT)
def test_corrupt_bodies(coding: bytes, body: bytes) -> None:
    for pieces in every_cut(body):
        taken_off = decoder(coding, max_output=ROOMY)
        with pytest.raises(CodingBroken) as caught:
            drain(taken_off, pieces)
        assert caught.value.__context__ is None  # which could show bytes of the body
        with pytest.raises(CodingBroken):
            next(taken_off.feed(b"x"))
        with pytest.raises(CodingBroken):
            taken_off.finish()


@coders
def test_one_byte_too_many(coding: bytes, code: Callable[[bytes], bytes]) -> None:
    for pieces in every_cut(code(TEXT)):
        taken_off = decoder(coding, max_output=len(TEXT) - 1)
        with pytest.raises(CodingOverflow):
            drain(taken_off, pieces)
        with pytest.raises(CodingOverflow):
            taken_off.finish()
    with pytest.raises(CodingOverflow):
        decode(code(TEXT), coding, len(TEXT) - 1)


BOMBS = {
    **{name: (coding, code(b"\0" * 50_000_000)) for name, (coding, code) in CODED.items()},
    "in layers": (b"gzip, zstd", zstd.compress(gzip.compress(b"\0" * 50_000_000))),
    "in the outer layer": (b"gzip, zstd", zstd.compress(gzip.compress(b"{}") + b"\0" * 50_000_000)),
}


@pytest.mark.parametrize(("coding", "bomb"), BOMBS.values(), ids=BOMBS)
def test_bombs_never_materialise(coding: bytes, bomb: bytes) -> None:
    sizes: list[int] = []

    def explode() -> None:
        for part in decoder(coding, max_output=1_000_000).feed(bomb):
            sizes.append(len(part))

    tracemalloc.start()
    try:
        with pytest.raises(CodingOverflow):
            explode()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) <= 1_000_000
    assert max(sizes, default=0) <= PIECE
    assert peak < 20 * PIECE


@pytest.mark.parametrize(("coding", "bomb"), BOMBS.values(), ids=BOMBS)
def test_what_few_bytes_decode_to_is_bounded_by_their_number(coding: bytes, bomb: bytes) -> None:
    got = 0
    taken_off = decoder(coding, max_output=ROOMY)

    def explode() -> None:
        nonlocal got
        for start in range(0, len(bomb), 1000):
            for part in taken_off.feed(bomb[start : start + 1000]):
                got += len(part)
                assert got <= FREE_OUTPUT + MAX_RATIO * (start + 1000)

    with pytest.raises(CodingOverflow):
        explode()


def test_what_shrinks_well_is_no_bomb() -> None:
    text = b"".join(b'data: {"delta":{"text":"%d"}}\n\n' % number for number in range(100_000))
    assert len(text) > 2 * FREE_OUTPUT
    for coding, code in CODED.values():
        for size in (1000, ROOMY):
            body = code(text)
            assert (
                drain(decoder(coding, max_output=ROOMY), [body[i : i + size] for i in range(0, len(body), size)])
                == text
            )


def test_nothing_is_decoded_before_it_is_asked_for() -> None:
    parts = decoder(b"gzip", max_output=ROOMY).feed(gzip.compress(b"\0" * 50_000_000))
    assert len(next(parts)) == PIECE


@pytest.mark.parametrize(("coding", "part"), [(b"gzip", gzip.compress(b"")), (b"zstd", zstd.compress(b""))])
def test_many_tiny_parts_are_given_up(coding: bytes, part: bytes) -> None:
    assert decode(part * MAX_PARTS, coding, 1) == b""
    with pytest.raises(CodingOverflow, match="parts"):
        decode(part * (MAX_PARTS + 1), coding, 1)


def test_a_zstd_window_is_bounded() -> None:
    def windowed(log: int) -> bytes:
        coder = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: log})
        return coder.compress(TEXT) + coder.flush()

    assert decode(windowed(23), b"zstd", len(TEXT)) == TEXT
    with pytest.raises(CodingBroken):
        decode(windowed(24), b"zstd", len(TEXT))


def test_a_badly_compressed_outer_layer_has_room() -> None:
    assert decode(gzip.compress(gzip.compress(b"{}")), b"gzip, gzip", 2) == b"{}"


def test_faults_are_one_family() -> None:
    for fault in (CodingUnknown, CodingBroken, CodingOverflow):
        assert issubclass(fault, CodingFault)
