"""The ledger in one SQLite file: the loop queues, one thread writes.

    open, note, extend, close, write ──► `inbox` ──► thread (`writer`): all that is queued, one transaction, one fsync
                                                       └──► who waits for any of it is woken, all in one call:
                                                            before the fsync for a decision, after it for all else

A batch that nobody waits for does not wake the loop.

The loop's side never waits and never raises, but for `write`. What is queued is bounded by the exchanges that run, each
with one open and one close, by those who wait for a `write`, and by `NOTES_MAX`.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary
from zoneinfo import ZoneInfo

import trio

from tproxy.errors import LedgerUnavailable
from tproxy.histogram import Histogram
from tproxy.store.base import OPEN, Claim, Closing, Opening, Refusal, Standing
from tproxy.store.batch import Told
from tproxy.store.claims import Decision
from tproxy.store.customers import Customers
from tproxy.store.inbox import Inbox
from tproxy.store.pace import Pace
from tproxy.store.start import start
from tproxy.store.ticket import NOT_WRITABLE, SqliteTicket, answer
from tproxy.store.writer import Change, Extension, Item, Outcome, Report, Writer

NOTES_MAX = 10_000  # items queued; past it, notes and extensions are dropped
REFUSED_MAX = 10_000  # how many of the refused are remembered, for those who close them without knowing

_UTC = ZoneInfo("UTC")

T = TypeVar("T")

_log = logging.getLogger(__name__)


class SqliteLedger:
    """A `base.Ledger` kept in an SQLite file; made by `open_ledger`.

    Every opened row must be closed, also one whose `durable()` raised: it is held in memory until then.

    Attributes:
        recovered: rows that an earlier process left open; they were closed as `lost`.
        faults: how often `on_fault` was called.
        overshoots: exchanges that cost more than they held of a hard budget.
        unwritten: entries that were not written when the ledger was closed; 0 until then.
        pace: how the thread keeps up.
    """

    def __init__(
        self,
        inbox: Inbox[Item],
        on_fault: Callable[[str], None],
        on_soft: Callable[[Standing], None],
        recovered: int,
        pace: Pace,
    ) -> None:
        self.recovered = recovered
        self.pace = pace
        self.faults = 0
        self.overshoots = 0
        self.unwritten = 0
        self._inbox = inbox
        self._on_fault = on_fault
        self._on_soft = on_soft
        self._writable = True
        self._said_writable = True  # the thread's own
        self._ended = False
        self._freed: WeakValueDictionary[tuple[str, str], trio.Event] = WeakValueDictionary()  # while somebody waits
        self._running: dict[str, SqliteTicket] = {}
        self._refused: dict[str, None] = {}  # the oldest first
        self._waiting: dict[Change, trio.Event] = {}

    @property
    def writable(self) -> bool:
        return self._writable and not self._ended

    @property
    def queued(self) -> int:
        """How many items wait to be written."""
        return len(self._inbox) + self.pace.taken

    @property
    def commits(self) -> Histogram:
        """How long each commit took, in microseconds."""
        return self.pace.commits

    @property
    def settlements(self) -> int:
        """Grows when there is, or may be, something new in `feed`: see `Pace`."""
        return self.pace.settlements

    @property
    def behind_us(self) -> int:
        """For how long the oldest of the items that wait has waited, in microseconds; 0 where none does."""
        if self.pace.taken:
            since = self.pace.taken_since
        elif len(self._inbox):
            since = self._inbox.since
        else:
            return 0
        return max(0, round((time.monotonic() - since) * 1_000_000))

    def freed(self, kind: str, subject: str) -> trio.Event:
        event = self._freed.get((kind, subject))
        if event is None:
            event = self._freed[kind, subject] = trio.Event()
        return event

    def open(self, opening: Opening, claims: Sequence[Claim] = ()) -> SqliteTicket:
        ticket = SqliteTicket(opening, claims, self._stalled)
        there = self._running.get(opening.id)
        if there is not None and not there.turned_away:  # which the loop may not have heard yet
            ticket.settle("The exchange's id is in use.")
            self._fault(f"open of {opening.id} refused: it is open already")
            return ticket
        self._refused.pop(opening.id, None)
        self._running[opening.id] = ticket
        if self.writable:
            self._inbox.put((opening, ticket), urgent=True)
        else:
            ticket.settle(NOT_WRITABLE)
        return ticket

    def note(self, closing: Closing) -> None:
        if closing.ended != OPEN:
            self._fault(f"note of {closing.id} refused: it says that the exchange has ended")
        elif self._writable and len(self._inbox) < NOTES_MAX and (ticket := self._running.get(closing.id)):
            self._inbox.put((closing, ticket), urgent=False)

    def extend(self, id: str, amount_nano: int, on_refused: Callable[[Refusal], None]) -> None:
        """See `base.Ledger`. May be dropped if the ledger lags, as a note is."""
        if self._writable and len(self._inbox) < NOTES_MAX and (ticket := self._running.get(id)):
            self._inbox.put((Extension(amount_nano, on_refused), ticket), urgent=True)

    def close(self, closing: Closing) -> None:
        if closing.ended == OPEN:
            self._fault(f"close of {closing.id} refused: it says that the exchange runs")
        elif (ticket := self._running.pop(closing.id, None)) is not None:
            self._inbox.put((closing, ticket), urgent=bool(self._freed))  # what it holds is waited for
        elif closing.id in self._refused:
            del self._refused[closing.id]
        else:
            self._fault(f"close of {closing.id} refused: it was closed before, or never opened")

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Run `change` on the ledger's thread, in the transaction of its next batch, and return what it returned once
        that is durable. What it raises is raised here, and all that it did is undone.

        Args:
            change: it begins and ends no transaction, and is quick: everything else waits for it.

        Raises:
            LedgerUnavailable: it could not be written, or was not in time; then it may yet be. So it may if the wait
                for it is cancelled.
        """
        if not self.writable:
            await trio.lowlevel.checkpoint()
            raise LedgerUnavailable(NOT_WRITABLE)
        queued = Change(change)
        done = self._waiting[queued] = trio.Event()
        self._inbox.put(queued, urgent=True)
        try:
            await answer(done, self._stalled)
        finally:
            queued.abandoned = True
            self._waiting.pop(queued, None)
        if queued.fault is not None:
            raise queued.fault
        value: T = queued.value
        return value

    def _decide(self, decided: Sequence[Outcome]) -> bool:
        """In the ledger's thread: tell the tickets what was decided. Returns whether the loop has to hear of it."""
        heard = False
        for ticket, outcome in decided:
            if isinstance(outcome, Decision):
                heard = ticket.decide(outcome) or heard
        return heard

    def _hear_decided(self, decided: Sequence[Outcome]) -> None:
        for ticket, _ in decided:
            ticket.wake()
            if ticket.turned_away:
                self._forget(ticket)

    def _settle(self, report: Report) -> bool:
        """In the ledger's thread: tell the tickets that they are durable, or why they are not. Returns whether the loop
        has to hear of it, or of anything else."""
        told = report.told
        heard = bool(report.changed or report.unchanged or report.not_extended)
        heard = heard or not (report.writable and self._said_writable and self._writable)
        self._said_writable = report.writable  # the loop may not have heard it yet
        heard = heard or bool(told.faults or told.overshoots or told.soft)
        # Who is not there yet has still to be refused, by a later batch: it knows of the money that came free in this.
        heard = heard or (bool(told.freed or told.freed_all) and len(self._freed) > 0)
        heard = self._decide(report.decided) or heard  # where that was not told before the commit
        for ticket, outcome in report.decided:
            heard = ticket.settle(outcome if isinstance(outcome, str) else None) or heard
        return heard

    def _hear(self, report: Report) -> None:
        self._writable = report.writable
        self._hear_decided(report.decided)
        for change in report.unchanged:
            change.fault = LedgerUnavailable(NOT_WRITABLE)
        for change in (*report.changed, *report.unchanged):
            if change in self._waiting:
                self._waiting[change].set()
        for on_refused, refusal in report.not_extended:
            try:
                on_refused(refusal)
            except Exception as fault:
                self._fault(f"who was told of a budget's end failed: {fault!r}")
        self._learn(report.told)

    def _forget(self, ticket: SqliteTicket) -> None:
        id = ticket.opening.id
        if self._running.get(id) is ticket:
            del self._running[id]
            self._refused[id] = None
            if len(self._refused) > REFUSED_MAX:
                del self._refused[next(iter(self._refused))]

    def _learn(self, told: Told) -> None:
        self.overshoots += told.overshoots
        for message in told.faults:
            self._fault(message)
        for standing in told.soft:
            with suppress(Exception):
                self._on_soft(standing)
        for subject in list(self._freed) if told.freed_all else told.freed:
            freed = self._freed.pop(subject, None)
            if freed is not None:
                freed.set()

    def _stalled(self, seconds: float) -> None:
        if self._writable:
            self._writable = False  # until the writer reports a success
            self._fault(f"the ledger wrote nothing for {seconds:g} s")

    def _fault(self, message: str) -> None:
        self.faults += 1
        with suppress(Exception):  # the loop's callbacks come here too: what they raise would end the process
            self._on_fault(message)


