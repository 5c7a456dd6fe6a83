"""Takes the bodies of exchanges while they run, and hands them over to be kept.

    admitted ── choice ──► held ── the tap's copy ──► ended ──► queue ──► process: joined, redacted, written

On the loop there is nothing but references and lengths: the request body is the one that was read anyhow, the answer
a list of what the tap read. Off, which is the default, an exchange costs one comparison, and nothing is held. All
that takes time is done by a process of its own (`keeping`), which is there while something is to be kept.

Bounds: of each body HELD_PER_KEPT times `max_bytes` is held, of all together `HELD_BYTES`, in the queue `QUEUED`. What
is past a bound is not captured, and counted (`dropped`). What the process did not keep, since the file could not be
written, or it died or took more than `KEEP_SECONDS`, is counted too (`failed`), and said in the log once until it can
again. Nobody who is served waits for any of it, and the end waits for `LAST_SECONDS` in all.

Headers are never captured.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import trio

from tproxy.capture.choice import ERRORS, Choice, turned_off
from tproxy.capture.keeper import Batch, Done, Tidy
from tproxy.capture.keeping import Keeping, Lost
from tproxy.capture.record import HELD_PER_KEPT, Taken
from tproxy.capture.shelf import Shelf
from tproxy.errors import Header
from tproxy.flow.observer import Observer, Sight
from tproxy.setting_tables import Capture
from tproxy.store import base
from tproxy.store.base import Closing

HELD_BYTES = 64 << 20
QUEUED = 1000
BATCH = 50
BATCH_BYTES = 1 << 20
KEEP_SECONDS = 30
TIDY_SECONDS = 60.0
TIDY_SECONDS_OFF = 3600.0  # of what was kept before captures were turned off
LOOK_SECONDS = 5.0
LAST_SECONDS = 5.0
_SAID_SECONDS = 60.0

log = logging.getLogger("tproxy.capture")


class _Held:
    """What is held of one exchange while it runs."""

    __slots__ = ("_capturing", "answer", "answer_bytes", "request", "request_bytes", "room", "weight", "why")

    def __init__(self, capturing: Capturing, why: str, request: bytes | None, room: int) -> None:
        self._capturing = capturing
        self.why = why
        self.request = request if request is None or len(request) <= room else request[:room]
        self.request_bytes = len(request or b"")
        self.weight = len(self.request or b"")
        self.answer: list[bytes] = []
        self.answer_bytes = 0
        self.room = room

    def take(self, piece: bytes) -> None:
        """The tap's copy of the answer, piece by piece."""
        self.answer_bytes += len(piece)
        room = min(self.room, HELD_BYTES - self._capturing.held)
        if room <= 0:
            self.room = 0  # what follows a gap is not taken
            return
        piece = piece[:room]
        self.answer.append(piece)
        self.room -= len(piece)
        self.weight += len(piece)
        self._capturing.held += len(piece)


