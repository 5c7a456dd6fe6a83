"""What is learnt from an answer while it passes.

The tap sees a chunk after the client has it, never before, and nothing that happens here touches the stream. It is a
task of its own that is woken for batches: at the first chunk, then when enough bytes or enough time have gathered,
and what is left is read at the end. Between two wakings a chunk is an entry in a list.

    forward ── feed(chunk) ──► [(time, chunk), …] ── run() ──► decoder ──► SSE or JSON ──► UsageReader

If the content cannot be read (unknown coding, a line without end, a bomb), the tap gives up on this exchange's
content, says why in the row, and the stream goes on. Memory: at most `_BATCH_BYTES` waiting plus the bounds of the
parsers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from tproxy.errors import Header
from tproxy.flow.course import Course
from tproxy.protocol import headers as header
from tproxy.protocol.coding import CodingBroken, CodingOverflow, CodingUnknown, Decoder, decoder
from tproxy.protocol.sse import SSEOverflow, SSEParser
from tproxy.protocol.usage import Outcome, UsageReader

_BATCH_BYTES = 32 * 1024
_BATCH_US = 500_000
_MAX_JSON_BYTES = 16 * 1024 * 1024
_MAX_DECODED_BYTES = 64 * 1024 * 1024
_GZIP_MAGIC = b"\x1f\x8b"

log = logging.getLogger("tproxy.tap")


class Tap:
    """The reader beside one answer. Leaves `first_content_us` and `tap_fault` in the course."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._usage = UsageReader()
        self._waiting: list[tuple[int, bytes]] = []
        self._waiting_bytes = 0
        self._woken_us = 0
        self._wake = trio.Event()
        self._decoder: Decoder | None = None
        self._encoding: bytes | None = None
        self._sse: SSEParser | None = None
        self._json: list[bytes] | None = None
        self._json_bytes = 0
        self._first = True

    def begin(self, status: int, headers: Sequence[Header]) -> None:
        """Set up for an answer whose head has come.

        An event stream is always read; a JSON body only where the row wants something from it: the usage of an
        inference call, the type of an error.
        """
        media = (header.get(headers, b"content-type") or b"").split(b";")[0].strip().lower()
        if media == b"text/event-stream":
            self._sse = SSEParser()
        elif media.endswith(b"json") and (self._course.passage.inference or status >= 400):
            self._json = []
        self._encoding = header.get(headers, b"content-encoding")

    def feed(self, chunk: bytes, now_us: int) -> None:
        """Take a chunk that has been sent on. Does no work beyond remembering it."""
        if self._sse is None and self._json is None:
            return
        self._waiting.append((now_us, chunk))
        self._waiting_bytes += len(chunk)
        if self._waiting_bytes >= _BATCH_BYTES or now_us - self._woken_us >= _BATCH_US:
            self._woken_us = now_us
            self._wake.set()

    async def run(self, on_batch: Callable[[], None]) -> None:
        """Read batches as they are ready, until cancelled; call `on_batch` after each. `finish` reads the rest."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            self._read_waiting()
            on_batch()

    @property
    def outcome(self) -> Outcome:
        """What has been learnt so far."""
        return self._usage.outcome()

    def finish(self) -> Outcome:
        """Read what is left and tell what the answer came to."""
        self._read_waiting()
        if self._json is not None:
            self._guarded(self._usage.feed_json, b"".join(self._json))
        return self._usage.outcome()

    def _read_waiting(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        for now_us, chunk in waiting:
            if self._sse is None and self._json is None:
                return
            self._guarded(self._read, chunk, now_us)

    def _guarded(self, step: Callable[..., object], *args: object) -> None:
        """A failure in here is a fact about the row, never about the stream."""
        try:
            step(*args)
        except SSEOverflow as fault:
            for event in fault.events:  # those that were whole before the one that is too long
                self._usage.feed_event(event.event, event.data)
            self._give_up(str(fault))
        except (CodingUnknown, CodingBroken, CodingOverflow) as fault:
            self._give_up(str(fault))
        except Exception:
            log.exception("the tap failed; the stream goes on")
            self._give_up("a bug in the tap; the log has the traceback")

    def _give_up(self, why: str) -> None:
        self._course.tap_fault = why
        self._decoder = self._sse = self._json = None

    def _read(self, chunk: bytes, now_us: int) -> None:
        if self._first:
            self._first = False
            # Edges have been seen to compress without saying so.
            if self._encoding is None and chunk.startswith(_GZIP_MAGIC):
                self._encoding = b"gzip"
            if self._encoding is not None:
                self._decoder = decoder(self._encoding, max_output=_MAX_DECODED_BYTES)
        for piece in self._decoder.feed(chunk) if self._decoder is not None else (chunk,):
            self._read_decoded(piece, now_us)

    def _read_decoded(self, piece: bytes, now_us: int) -> None:
        if self._sse is not None:
            usage = self._usage
            for event in self._sse.feed(piece):
                usage.feed_event(event.event, event.data)
            if self._course.first_content_us is None and usage.first_content_seen:
                self._course.first_content_us = now_us
        elif self._json is not None:
            self._json_bytes += len(piece)
            if self._json_bytes > _MAX_JSON_BYTES:
                self._give_up(f"a JSON answer of more than {_MAX_JSON_BYTES} bytes")
            else:
                self._json.append(piece)
