"""What is learnt from an answer while it passes.

The tap sees a chunk after the client has it, never before, and nothing that happens here touches the stream. It is a
task of its own that reads batches: the first chunk at once, then when enough bytes or enough time have gathered. It
is woken once for a batch, and has a timer only while something waits. Between two batches a chunk is an entry in a
list. An answer that is whole before the task has begun is read at its end, without one.

    forward ── feed(chunk) ──► [(time, chunk), …] ── run() ──► decoder ──► SSE or JSON ──► UsageReader

However an answer is made, the tap holds up the other exchanges for some milliseconds at most: it reads by portions
and lets everybody else run between them. The end of an exchange waits for nobody (it may be cancelled), so `drain` is
called before it wherever there is time, and `finish` reads only what is a matter of milliseconds.

If the content cannot be read (unknown coding, a line without end, a bomb), the tap gives up on this exchange's
content, says why in the row, and the stream goes on. Memory: `_MAX_WAITING_WEIGHT` bytes and the parsers' bounds.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import trio

from tproxy.errors import Header
from tproxy.flow.course import Course
from tproxy.flow.pulse import Pulse
from tproxy.protocol import headers as header
from tproxy.protocol.coding import CodingFault, Decoder, decoder
from tproxy.protocol.sse import SSEOverflow, SSEParser
from tproxy.protocol.usage import Outcome, UsageReader

_BATCH_WEIGHT = 32 * 1024
_BATCH_SECONDS = 5.0  # for slow streams, of which there may be thousands; a fast one is read for its weight
_MAX_WAITING_WEIGHT = 4 * 1024 * 1024
_MAX_JSON_BYTES = 4 * 1024 * 1024  # a few milliseconds, for it is read at once
_MAX_DECODED_BYTES = 64 * 1024 * 1024
_GZIP_MAGIC = b"\x1f\x8b"

# Work is measured in bytes; a chunk or an event weighs as much as so many by itself.
_ITEM_WEIGHT = 128
_PORTION = 16 * 1024
_UNTIL_CHECKPOINT = 8 * 1024  # some twenty events, so that those of other streams wait for less than 100 µs
_UNTIL_FINISHED = 1024 * 1024
_JOINED = 2 * 1024
_SMALL = 32 * 1024  # what may be read at the end without letting others run

log = logging.getLogger("tproxy.tap")


def _ignore(value: int) -> None:
    """What is no stream has no gaps."""


class Tap:
    """The reader beside one answer. Leaves `first_content_us` and `tap_fault` in the course.

    Attributes:
        copy: set before the answer begins, it is called with what is read of it, decoded, portion by portion.
    """

    def __init__(self, course: Course, pulse: Pulse) -> None:
        self.copy: Callable[[bytes], None] | None = None  # gets all that is read, decoded
        self._course = course
        self._pulse = pulse
        self._arrived_us = 0  # when the chunk before the next one came
        self._usage = UsageReader()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._waiting_weight = 0
        self._waiting_for = trio.CancelScope()  # its deadline: when what waits is read
        self._decoder: Decoder | None = None
        self._encoding: bytes | None = None
        self._sse: SSEParser | None = None
        self._json: list[bytes] | None = None
        self._json_bytes = 0
        self._first = True
        self._next = -math.inf  # when the next batch may be read, on trio's clock
        self._portions: Iterator[bytes] = iter(())  # of the chunk that is being read, which came at `_portions_us`
        self._portions_us = 0

    def begin(self, status: int, headers: Sequence[Header]) -> None:
        """Set up for an answer whose head has come.

        A body is read only where the row wants something from it: the usage of an inference call, or the type of an
        error, which is JSON.
        """
        media = (header.get(headers, b"content-type") or b"").split(b";")[0].strip().lower()
        inference = self._course.passage.inference
        if media == b"text/event-stream" and inference:
            self._sse = SSEParser()
        elif media.endswith(b"json") and (inference or status >= 400):
            self._json = []
        self._encoding = header.joined(headers, b"content-encoding")

    def feed(self, chunk: bytes, now_us: int) -> None:
        """Take a chunk that has been sent on. Does no work beyond remembering it."""
        if not self._reads:
            return
        self._waiting.append((now_us, chunk))
        self._waiting_weight += len(chunk) + _ITEM_WEIGHT
        if self._waiting_weight >= _BATCH_WEIGHT:
            if self._waiting_weight > _MAX_WAITING_WEIGHT:
                self._give_up("the answer came faster than it could be read")
            else:
                self._waiting_for.cancel()
        elif len(self._waiting) == 1:
            self._waiting_for.deadline = self._next

    async def run(self, on_batch: Callable[[], None]) -> None:
        """Read batches as they are ready, until cancelled; call `on_batch` after each."""
        while True:
            # What came meanwhile counts; without any, there is no deadline.
            waits = -math.inf if self._waiting_weight >= _BATCH_WEIGHT else self._next if self._waiting else math.inf
            with trio.CancelScope(deadline=waits) as self._waiting_for:
                await trio.sleep_forever()
            if self._waiting:
                self._pulse.lag.observe(self._course.clock() - self._waiting[0][0])
            await self.drain()
            on_batch()
            self._next = trio.current_time() + _BATCH_SECONDS

    async def settled(self) -> None:
        """Read all that waits, if that may be more than `finish` should read at one go."""
        bare = self._encoding is None and not (self._waiting and self._waiting[0][1].startswith(_GZIP_MAGIC))
        if self._waiting_weight > _SMALL or not bare:
            await self.drain()

    async def drain(self) -> None:
        """Read all that waits, letting others run. Waits for nothing else; may be cancelled, and called again."""
        await trio.lowlevel.checkpoint()
        weight = 0
        while (step := self._read_portion()) is not None:
            weight += step
            if weight >= _UNTIL_CHECKPOINT:
                weight = 0
                await trio.lowlevel.checkpoint()

    @property
    def outcome(self) -> Outcome:
        """What has been learnt so far."""
        return self._usage.outcome()

    def look(self) -> Outcome:
        """Read what waits, up to `_SMALL`, and tell what is known then: for who looks on, and cannot wait."""
        weight = 0
        while weight < _SMALL and (step := self._read_portion()) is not None:
            weight += step
        return self._usage.outcome()

    def finish(self) -> Outcome:
        """Read what is left, if it is not much, and tell what the answer came to."""
        weight = 0
        while (step := self._read_portion()) is not None:
            weight += step
            if weight >= _UNTIL_FINISHED:
                self._give_up("the exchange ended before its answer had been read")
        if self._json is not None:
            body, self._json = b"".join(self._json), None
            try:
                self._usage.feed_json(body)
            except Exception:
                self._fail()
        return self._usage.outcome()

    @property
    def _reads(self) -> bool:
        return self._sse is not None or self._json is not None

    def _read_portion(self) -> int | None:
        """Read one portion of what waits. Returns its weight, or None where there is nothing to read."""
        try:
            portion = next(self._portions, None)
            if portion is not None:
                return self._read(portion)
            if self._waiting:
                self._portions = self._decoded(self._next_chunk())
                return _ITEM_WEIGHT
        except SSEOverflow as fault:
            for event in fault.events:  # those that were whole before the one that is too long
                self._usage.feed_event(event.event, event.data)
            self._give_up(str(fault))
        except CodingFault as fault:
            self._give_up(str(fault))
        except Exception:
            self._fail()
        return None

    def _next_chunk(self) -> bytes:
        """The chunk that waits longest; once it does not matter any more when each has come, several of them in one."""
        observe = self._pulse.gaps.observe if self._sse is not None else _ignore
        arrived_us, chunk = self._waiting.popleft()
        if self._arrived_us:
            observe(arrived_us - self._arrived_us)
        self._portions_us = arrived_us
        self._waiting_weight -= len(chunk) + _ITEM_WEIGHT
        if self._course.first_content_us is None or not self._waiting:
            self._arrived_us = arrived_us
            return chunk
        chunks = [chunk]
        length = len(chunk)
        while self._waiting and length < _JOINED:
            before_us = arrived_us
            arrived_us, chunk = self._waiting.popleft()
            observe(arrived_us - before_us)
            self._waiting_weight -= len(chunk) + _ITEM_WEIGHT
            length += len(chunk)
            chunks.append(chunk)
        self._arrived_us = arrived_us
        return b"".join(chunks)

    def _decoded(self, chunk: bytes) -> Iterator[bytes]:
        if self._first:
            self._first = False
            # Edges have been seen to compress without saying so.
            if self._encoding is None and chunk.startswith(_GZIP_MAGIC):
                self._encoding = b"gzip"
            if self._encoding is not None:
                self._decoder = decoder(self._encoding, max_output=_MAX_DECODED_BYTES)
        for piece in self._decoder.feed(chunk) if self._decoder is not None else (chunk,):
            for start in range(0, len(piece), _PORTION):
                yield piece[start : start + _PORTION]

    def _read(self, portion: bytes) -> int:
        weight = len(portion)
        if self.copy is not None:
            self._copy(self.copy, portion)
        if self._sse is not None:
            usage = self._usage
            events = self._sse.feed(portion)
            self._pulse.events += len(events)
            for event in events:
                usage.feed_event(event.event, event.data)
            weight += _ITEM_WEIGHT * len(events)
            if self._course.first_content_us is None and usage.first_content_seen:
                self._course.first_content_us = self._portions_us
        elif self._json is not None:
            self._json_bytes += len(portion)
            self._json.append(portion)
            if self._json_bytes > _MAX_JSON_BYTES:
                self._give_up(f"a JSON answer of more than {_MAX_JSON_BYTES} bytes")
        return weight

    def _copy(self, copy: Callable[[bytes], None], portion: bytes) -> None:
        try:
            copy(portion)
        except Exception:  # of who looks on, and no reason not to read
            self.copy = None
            log.exception("what copies an answer failed; the tap goes on")

    def _give_up(self, why: str) -> None:
        """A failure in here is a fact about the row, never about the stream."""
        self._course.tap_fault = why
        self._decoder = self._sse = self._json = None
        self._waiting.clear()
        self._waiting_weight = 0
        self._portions = iter(())

    def _fail(self) -> None:
        log.exception("the tap failed; the stream goes on")
        self._give_up("a bug in the tap; the log has the traceback")