class Capturing(Observer):
    """The observer, and what keeps what it takes.

    Args:
        clock: wall-clock microseconds since the epoch.
        keeping: the process that keeps them.

    Attributes:
        shelf: where it is kept, to be read.
        held: bytes that are held now.
        dropped: captures that were given up, for a bound.
        failed: those that were not kept in the end.
        kept: those that were.
    """

    def __init__(self, settings: Capture, clock: Callable[[], int], keeping: Keeping | None = None) -> None:
        self.held = self.dropped = self.failed = self.kept = 0
        self._clock = clock
        self._running: dict[str, _Held] = {}
        self._queue: deque[Taken] = deque()
        self._bell = trio.Event()
        self._broken = False
        self._said_dropped = 0
        self._said_at = float("-inf")
        self._ending = False
        self._failed_before = 0  # the end
        self._keeping = keeping or Keeping()
        self._looking = trio.CapacityLimiter(1)
        self.take(settings)

    def take(self, settings: Capture) -> None:
        """Go by other settings from now on; what is held already is kept or not as was decided."""
        self._settings = settings
        self._choice = Choice.of(settings)
        self._on = self._choice.any
        self.shelf = Shelf(_path(settings))

    def admitted(self, sight: Sight, headers: Sequence[Header], body: bytes | None) -> None:
        """Hold the bodies of an exchange, if they may be kept."""
        if not self._on:
            return
        why = self._choice.why(sight.opening.id, sight.caller)
        if why is None or turned_off(sight.caller, headers):
            return
        room = HELD_PER_KEPT * self._settings.max_bytes
        if self.held + min(len(body or b""), room) > HELD_BYTES:
            self.dropped += 1
            return
        held = _Held(self, why, body or None, room)
        self.held += held.weight
        self._running[sight.opening.id] = held
        sight.tap.copy = held.take

    def ended(self, sight: Sight, closing: Closing) -> None:
        """Queue what is kept; let go of the rest."""
        if not self._running:
            return
        held = self._running.pop(sight.opening.id, None)
        if held is None:
            return
        sight.tap.copy = None
        nothing = held.request is None and not held.answer_bytes
        unwanted = nothing or (held.why == ERRORS and closing.ended == base.FINISHED)
        if unwanted or len(self._queue) >= QUEUED:
            self.held -= held.weight
            self.dropped += not unwanted
            return
        opening = sight.opening
        self._queue.append(
            Taken(
                id=opening.id,
                at_us=opening.accepted_us,
                caller=opening.caller,
                caller_alias=opening.caller_alias,
                model=closing.model_served or opening.model_asked,
                path=opening.path,
                status=closing.status,
                ended=closing.ended,
                error_type=closing.error_type,
                why=held.why,
                request=held.request,
                request_bytes=held.request_bytes if held.request is not None else closing.bytes_in,
                answer=held.answer if held.answer_bytes else None,
                answer_bytes=held.answer_bytes,
                answer_lost=closing.tap_fault is not None,
            )
        )
        self._bell.set()

    async def run(self) -> None:
        """Keep what is queued, and delete what is old, until cancelled; then keep what is left, for `LAST_SECONDS`."""
        self._ending = False
        work = trio.CancelScope(shield=True)  # what was begun is brought to its end, within its time
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work, work)
            try:
                await trio.sleep_forever()
            finally:
                self._ending, self._failed_before = True, self.failed
                self._bell.set()
                work.deadline = trio.current_time() + LAST_SECONDS

    async def _work(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                tidied = float("-inf")
                while True:
                    if not self._ending:
                        self._say()
                        if trio.current_time() >= tidied + (TIDY_SECONDS if self._on else TIDY_SECONDS_OFF):
                            tidied = trio.current_time()
                            await self._tidy()
                    if self._queue:
                        await self._keep(self._next())
                    elif self._ending:
                        break
                    else:
                        if not self._on:
                            await self._keeping.end()
                        with trio.move_on_after(TIDY_SECONDS):
                            await self._bell.wait()
                        self._bell = trio.Event()
                await self._keeping.end()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(LAST_SECONDS):
                await self._keeping.kill()
            if self._ending:
                while self._queue:
                    self._lose(self._next())
                if lost := self.failed - self._failed_before:
                    log.error("%d captures were lost at the end", lost)

    def _next(self) -> list[Taken]:
        batch, weight = [self._queue.popleft()], 0
        while self._queue and len(batch) < BATCH and (weight := weight + batch[-1].weight) < BATCH_BYTES:
            batch.append(self._queue.popleft())
        return batch

    async def _keep(self, taken: list[Taken]) -> None:
        done = None
        try:
            done = await self._do(taken)
        finally:
            if done is None:
                self._lose(taken)
            else:
                self._lose(taken, done.kept)
                if done.fault is None:
                    self._working()

    def _lose(self, taken: Sequence[Taken], kept: int = 0) -> None:
        """Let go of some, of which so many were kept."""
        self.held -= sum(each.weight for each in taken)
        self.kept += kept
        self.failed += len(taken) - kept

    async def _tidy(self) -> None:
        """Where there is a file. A disk that hangs takes one thread, and no more."""
        there = False
        with trio.move_on_after(LOOK_SECONDS):
            look = partial(os.path.exists, self.shelf.path)
            there = await trio.to_thread.run_sync(look, limiter=self._looking, abandon_on_cancel=True)
        if there:
            settings = self._settings
            await self._do([], Tidy(self._clock(), settings.retention_days, settings.max_total_bytes))

    async def _do(self, taken: list[Taken], tidy: Tidy | None = None) -> Done | None:
        """Have the process do it. None where nothing came of it; what went wrong is said."""
        settings = self._settings
        batch = Batch(
            path=str(self.shelf.path),
            patterns=settings.patterns,
            max_bytes=settings.max_bytes,
            seconds=KEEP_SECONDS,
            taken=taken,
            tidy=tidy,
        )
        try:
            done = await self._keeping.keep(batch)
        except Lost as fault:
            self._fails(str(fault))
            return None
        except Exception:
            log.exception("captures were not kept: a bug")
            return None
        for bug in done.bugs:
            log.error("captures were not kept: a bug: %s", bug)
        if done.fault is not None:
            self._fails(done.fault)
        return done

    def _fails(self, why: str) -> None:
        if not self._broken:
            self._broken = True
            log.error("captures cannot be kept in %s: %s", self.shelf.path, why)

    def _working(self) -> None:
        if self._broken:
            self._broken = False
            log.warning("captures can be kept again; %d were lost so far", self.failed)

    def _say(self) -> None:
        """What was dropped, once in a while."""
        now = trio.current_time()
        if self.dropped > self._said_dropped and now >= self._said_at + _SAID_SECONDS:
            log.warning("%d captures were dropped: more came than can be held", self.dropped - self._said_dropped)
            self._said_dropped, self._said_at = self.dropped, now


def _path(settings: Capture) -> Path:
    return Path(settings.database.removeprefix("sqlite:"))
