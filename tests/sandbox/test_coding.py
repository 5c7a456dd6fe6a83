from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import pytest

from tproxy.sandbox.coding import acceptable, decoded, encoder, zstd
from tproxy.sandbox.errors import ApiError

PLAIN = b'{"model": "claude-opus-5-5"}' * 50

CODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"br": brotli.compress,
    b"zstd": zstd.compress,
    b" GZIP ": gzip.compress,
    b"identity": bytes,
}


@pytest.mark.parametrize("coding", CODERS)
def test_a_coded_request_body_is_decoded(coding: bytes) -> None:
    assert decoded(CODERS[coding](PLAIN), coding, most=10_000) == PLAIN


def test_all_members_of_a_gzip_file_count() -> None:
    assert decoded(gzip.compress(PLAIN) + gzip.compress(b"more"), b"gzip", most=10_000) == PLAIN + b"more"


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd"])
@pytest.mark.parametrize("most", [len(PLAIN), len(PLAIN) - 1])
def test_a_decoded_body_has_a_bound(coding: bytes, most: int) -> None:
    coded = CODERS[coding](PLAIN)
    if most == len(PLAIN):
        assert decoded(coded, coding, most=most) == PLAIN
        return
    with pytest.raises(ApiError) as caught:
        decoded(coded, coding, most=most)
    assert (caught.value.status, caught.value.code) == (413, "request_body_too_large_after_decoding")
    assert caught.value.content_type == b"application/json"


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd"])
@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: b"\x00" + data], ids=["short", "spoilt"])
def test_a_body_that_does_not_decode_is_refused(coding: bytes, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ApiError) as caught:
        decoded(damage(CODERS[coding](PLAIN)), coding, most=10_000)
    assert (caught.value.status, caught.value.code) == (400, "request_body_encoding_invalid")


def test_a_second_member_has_the_same_bound() -> None:
    bomb = gzip.compress(b"0" * 11) + gzip.compress(b"0" * 5_000_000)
    with pytest.raises(ApiError) as caught:
        decoded(bomb, b"gzip", most=10)
    assert caught.value.status == 413


def test_an_unknown_coding_is_refused() -> None:
    with pytest.raises(ApiError) as caught:
        decoded(PLAIN, b"snappy", most=10_000)
    assert caught.value.code == "request_body_encoding_unsupported"


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, None),
        (b"", None),
        (b"identity", None),
        (b"br, gzip", "gzip"),
        (b"gzip;q=0, br;q=0.5", "br"),
        (b"deflate, ZSTD", "zstd"),
        (b"gzip; q=0.0", None),
    ],
)
def test_what_the_client_accepts(header: bytes | None, coding: str | None) -> None:
    assert acceptable(header) == coding


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_what_is_coded_so_far_can_be_decoded(coding: str) -> None:
    unbrotli: Any = brotli.Decompressor()
    decode: Callable[[bytes], bytes] = {
        "gzip": zlib.decompressobj(wbits=31).decompress,
        "deflate": zlib.decompressobj().decompress,
        "br": unbrotli.process,
        "zstd": zstd.ZstdDecompressor().decompress,
    }[coding]
    coder = encoder(coding)
    for event in (b"one", b"two" * 1000, b"three"):
        assert decode(coder.event(event)) == event
    assert decode(coder.end()) == b""