def _wall_us() -> int:
    return time.time_ns() // 1000


def _log_soft(standing: Standing) -> None:
    _log.warning("the budget of %s %r has passed its soft limit", standing.kind, standing.subject)


@asynccontextmanager
async def open_ledger(
    path: Path,
    *,
    now_us: Callable[[], int] = _wall_us,
    zone: Callable[[], ZoneInfo] = lambda: _UTC,
    max_customers: int = 100_000,
    flush_seconds: float = 30,
    busy_seconds: float = 2,
    on_fault: Callable[[str], None] = _log.error,
    on_soft: Callable[[Standing], None] = _log_soft,
) -> AsyncIterator[SqliteLedger]:
    """Open the ledger at `path`, made if it is not there, and keep it until the block ends.

    Rows that an earlier process left open are closed as `lost` first, with what was noted of them, and what they held
    is booked. At the end all that is queued is written, for at most `flush_seconds`, whatever is cancelled.

    Args:
        path: the database file; its directory must exist. `<path>.lock` is made beside it and stays.
        now_us: the wall clock; called in the ledger's thread.
        zone: where the days and months of budgets begin; called in the ledger's thread, for each batch.
        max_customers: how many customers there are at most before none is made any more when it is first named.
        flush_seconds: how long the end may take.
        busy_seconds: how long a lock that another program holds on the file is waited for.
        on_fault: called on the loop with one sentence for each thing that went wrong; what it raises is ignored.
        on_soft: called on the loop for each budget that has passed its soft limit; what it raises is ignored.

    Raises:
        LedgerUnusable: the file cannot be opened, or another process keeps it open.
    """
    customers = Customers(max_customers)
    file, recovered, begun_seq, told = await trio.to_thread.run_sync(
        start, path, now_us(), zone(), busy_seconds, customers
    )
    inbox: Inbox[Item] = Inbox()
    pace = Pace(settlements=recovered, begun_seq=begun_seq)
    ledger = SqliteLedger(inbox, on_fault, on_soft, recovered, pace)
    ledger._learn(told)
    finished = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def hear_decided(decided: Sequence[Outcome]) -> None:
        if ledger._decide(decided):
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(ledger._hear_decided, decided)

    def hear(report: Report) -> None:
        if ledger._settle(report):
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(ledger._hear, report)

    writer = Writer(file, inbox, hear_decided, hear, now_us=now_us, zone=zone, customers=customers, pace=pace)

    def write() -> None:
        try:
            writer.run()
        finally:
            file.close()
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(finished.set)

    threading.Thread(target=write, name="ledger", daemon=True).start()
    try:
        yield ledger
    finally:
        ledger._ended = True
        inbox.end()
        ledger._running.clear()  # what comes after the end is refused
        with trio.move_on_after(flush_seconds, shield=True):
            await finished.wait()
        ledger._writable = False
        writer.abandoned.set()
        ledger.unwritten = len(writer.pending) + len(inbox)  # what the writer has, and what it could not even take
        if ledger.unwritten:
            ledger._fault(f"{ledger.unwritten} entries were not written within {flush_seconds:g} s")
