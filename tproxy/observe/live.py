"""The live view: what runs now, as one snapshot a tick for all who look.

    viewers ── watching(interval) ──► run ── tick ── a slice ── checkpoint ── a slice ── … ──► Snapshot

- While nobody looks, nothing is reckoned: an exchange costs two counts.
- A tick looks at the exchanges by slices of some 200 µs and lets everybody else run between them, so that no event of a
  stream waits longer than for one slice. It rests for at least as long as it worked.
- A snapshot is made once, as the bytes that go out, whoever many look. Only the newest is kept: who reads slowly gets
  fewer, and holds up nobody.
- At most `MAX_ROWS` exchanges are shown; the others are counted, and are shown when there is room. At most
  `MAX_VIEWERS` look.

How a snapshot reaches those who look is not known here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from tproxy.errors import Header
from tproxy.flow.observer import Observer, Refused, Sight
from tproxy.flow.pulse import Pulse
from tproxy.observe.live_row import (
    CONNECTING,
    LEAST_WORK,
    STREAMING,
    WAITING_FOR_CONTENT,
    WAITING_FOR_HEAD,
    Rate,
    Watched,
)
from tproxy.observe.running import Running
from tproxy.store.base import Closing

log = logging.getLogger("tproxy.live")

MAX_ROWS: Final = 1000
MAX_VIEWERS: Final = 16
LEAST_SECONDS: Final = 0.5
MOST_SECONDS: Final = 10.0

SLICE: Final = 150  # of work, see `Watched.look`
_PIECE_BYTES: Final = 64 * 1024


class Full(Exception):
    """As many look already as may."""


class Totals(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What all exchanges come to. The four phases, tokens and money are of those that are `shown`.

    `admitted`, `ended`, `refused` and `events` count since the process began. A rate is that of the last seconds, None
    in the first snapshot after a time when nobody looked.
    """

    running: int
    shown: int
    connecting: int
    waiting_for_head: int
    waiting_for_content: int
    streaming: int
    viewers: int
    admitted: int
    ended: int
    refused: int
    events: int
    admitted_per_second: float | None
    ended_per_second: float | None
    refused_per_second: float | None
    events_per_second: float | None
    tokens_per_second: float | None
    cost_nano_per_second: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What runs at one moment.

    Args:
        number: counts snapshots since the process began.
        pieces: its JSON, `{"at_us", "totals", "exchanges"}`, on one line, in pieces of some 64 KiB.
    """

    number: int
    pieces: Sequence[bytes]


class Live(Observer):
    """Makes snapshots while somebody looks.

    Args:
        running: what runs.
        pulse: counts events.
        clock: wall-clock microseconds since the epoch.
    """

    def __init__(self, running: Running, pulse: Pulse, clock: Callable[[], int]) -> None:
        self._running = running
        self._pulse = pulse
        self._clock = clock
        self._admitted = self._ended = self._refused = 0
        self._tokens = self._cost_nano = 0  # that came while somebody looked
        self._viewers: dict[object, float] = {}  # and how often each wants to be told
        self._changed = trio.Event()  # of the viewers
        self._watched: dict[str, Watched] = {}
        self._rates = [Rate() for _ in range(6)]
        self._number = 0
        self._newest: Snapshot | None = None
        self._made = trio.Event()  # the next snapshot

    def admitted(self, sight: Sight, headers: Sequence[Header], body: bytes | None) -> None:
        self._admitted += 1
        if self._viewers and len(self._watched) < MAX_ROWS:
            self._watched[sight.opening.id] = Watched(sight, whole=True)

    def ended(self, sight: Sight, closing: Closing) -> None:
        self._ended += 1
        watched = self._watched.pop(closing.id, None) if self._watched else None
        if watched is not None:
            self._count(*watched.end(closing))

    def refused(self, refused: Refused) -> None:
        self._refused += 1

    @contextmanager
    def watching(self, seconds: float) -> Iterator[None]:
        """Have snapshots made, at least one every so many seconds while that can be done.

        Raises:
            Full: too many look already.
        """
        if len(self._viewers) >= MAX_VIEWERS:
            raise Full
        viewer = object()
        self._viewers[viewer] = seconds
        self._changed.set()
        try:
            yield
        finally:
            del self._viewers[viewer]
            self._changed.set()

    async def newer(self, than: int) -> Snapshot:
        """The newest snapshot, as soon as there is one with a higher number than `than`."""
        while self._newest is None or self._newest.number <= than:
            await self._made.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._newest

    async def run(self) -> None:
        """Make them, until cancelled."""
        while True:
            if not self._viewers:
                self._forget()
                self._changed = trio.Event()
                await self._changed.wait()
                continue  # whoever came may have left again
            begun = trio.current_time()
            try:
                await self._tick()
            except Exception:  # nobody else is to end with it
                log.exception("no snapshot could be made")
            await self._rest(begun)

    async def _tick(self) -> None:
        """Look at all, by slices, and make the snapshot of it."""
        await trio.lowlevel.checkpoint()
        self._fill_up()
        work = 0
        for watched in list(self._watched.values()):
            work += self._look(watched)
            if work >= SLICE:
                work = 0
                await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        pieces = await self._pieces()
        self._number += 1
        self._newest = Snapshot(self._number, pieces)
        made, self._made = self._made, trio.Event()
        made.set()

    async def _rest(self, begun: float) -> None:
        """Wait until the next tick is due, or nobody looks any more."""
        now = trio.current_time()
        least = 2 * now - begun
        while self._viewers and (until := max(least, begun + min(self._viewers.values()))) > trio.current_time():
            self._changed = trio.Event()
            with trio.move_on_at(until):
                await self._changed.wait()
        await trio.lowlevel.checkpoint()

    def _fill_up(self) -> None:
        """Watch those, too, that began when nobody looked, or when there was no room."""
        if len(self._running) <= len(self._watched):
            return
        for sight in self._running:
            if len(self._watched) >= MAX_ROWS:
                return
            if sight.opening.id not in self._watched:
                self._watched[sight.opening.id] = Watched(sight, whole=False)

    def _look(self, watched: Watched) -> int:
        """Look at one; returns how much work that was."""
        id, before = watched.sight.opening.id, (watched.tokens, watched.cost_nano)
        if self._watched.get(id) is not watched:
            return 0  # it has ended meanwhile
        try:
            work = watched.look(trio.current_time())
        except Exception:
            log.exception("exchange %s cannot be shown", id)
            return LEAST_WORK
        self._count(*watched.news(*before))
        return work

    def _count(self, tokens: int, cost_nano: int) -> None:
        self._tokens += tokens
        self._cost_nano += cost_nano

    async def _pieces(self) -> list[bytes]:
        shown = [watched for watched in self._watched.values() if watched.json]
        totals = msgspec.json.encode(self._totals(shown))
        pieces, piece = [], bytearray(b'{"at_us":%d,"totals":%b,"exchanges":[' % (self._clock(), totals))
        for number, row in enumerate([watched.json for watched in shown]):
            if len(piece) + len(row) > _PIECE_BYTES:
                await trio.lowlevel.checkpoint()
                pieces.append(bytes(piece))
                piece.clear()
            piece += b"," + row if number else row
        return [*pieces, bytes(piece) + b"]}"]

    def _totals(self, shown: Sequence[Watched]) -> Totals:
        at = trio.current_time()
        phases = Counter(watched.phase for watched in shown)
        counts = (self._admitted, self._ended, self._refused, self._pulse.events, self._tokens, self._cost_nano)
        rates = [rate.add(at, count) for rate, count in zip(self._rates, counts, strict=True)]
        admitted, ended, refused, events, tokens, cost = (None if rate is None else round(rate, 1) for rate in rates)
        return Totals(
            running=len(self._running),
            shown=len(shown),
            connecting=phases[CONNECTING],
            waiting_for_head=phases[WAITING_FOR_HEAD],
            waiting_for_content=phases[WAITING_FOR_CONTENT],
            streaming=phases[STREAMING],
            viewers=len(self._viewers),
            admitted=self._admitted,
            ended=self._ended,
            refused=self._refused,
            events=self._pulse.events,
            admitted_per_second=admitted,
            ended_per_second=ended,
            refused_per_second=refused,
            events_per_second=events,
            tokens_per_second=tokens,
            cost_nano_per_second=None if cost is None else round(cost),
        )

    def _forget(self) -> None:
        self._watched.clear()
        self._rates = [Rate() for _ in self._rates]
        self._newest = None
