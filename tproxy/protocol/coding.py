"""Content codings taken off, incrementally and in bounded memory (RFC 9110 section 8.4).

Who needs it: the tap, for its copy of an answer; and the reading of a request body that came compressed. What is
relayed is never touched.

Rules kept here:
- What a flushed block holds comes out at once: an event is readable when its bytes have arrived.
- No output is ever larger than `PIECE` at a time, and all of it together never larger than `max_output`, nor than
  `FREE_OUTPUT` and `MAX_RATIO` times the bytes that came: a bomb costs little memory and time, and is given up. Text
  and JSON shrink to a tenth, seldom to a fiftieth.
- The time is linear in input plus output. The decoders copy what is left of their input at each call, so they
  get it in slices of `SLICE`. A body of many tiny parts (gzip members, zstd frames, each with a decoder of its own)
  is given up after `MAX_PARTS`.
- A body of no bytes is whole in every coding: many senders name a coding for it.

Codings: gzip (also several members, RFC 1952 section 2.2), deflate (zlib as RFC 9110 has it, and raw as some send
it), br (RFC 7932), zstd (RFC 8878; with the window of at most 8 MiB that RFC 9659 grants).
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE = 64 * 1024
SLICE = 16 * 1024
MAX_CODINGS = 2
MAX_PARTS = 1_000
FREE_OUTPUT = 1024 * 1024
MAX_RATIO = 100


class CodingFault(Exception):
    """The body cannot be decoded. The message holds nothing of it."""


class CodingUnknown(CodingFault):
    """A coding that is not known here, or too many of them."""


class CodingBroken(CodingFault):
    """The body is corrupt, or ended before its coding did."""


class CodingOverflow(CodingFault):
    """The body decodes to more than was allowed."""


class _Identity:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> bool:
        return True


class _Gzip:
    def __init__(self) -> None:
        self._member: zlib._Decompress | None = None
        self._members = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member is None:
                data = data.lstrip(b"\0") if self._members else data  # which may pad what follows a member
                if not data:
                    return
                self._member = zlib.decompressobj(zlib.MAX_WBITS | 16)
                self._members = _counted(self._members)
            yield from _inflate(self._member, data)
            data = self._member.unused_data
            if self._member.eof:
                self._member = None

    def finish(self) -> bool:
        return self._member is None


class _Deflate:
    def __init__(self) -> None:
        self._head = b""
        self._stream: zlib._Decompress | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            data = self._head = self._head + data
            if len(data) < 2:
                return
            self._head = b""
            # A zlib header (RFC 1950 section 2.2) read as raw deflate would be a stored block with stray bits.
            is_zlib = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
        yield from _inflate(self._stream, data)
        if self._stream.unused_data:
            raise zlib.error("data after the end")

    def finish(self) -> bool:
        return self._stream.eof if self._stream is not None else not self._head


def _counted(parts: int) -> int:
    if parts == MAX_PARTS:
        raise CodingOverflow(f"the body has more than {MAX_PARTS} parts, each coded by itself")
    return parts + 1


def _inflate(stream: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    while True:
        out = stream.decompress(data, PIECE)
        data = stream.unconsumed_tail
        if out:
            yield out
        # A full piece may leave output behind that needs no more input.
        if stream.eof or (not data and len(out) < PIECE):
            return


class _Brotli:
    def __init__(self) -> None:
        self._stream = brotli.Decompressor()
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._begun = True
        while True:
            out = self._stream.process(data, output_buffer_limit=SLICE)
            data = b""
            # The limit is approximate; and with a full buffer, being able to take more does not mean that all is out.
            yield from _pieces(out, PIECE)
            if len(out) < SLICE and self._stream.can_accept_more_data():
                return

    def finish(self) -> bool:
        return not self._begun or bool(self._stream.is_finished())


class _Zstd:
    def __init__(self) -> None:
        self._frame: zstd.ZstdDecompressor | None = None
        self._frames = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._frame is None:
                self._frame = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
                self._frames = _counted(self._frames)
            while True:
                out = self._frame.decompress(data, PIECE)
                data = b""
                if out:
                    yield out
                if self._frame.eof or self._frame.needs_input or not out:
                    break
            if self._frame.eof:
                data, self._frame = self._frame.unused_data, None

    def finish(self) -> bool:
        return self._frame is None


class _Stage(Protocol):
    """One coding. `feed` takes at most `SLICE` bytes, and more than none; `finish` says whether they may end here."""

    def feed(self, data: bytes) -> Iterator[bytes]: ...

    def finish(self) -> bool: ...


_ZSTD_OPTIONS: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: 23}
_CODINGS: Mapping[bytes, Callable[[], _Stage]] = {
    b"gzip": _Gzip,
    b"x-gzip": _Gzip,
    b"deflate": _Deflate,
    b"br": _Brotli,
    b"zstd": _Zstd,
}
_FAULTS = (zlib.error, brotli.error, zstd.ZstdError)


class Decoder:
    """Takes the codings off one body; made by `decoder`. After a fault, every call raises it again."""

    __slots__ = ("_fault", "_max", "_room", "_spent", "_stages")

    def __init__(self, stages: Sequence[_Stage], max_output: int) -> None:
        self._stages = stages
        # What an outer coding holds may be larger than the body, being compressed badly; but not by much.
        self._max = [2 * max_output + PIECE for _ in stages]
        self._max[-1:] = [max_output]
        self._room = FREE_OUTPUT
        self._spent = [0 for _ in stages]
        self._fault: CodingFault | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes of the body; yield what can be decoded by now, in pieces of at most `PIECE` bytes.

        The iterator must be run to its end before the next call; nothing is decoded before its piece is asked for.

        Raises:
            CodingBroken: the body is corrupt.
            CodingOverflow: it has more than `max_output` bytes, more than its length allows, or more than `MAX_PARTS`
                parts.
        """
        if self._fault is not None:
            raise self._fault
        self._room += MAX_RATIO * len(data)
        pieces: Iterable[bytes] = _pieces(data, PIECE)
        for i in range(len(self._stages)):
            pieces = self._through(i, pieces)
        try:
            yield from pieces
        except _FAULTS:
            self._fault = CodingBroken("the body does not fit its content coding")
        except CodingFault as fault:
            self._fault = fault
        if self._fault is not None:
            raise self._fault

    def _through(self, i: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
        stage = self._stages[i]
        for piece in pieces:
            for part in _pieces(piece, SLICE):
                for out in stage.feed(part):
                    self._spent[i] += len(out)
                    if self._spent[i] > min(self._room, self._max[i]):
                        raise CodingOverflow("the body decodes to more than is allowed")
                    yield out

    def finish(self) -> None:
        """Tell that the body has ended.

        Raises:
            CodingBroken: its coding has not. All that could be decoded has been yielded.
        """
        if self._fault is None and not all(stage.finish() for stage in self._stages):
            self._fault = CodingBroken("the body ended before its content coding did")
        if self._fault is not None:
            raise self._fault


def _pieces(data: bytes, size: int) -> Iterable[bytes]:
    if len(data) <= size:
        return (data,) if data else ()
    return (data[i : i + size] for i in range(0, len(data), size))


def decoder(content_encoding: bytes | None, *, max_output: int) -> Decoder:
    """Return a decoder for a body.

    Args:
        content_encoding: the value of the Content-Encoding field, repeated fields joined by commas; None if absent.
        max_output: the most bytes that the body may decode to.

    Raises:
        CodingUnknown: a coding is not known, or there are more than `MAX_CODINGS`.
    """
    names = [name.strip(b" \t").lower() for name in (content_encoding or b"").split(b",")]
    names = [name for name in names if name not in (b"", b"identity")]
    if len(names) > MAX_CODINGS:
        raise CodingUnknown(f"more than {MAX_CODINGS} content codings")
    unknown = [name for name in names if name not in _CODINGS]
    if unknown:
        raise CodingUnknown(f"unknown content coding {unknown[0][:32].decode('ascii', 'backslashreplace')!r}")
    return Decoder([_CODINGS[name]() for name in reversed(names)] or [_Identity()], max_output)


def decode(body: bytes, content_encoding: bytes | None, max_output: int) -> bytes:
    """Return a whole body without its codings.

    Raises:
        CodingUnknown, CodingBroken, CodingOverflow: as `decoder`, `Decoder.feed` and `Decoder.finish`.
    """
    taken_off = decoder(content_encoding, max_output=max_output)
    decoded = b"".join(taken_off.feed(body))
    taken_off.finish()
    return decoded
