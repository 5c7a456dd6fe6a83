"""The ledger in one SQLite file: the loop queues, one thread writes.

    open, note, close ──► queue ──► thread: all that is queued, one transaction, one fsync ──► tickets woken at once

- The loop's side never waits and never raises. What is queued is bounded by the exchanges that run, each with one
  open and one close, and by `NOTES_MAX`.
- A bad row does not fail its batch (`rows`).
- When the file cannot be written (full, locked, I/O error, gone), opens fail, notes are dropped, and closes are kept
  in order. They are tried again, or else a write that changes nothing is, until one succeeds.
- While nothing is written, the thread looks every `LOOK_SECONDS` whether the file is still there, so that it is known
  before the next exchange asks.
- An exchange whose open failed is written whole when it is closed, so that it has its row in the end too.
- A commit that failed may yet be found in the WAL when the file is opened anew. So a retry can meet its own earlier
  success, and takes it for that.

It does not know what a row means, nor how the file is kept (`file`).
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from tproxy.errors import LedgerUnavailable
from tproxy.store import rows
from tproxy.store.base import OPEN, Closing, Opening
from tproxy.store.file import LedgerFile
from tproxy.store.migrate import LedgerUnusable

DURABLE_SECONDS = 10.0  # how long a ticket is waited for: a disk that hangs must not hold the client for ever
NOTES_MAX = 10_000  # items queued; past it, notes are dropped
LOOK_SECONDS = 1.0
BACKOFF_FIRST_SECONDS = 0.05
BACKOFF_LAST_SECONDS = 1.0

_NOT_WRITABLE = "The ledger cannot be written now."
# After these the connection is as good as before.
_HARMLESS = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)

_log = logging.getLogger(__name__)


class SqliteTicket:
    """The receipt for one open. `opening` is held until it is in the file, for the close may have to write it."""

    __slots__ = ("_ledger", "_woken", "fault", "opening", "settled")

    def __init__(self, ledger: SqliteLedger, opening: Opening | None) -> None:
        self._ledger = ledger
        self._woken: trio.Event | None = None
        self.opening = opening  # changed by the writer alone
        self.settled = False
        self.fault: str | None = None

    def settle(self, fault: str | None) -> None:
        self.fault = fault
        self.settled = True
        if self._woken is not None:
            self._woken.set()

    async def durable(self) -> None:
        """See `base.Ticket`. Waits at most `DURABLE_SECONDS`."""
        if self.settled:
            await trio.lowlevel.checkpoint()
        else:
            if self._woken is None:
                self._woken = trio.Event()
            with trio.move_on_after(DURABLE_SECONDS):
                await self._woken.wait()
        if not self.settled:
            self._ledger._stalled()
            raise LedgerUnavailable("The ledger did not answer in time.")
        if self.fault is not None:
            raise LedgerUnavailable(self.fault)


_Item = tuple[Opening | Closing, SqliteTicket]


@dataclass(slots=True)
class _Report:
    """What became of one batch, told to the loop in one call."""

    writable: bool = True
    settled: list[tuple[SqliteTicket, str | None]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class SqliteLedger:
    """A `base.Ledger` kept in an SQLite file; made by `open_ledger`.

    Every opened row must be closed, also one whose `durable()` raised: it is held in memory until then.

    Attributes:
        recovered: rows that an earlier process left open; they were closed as `lost`.
        faults: how often `on_fault` was called.
        unwritten: entries that were not written when the ledger was closed; 0 until then.
    """

    def __init__(self, inbox: queue.SimpleQueue[_Item | None], on_fault: Callable[[str], None], recovered: int) -> None:
        self.recovered = recovered
        self.faults = 0
        self.unwritten = 0
        self._inbox = inbox
        self._on_fault = on_fault
        self._writable = True
        self._running: dict[str, SqliteTicket] = {}

    @property
    def writable(self) -> bool:
        return self._writable

    def open(self, opening: Opening) -> SqliteTicket:
        ticket = SqliteTicket(self, opening)
        if opening.id in self._running:
            ticket.settle("The exchange's id is in use.")
            self._fault(f"open of {opening.id} refused: it is open already")
            return ticket
        self._running[opening.id] = ticket
        if self._writable:
            self._inbox.put((opening, ticket))
        else:
            ticket.settle(_NOT_WRITABLE)
        return ticket

    def note(self, closing: Closing) -> None:
        if closing.ended != OPEN:
            self._fault(f"note of {closing.id} refused: it says that the exchange has ended")
        elif self._writable and self._inbox.qsize() < NOTES_MAX and (ticket := self._running.get(closing.id)):
            self._inbox.put((closing, ticket))

    def close(self, closing: Closing) -> None:
        if closing.ended == OPEN:
            self._fault(f"close of {closing.id} refused: it says that the exchange runs")
        elif (ticket := self._running.pop(closing.id, None)) is None:
            self._fault(f"close of {closing.id} refused: it was closed before, or never opened")
        else:
            self._inbox.put((closing, ticket))

    def _hear(self, report: _Report) -> None:
        self._writable = report.writable
        for ticket, fault in report.settled:
            ticket.settle(fault)
        for message in report.faults:
            self._fault(message)

    def _stalled(self) -> None:
        if self._writable:
            self._writable = False  # until the writer reports a success
            self._fault(f"the ledger wrote nothing for {DURABLE_SECONDS:g} s")

    def _fault(self, message: str) -> None:
        self.faults += 1
        with suppress(Exception):  # the loop's callbacks come here too: what they raise would end the process
            self._on_fault(message)


class _Writer:
    """The thread's side. `pending` is what was taken from the queue and is not written."""

    def __init__(
        self, file: LedgerFile, inbox: queue.SimpleQueue[_Item | None], tell: Callable[[_Report], None]
    ) -> None:
        self.abandoned = threading.Event()
        self.pending: list[_Item] = []
        self._file = file
        self._inbox = inbox
        self._tell = tell

    def run(self) -> None:
        """Write until the end is queued and all closes are written, or until `abandoned` is set."""
        stopping, delay, complaint = False, 0.0, ""
        while not (stopping and not self.pending):
            if delay and self.abandoned.wait(delay):
                break
            stopping = self._take(wait=not delay) or stopping
            report = _Report()
            try:
                if self.pending or delay:
                    self._write(report)
                elif not stopping:
                    self._file.ready()
                self.pending, delay, complaint = [], 0.0, ""
            except Exception as fault:
                if isinstance(fault, sqlite3.Error) and _primary_code(fault) not in _HARMLESS:
                    self._file.drop()
                opens = [ticket for row, ticket in self.pending if isinstance(row, Opening)]
                self.pending = [item for item in self.pending if _is_close(item[0])]
                report = _Report(writable=False, settled=[(ticket, _NOT_WRITABLE) for ticket in opens])
                if str(fault) != complaint:  # once, not with every retry
                    complaint = str(fault)
                    report.faults.append(f"the ledger cannot be written: {complaint}")
                delay = min(delay * 2 or BACKOFF_FIRST_SECONDS, BACKOFF_LAST_SECONDS)
            self._tell(report)

    def _take(self, *, wait: bool) -> bool:
        """Move all that is queued to `pending`; true if the end was among it. Waits at most `LOOK_SECONDS`."""
        with suppress(queue.Empty):
            item = self._inbox.get(wait, LOOK_SECONDS)
            while item is not None:
                self.pending.append(item)
                item = self._inbox.get_nowait()
            return True
        return False

    def _write(self, report: _Report) -> None:
        """Write all that is pending in one transaction, durable on return. With nothing pending, one page."""
        connection = self._file.ready()
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not self.pending:
                connection.execute("PRAGMA user_version = 0")
            for row, ticket in self.pending:
                try:
                    self._write_row(connection, row, ticket, report)
                except rows.ROW_FAULTS as fault:
                    self._refuse_row(connection, row, ticket, fault, report)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        for ticket, _ in report.settled:
            ticket.opening = None

    def _write_row(
        self, connection: sqlite3.Connection, row: Opening | Closing, ticket: SqliteTicket, report: _Report
    ) -> None:
        if isinstance(row, Opening):
            rows.insert(connection, row)
            report.settled.append((ticket, None))
        elif row.ended == OPEN:
            rows.note(connection, row)
        elif refusal := rows.close(connection, row, ticket.opening):
            report.faults.append(f"close of {row.id} refused: {refusal}")

    def _refuse_row(
        self,
        connection: sqlite3.Connection,
        row: Opening | Closing,
        ticket: SqliteTicket,
        fault: Exception,
        report: _Report,
    ) -> None:
        """An open fails, a note is dropped; of a close, what matters most is written: that it has ended."""
        if isinstance(row, Opening):
            report.settled.append((ticket, "The exchange cannot be recorded."))
            report.faults.append(f"open of {row.id} refused: {fault}")
        elif row.ended == OPEN:
            report.faults.append(f"note of {row.id} refused: {fault}")
        else:
            report.faults.append(f"close of {row.id} written without its figures: {fault}")
            with suppress(*rows.ROW_FAULTS):
                rows.close_bare(connection, row)


