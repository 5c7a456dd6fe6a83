"""Takes the bodies of exchanges while they run, and hands them over to be kept.

    admitted ── choice ──► held ── the tap's copy ──► ended ──► queue ──► thread: develop, put, tidy

On the loop there is nothing but references and lengths: the request body is the one that was read anyhow, the answer
a list of what the tap read. Off, which is the default, an exchange costs one comparison, and nothing is held.

Bounds: of each body HELD_PER_KEPT times `max_bytes` is held, of all together `HELD_BYTES`, in the queue `QUEUED`. What
is past a bound is not captured, and counted (`dropped`). What the file cannot take is counted too (`failed`), and said
in the log once until it can again. Nobody who is served waits for any of it.

Headers are never captured.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import trio

from tproxy.capture.choice import ERRORS, Choice, turned_off
from tproxy.capture.record import HELD_PER_KEPT, Kept, Taken, develop
from tproxy.capture.shelf import Shelf
from tproxy.errors import Header
from tproxy.flow.observer import Observer, Sight
from tproxy.protocol.redact import Redactor
from tproxy.setting_tables import Capture
from tproxy.store import base
from tproxy.store.base import Closing

HELD_BYTES = 64 << 20
QUEUED = 1000
BATCH = 50
BATCH_BYTES = 4 << 20
KEEP_SECONDS = 30.0
TIDY_SECONDS = 60.0
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

    Attributes:
        shelf: where it is kept.
        held: bytes that are held now.
        dropped: captures that were given up, for a bound.
        failed: those that could not be written.
        kept: those that were.
    """

    def __init__(self, settings: Capture, clock: Callable[[], int]) -> None:
        self.held = self.dropped = self.failed = self.kept = 0
        self._clock = clock
        self._running: dict[str, _Held] = {}
        self._queue: deque[Taken] = deque()
        self._bell = trio.Event()
        self._broken = False
        self._said_dropped = 0
        self._said_at = float("-inf")
        self._old: list[Shelf] = []
        self.shelf = Shelf(_path(settings))
        self.take(settings)

    def take(self, settings: Capture) -> None:
        """Go by other settings from now on; what is held already is kept or not as was decided."""
        self._settings = settings
        self._choice = Choice.of(settings)
        self._on = self._choice.any
        self._patterns = [re.compile(pattern) for pattern in settings.patterns]
        if _path(settings) != self.shelf.path:
            self._old.append(self.shelf)
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
        try:
            tidied = float("-inf")
            while True:
                if trio.current_time() >= tidied + TIDY_SECONDS:
                    tidied = trio.current_time()
                    await self._tidy()
                with trio.move_on_after(TIDY_SECONDS):
                    await self._bell.wait()
                self._bell = trio.Event()
                while self._queue:
                    await self._keep(self._next())
                self._say()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(LAST_SECONDS):
                while self._queue:
                    await self._keep(self._next())
                await trio.to_thread.run_sync(self.shelf.close, abandon_on_cancel=True)

    def _next(self) -> list[Taken]:
        batch, weight = [self._queue.popleft()], 0
        while self._queue and len(batch) < BATCH and (weight := weight + batch[-1].weight) < BATCH_BYTES:
            batch.append(self._queue.popleft())
        return batch

    async def _keep(self, batch: list[Taken]) -> None:
        redactor = Redactor(self._patterns)
        write = partial(_write, self.shelf, batch, redactor, self._settings.max_bytes)
        written = 0
        try:
            with (
                trio.CancelScope(shield=True),
                trio.move_on_after(KEEP_SECONDS),
            ):  # what was begun is brought to its end
                written = await trio.to_thread.run_sync(write, abandon_on_cancel=True)
                self._working()
        except (sqlite3.Error, OSError) as fault:
            self._fails(fault)
        except Exception:
            log.exception("captures were not kept: a bug")
        finally:
            self.held -= sum(each.weight for each in batch)
            self.kept += written
            self.failed += len(batch) - written

    async def _tidy(self) -> None:
        settings = self._settings
        tidy = partial(self.shelf.tidy, self._clock(), settings.retention_days, settings.max_total_bytes)
        try:
            while self._old:
                await trio.to_thread.run_sync(self._old.pop().close, abandon_on_cancel=True)
            await trio.to_thread.run_sync(tidy, abandon_on_cancel=True)
        except (sqlite3.Error, OSError) as fault:
            self._fails(fault)

    def _fails(self, fault: Exception) -> None:
        if not self._broken:
            self._broken = True
            log.error("captures cannot be kept in %s: %s", self.shelf.path, fault)

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


def _write(shelf: Shelf, batch: Sequence[Taken], redactor: Redactor, max_bytes: int) -> int:
    """In a thread: one that cannot be read for a bug of ours spoils no other."""
    rows: list[Kept] = []
    for taken in batch:
        try:
            rows.append(develop(taken, redactor, max_bytes))
        except Exception:
            log.exception("the capture of %s was not kept: a bug", taken.id)
    if rows:
        shelf.put(rows)
    return len(rows)
