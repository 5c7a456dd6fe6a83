"""All sinks of the settings, fed from the ledger after settlement. No exchange waits for any of it, or knows of it.

    ledger.settlements ──► once a second, if it has grown: newest ──► runners (`runner.py`), one for each sink
    the ledger's file  ──► Reader, in a thread ──► the last batch, shared by sinks at the same place ──► runners
    runners ──► ledger.write: their cursors

- A sink that is new in the settings begins with what ends after that: earlier exchanges are not sent. One that was
  taken out and is put in again goes on from where it was, as far as retention has left that.
- Where settings change, the sinks concerned are closed and made anew; cursors stay, and the others notice nothing.
- Without sinks nothing is opened and nothing runs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol, TypeVar

import structlog
import trio

from tproxy.export.runner import Runner, SinkStatus
from tproxy.export.sink import BATCH, Sink
from tproxy.settings import Settings
from tproxy.store import feed
from tproxy.store.feed import Reader, Settled
from tproxy.store.migrate import LedgerUnusable
from tproxy.store.sqlite import SqliteLedger

LOOK_SECONDS: Final = 1.0
TEXT_MAX: Final = 8 << 20  # characters that clients chose, in a batch; past it, it is not filled up

_PAGE: Final = 100  # exchanges between two looks at that

# Loaded where the settings name them.
_KINDS: Final = {
    "jsonl": ("tproxy.export.jsonl", "JsonlSink"),
    "webhook": ("tproxy.export.webhook", "WebhookSink"),
    "otlp": ("tproxy.export.otlp", "OtlpSink"),
    "s3": ("tproxy.export.s3", "S3Sink"),
}

T = TypeVar("T")

log = structlog.get_logger("tproxy.export")


class Plan(Protocol):
    """How to make a sink. Equal plans make sinks that do the same."""

    def __call__(self) -> Sink: ...


@dataclass(frozen=True, slots=True)
class Planned:
    """A sink of one kind with one table of settings."""

    kind: str
    table: object

    def __call__(self) -> Sink:
        """Make it. What it needs is imported here."""
        module, name = _KINDS[self.kind]
        sink: Sink = getattr(import_module(module), name)(self.table)
        return sink


def by_settings(settings: Settings) -> dict[str, Plan]:
    """The sinks that the settings name, by their names."""
    export = settings.export
    said = {
        "jsonl": export.jsonl.directory,
        "webhook": export.webhook.url,
        "otlp": export.otlp.endpoint,
        "s3": export.s3.bucket,
    }
    return {kind: Planned(kind, getattr(export, kind)) for kind, where in said.items() if where is not None}


class Exports:
    """Runs the sinks of the newest settings.

    Args:
        database: the ledger's file.
        ledger: where cursors are kept, and what tells that exchanges have ended.
        clock: microseconds since the epoch.
        plans: the sinks that settings name.
        chance: where the jitter of back-offs comes from, 0 to 1.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: SqliteLedger,
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
        plans: Callable[[Settings], Mapping[str, Plan]] = by_settings,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._plans = plans
        self._wanted = plans(settings)
        self._chance = chance
        self._source = _Source(settings.database_path, ledger, clock)
        self._ledger = ledger
        self._running: dict[str, tuple[Plan, Runner]] = {}
        self._changed = trio.Event()

    def take(self, settings: Settings) -> None:
        """Go by other settings from now on."""
        self._wanted = self._plans(settings)
        self._changed.set()

    def status(self) -> list[SinkStatus]:
        """How each sink does, by name; without those that have not begun."""
        return [runner.status for _, runner in self._running.values()]

    def position(self) -> int | None:
        """All sinks have taken all exchanges up to this number, and the ledger knows it; None: there is no sink."""
        if not self._wanted:
            return None
        if self._running.keys() != self._wanted.keys():  # some have not begun
            return 0
        return max(min(runner.kept for _, runner in self._running.values()), 0)

    async def run(self) -> None:
        """Until cancelled. Then each sink has two seconds to take what is there. It may be run again."""
        try:
            async with trio.open_nursery() as nursery:
                started = False
                while True:
                    self._changed = trio.Event()
                    wanted = dict(self._wanted)
                    for name, (plan, runner) in list(self._running.items()):
                        if wanted.get(name) != plan:
                            await runner.stop()
                            del self._running[name]
                    if wanted and not started:
                        nursery.start_soon(self._source.watch)
                        started = True
                    if wanted.keys() - self._running.keys() and not await self._begin(wanted, nursery):
                        with trio.move_on_after(LOOK_SECONDS):
                            await self._changed.wait()
                        continue
                    await self._changed.wait()
        finally:
            self._running.clear()
            self._source.close()

    async def _begin(self, wanted: Mapping[str, Plan], nursery: trio.Nursery) -> bool:
        """Start what is wanted and does not run. Returns False if the ledger could not be read."""
        try:
            cursors, start = await self._source.begin()
        except LedgerUnusable as fault:
            log.warning("exports wait for the ledger", why=str(fault))
            return False
        for name, plan in wanted.items():
            if name not in self._running:
                seq, last_us = cursors.get(name, (start, None))
                runner = Runner(plan(), self._source, seq, kept=name in cursors, last_us=last_us, chance=self._chance)
                self._running[name] = plan, runner
                nursery.start_soon(runner.run)
        return True