def _is_close(row: Opening | Closing) -> bool:
    return isinstance(row, Closing) and row.ended != OPEN


def _primary_code(fault: sqlite3.Error) -> int:
    """SQLite's result code without its extension; 0 for an error of Python's own layer."""
    return int(getattr(fault, "sqlite_errorcode", 0)) & 0xFF


def _wall_us() -> int:
    return time.time_ns() // 1000


@asynccontextmanager
async def open_ledger(
    path: Path,
    *,
    now_us: Callable[[], int] = _wall_us,
    flush_seconds: float = 30,
    busy_seconds: float = 2,
    on_fault: Callable[[str], None] = _log.error,
) -> AsyncIterator[SqliteLedger]:
    """Open the ledger at `path`, made if it is not there, and keep it until the block ends.

    Rows that an earlier process left open are closed as `lost` first, with what was noted of them. At the end all
    that is queued is written, for at most `flush_seconds`, whatever is cancelled.

    Args:
        path: the database file; its directory must exist. `<path>.lock` is made beside it and stays.
        now_us: the wall clock.
        flush_seconds: how long the end may take.
        busy_seconds: how long a lock that another program holds on the file is waited for.
        on_fault: called on the loop with one sentence for each thing that went wrong; what it raises is ignored.

    Raises:
        LedgerUnusable: the file cannot be opened, or another process keeps it open.
    """
    file, recovered = await trio.to_thread.run_sync(_start, path, now_us(), busy_seconds)
    inbox: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
    ledger = SqliteLedger(inbox, on_fault, recovered)
    finished = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def hear(report: _Report) -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(ledger._hear, report)

    writer = _Writer(file, inbox, hear)

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
        inbox.put(None)
        ledger._running.clear()  # what comes after the end is refused
        with trio.move_on_after(flush_seconds, shield=True):
            await finished.wait()
        ledger._writable = False
        writer.abandoned.set()
        # What the writer has, and what it could not even take: the last of that is the end itself.
        ledger.unwritten = len(writer.pending) + max(inbox.qsize() - 1, 0)
        if ledger.unwritten:
            ledger._fault(f"{ledger.unwritten} entries were not written within {flush_seconds:g} s")


def _start(path: Path, now_us: int, busy_seconds: float) -> tuple[LedgerFile, int]:
    try:
        file = LedgerFile(path, now_us=now_us, busy_seconds=busy_seconds)
        try:
            return file, rows.recover(file.ready(), now_us)
        except BaseException:
            file.close()
            raise
    except (LedgerUnusable, sqlite3.Error, OSError) as fault:
        raise LedgerUnusable(f"{path}: {fault}") from fault
