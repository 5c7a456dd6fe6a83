"""Content codings both ways: answers coded event by event, request bodies decoded within a bound.

An encoder is flushed after each event, so that a client which decodes as it reads sees every event at once.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any, Protocol

import brotli

from tproxy.sandbox.errors import ApiError

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd


class Encoder(Protocol):
    """Codes what it is given so that the other side can decode all of it at once."""

    def event(self, data: bytes) -> bytes: ...

    def end(self) -> bytes: ...


class _Zlib:
    def __init__(self, window: int) -> None:
        self._coder = zlib.compressobj(wbits=window)

    def event(self, data: bytes) -> bytes:
        return self._coder.compress(data) + self._coder.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._coder.flush(zlib.Z_FINISH)


class _Brotli:
    def __init__(self) -> None:
        self._coder: Any = brotli.Compressor(quality=4)

    def event(self, data: bytes) -> bytes:
        coded: bytes = self._coder.process(data) + self._coder.flush()
        return coded

    def end(self) -> bytes:
        coded: bytes = self._coder.finish()
        return coded


class _Zstd:
    def __init__(self) -> None:
        self._coder = zstd.ZstdCompressor()

    def event(self, data: bytes) -> bytes:
        return self._coder.compress(data, zstd.ZstdCompressor.FLUSH_BLOCK)

    def end(self) -> bytes:
        return self._coder.flush(zstd.ZstdCompressor.FLUSH_FRAME)


def encoder(coding: str) -> Encoder:
    """An encoder for `gzip`, `deflate` (RFC 1950, as HTTP means it), `br` or `zstd`."""
    match coding:
        case "gzip":
            return _Zlib(31)
        case "deflate":
            return _Zlib(15)
        case "br":
            return _Brotli()
        case "zstd":
            return _Zstd()
    raise ValueError(coding)


def acceptable(accept_encoding: bytes | None) -> str | None:
    """The coding that an Accept-Encoding allows, the real host's favourites first; None: identity."""
    allowed = set()
    for item in (accept_encoding or b"").decode("latin-1").lower().split(","):
        name, _, weight = item.partition(";")
        if weight.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}:
            allowed.add(name.strip())
    return next((coding for coding in ("gzip", "br", "zstd", "deflate") if coding in allowed), None)


def decoded(body: bytes, coding: bytes | None, *, most: int) -> bytes:
    """A request body without its Content-Encoding.

    Args:
        most: the size in bytes that the decoded body may have.

    Raises:
        ApiError: 400 for a coding that is unknown or does not decode, 413 for too much.
    """
    name = (coding or b"identity").strip().lower()
    try:
        match name:
            case b"identity":
                return body
            case b"gzip":
                plain = _inflate(body, most)
            case b"br":
                unbrotli: Any = brotli.Decompressor()
                plain = unbrotli.process(body, output_buffer_limit=most + 1)
                if not unbrotli.is_finished() and len(plain) <= most:
                    raise EOFError
            case b"zstd":
                unzstd = zstd.ZstdDecompressor()
                plain = unzstd.decompress(body, most + 1)
                if not unzstd.eof and len(plain) <= most:
                    raise EOFError
            case _:
                raise ApiError(
                    400,
                    f"content-encoding: {name.decode('latin-1')!r} is not supported",
                    code="request_body_encoding_unsupported",
                )
    except (zlib.error, brotli.error, zstd.ZstdError, EOFError) as fault:
        raise ApiError(
            400, "The request body does not match its content-encoding", code="request_body_encoding_invalid"
        ) from fault
    if len(plain) > most:
        raise ApiError(413, "Decoded request body is too large", code="request_body_too_large_after_decoding")
    return plain


def _inflate(body: bytes, most: int) -> bytes:
    """All members of a gzip file, up to one byte more than `most`."""
    plain = b""
    while body and len(plain) <= most:
        member = zlib.decompressobj(wbits=31)
        plain += member.decompress(body, most + 1 - len(plain))
        if not member.eof:
            if len(plain) > most:
                break
            raise EOFError
        body = member.unused_data
    return plain