class _Source:
    """A `runner.Source`: one reader for all, which one thread at a time uses."""

    def __init__(self, path: Path, ledger: SqliteLedger, clock: Callable[[], int]) -> None:
        self.newest = 0
        self.now_us = clock
        self._path = path
        self._ledger = ledger
        self._reader: Reader | None = None
        self._turn = trio.Lock()
        self._grown = trio.Event()
        self._last: tuple[int, float, Sequence[Settled]] = (-1, 0.0, ())  # after which number, when, what
        self._begun = False

    async def begin(self) -> tuple[dict[str, tuple[int, int]], int]:
        """The cursors, and where a sink begins that has none: what ends in this process is sent at its start, what has
        ended before a reload is not.

        Raises:
            LedgerUnusable: the file cannot be read.
        """
        cursors = await self._ask(Reader.cursors)
        newest = await self._ask(Reader.newest)
        start = newest if self._begun else self._ledger.pace.begun_seq
        self._begun = True
        self._see(newest)
        return cursors, start

    async def watch(self) -> None:
        """Look once a second whether more exchanges have ended."""
        seen = -1
        while True:
            settlements = self._ledger.settlements
            if settlements != seen:
                try:
                    self._see(await self._ask(Reader.newest))
                    seen = settlements
                except LedgerUnusable:
                    pass  # whoever reads says so
            await trio.sleep(LOOK_SECONDS)

    async def grown(self) -> None:
        await self._grown.wait()

    async def look(self) -> None:
        # In the ledger's thread, behind all that is queued there.
        self._see(await self._ledger.write(feed.newest))

    async def after(self, seq: int, limit: int) -> Sequence[Settled]:
        async with self._turn:
            start, at, found = self._last
            fresh = start == seq and trio.current_time() - at < LOOK_SECONDS
            if fresh and (len(found) >= limit or len(found) < BATCH):
                return found[:limit]
            found = await self._read(partial(_batch, seq=seq, limit=limit))
            if limit == BATCH:  # what most ask for; a larger one is not held for others
                self._last = seq, trio.current_time(), found
            return found

    async def keep(self, sink: str, seq: int) -> None:
        await self._ledger.write(lambda connection: feed.set_cursor(connection, sink, seq, self.now_us()))

    def close(self) -> None:
        self._last = (-1, 0.0, ())
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _see(self, newest: int) -> None:
        if newest > self.newest:
            self.newest = newest
            self._grown.set()
            self._grown = trio.Event()

    async def _ask(self, question: Callable[[Reader], T]) -> T:
        async with self._turn:
            return await self._read(question)

    async def _read(self, question: Callable[[Reader], T]) -> T:
        def read() -> T:
            if self._reader is None:
                self._reader = Reader(self._path)
            return question(self._reader)

        return await trio.to_thread.run_sync(read)


def _batch(reader: Reader, seq: int, limit: int) -> list[Settled]:
    """The first that come after `seq`: at least one, if there are any. A row has up to 16 KiB of path and as much of
    tags."""
    found: list[Settled] = []
    size = 0
    while len(found) < limit and size < TEXT_MAX:
        asked = min(_PAGE, limit - len(found))
        page = reader.after(found[-1].seq if found else seq, asked)
        found += page
        size += sum(len(one.opening.path) + sum(map(len, one.opening.tags)) for one in page)
        if len(page) < asked:
            break
    return found
