"""The ledger's thread: it takes all that is queued, writes it in one transaction, and tells the loop what became of it.

- A bad entry does not fail its batch (`batch`).
- When the file cannot be written (full, locked, I/O error, gone), opens and changes fail, notes and extensions are
  dropped, and closes are kept in order. They are tried again, or else a write that changes nothing is, until one
  succeeds.
- While nothing is written, it looks every `LOOK_SECONDS` whether the file is still there, so that it is known before
  the next exchange asks.
- An exchange whose open failed is written whole when it is closed, so that it has its row in the end too.
- A commit that failed may yet be found in the WAL when the file is opened anew. So a retry can meet its own earlier
  success, and takes it for that.

It does not know what waits for the outcome (`sqlite`), nor how the file is kept (`file`).
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from tproxy.store.base import OPEN, Closing, Opening, Refusal
from tproxy.store.batch import Batch, Told
from tproxy.store.claims import Decision
from tproxy.store.customers import Customers
from tproxy.store.file import LedgerFile
from tproxy.store.rows import ROW_FAULTS
from tproxy.store.ticket import SqliteTicket

LOOK_SECONDS = 1.0
BACKOFF_FIRST_SECONDS = 0.05
BACKOFF_LAST_SECONDS = 1.0

NOT_WRITABLE = "The ledger cannot be written now."
# After these the connection is as good as before.
_HARMLESS = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)
# These are a change's own; all other errors of SQLite are the file's.
_OF_A_STATEMENT = (
    0,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_MISUSE,
    sqlite3.SQLITE_RANGE,
    sqlite3.SQLITE_TOOBIG,
)


class Change:
    """What an operator changes. `abandoned`: nobody waits for it any more, so it is not begun."""

    __slots__ = ("abandoned", "fault", "run", "value")

    def __init__(self, run: Callable[[sqlite3.Connection], Any]) -> None:
        self.run = run
        self.abandoned = False
        self.value: Any = None
        self.fault: Exception | None = None


@dataclass(frozen=True, slots=True)
class Extension:
    amount_nano: int
    on_refused: Callable[[Refusal], None]


Item = tuple[Opening | Closing | Extension, SqliteTicket] | Change


@dataclass(slots=True)
class Report:
    """What became of one batch, told to the loop in one call.

    `decided` are opens, with why they could not be written or what was decided of their claims. `changed` have been
    made or have their own `fault`; `unchanged` could not be written.
    """

    writable: bool = True
    decided: list[tuple[SqliteTicket, str | Decision]] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
    unchanged: list[Change] = field(default_factory=list)
    not_extended: list[tuple[Callable[[Refusal], None], Refusal]] = field(default_factory=list)
    told: Told = field(default_factory=Told)


class Writer:
    """The thread's side. `pending` is what was taken from the queue and is not written.

    Args:
        inbox: None is its end.
        tell: called with what became of each batch.
    """

    def __init__(
        self,
        file: LedgerFile,
        inbox: queue.SimpleQueue[Item | None],
        tell: Callable[[Report], None],
        *,
        now_us: Callable[[], int],
        zone: Callable[[], ZoneInfo],
        customers: Customers,
    ) -> None:
        self.abandoned = threading.Event()
        self.pending: list[Item] = []
        self._file = file
        self._inbox = inbox
        self._tell = tell
        self._now_us = now_us
        self._zone = zone
        self._customers = customers

    def run(self) -> None:
        """Write until the end is queued and all closes are written, or until `abandoned` is set."""
        stopping, delay, complaint = False, 0.0, ""
        while not (stopping and not self.pending):
            if delay and self.abandoned.wait(delay):
                break
            stopping = self._take(wait=not delay) or stopping
            report = Report()
            try:
                if self.pending or delay:
                    report = self._write()
                    # What seemed to fail may have given something back.
                    report.told.freed_all = report.told.freed_all or delay > 0
                elif not stopping:
                    self._file.ready()
                self.pending, delay, complaint = [], 0.0, ""
            except Exception as fault:
                if isinstance(fault, sqlite3.Error) and _primary_code(fault) not in _HARMLESS:
                    self._file.drop()
                report = self._give_up()
                if str(fault) != complaint:  # once, not with every retry
                    complaint = str(fault)
                    report.told.faults.append(f"the ledger cannot be written: {complaint}")
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

    def _give_up(self) -> Report:
        """All that is pending was undone: let it fail, but for the closes."""
        report, kept = Report(writable=False), []
        for item in self.pending:
            if isinstance(item, Change):
                report.unchanged.append(item)
            elif isinstance(item[0], Opening):
                item[1].opened = item[1].refused = False
                report.decided.append((item[1], NOT_WRITABLE))
            elif isinstance(item[0], Closing) and item[0].ended != OPEN:
                kept.append(item)
        self.pending = kept  # type: ignore[assignment]
        self._customers.recount()
        return report

    def _write(self) -> Report:
        """Write all that is pending in one transaction, durable on return. With nothing pending, one page."""
        connection = self._file.ready()
        connection.execute("BEGIN IMMEDIATE")
        try:
            batch = Batch(connection, self._now_us(), self._zone(), self._customers)
            report = Report(told=batch.told)
            if not self.pending:
                connection.execute("PRAGMA user_version = 0")
            for item in self.pending:
                if isinstance(item, Change):
                    _change(batch, connection, item)
                    report.changed.append(item)
                else:
                    _enter(batch, *item, report)
            batch.finish()
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return report


def _enter(batch: Batch, entry: Opening | Closing | Extension, exchange: SqliteTicket, report: Report) -> None:
    if isinstance(entry, Opening):
        try:
            decision = batch.open(entry, exchange.claims)
        except ROW_FAULTS as fault:
            report.decided.append((exchange, "The exchange cannot be recorded."))
            report.told.faults.append(f"open of {entry.id} refused: {fault}")
        else:
            exchange.refused = decision.refusal is not None
            report.decided.append((exchange, decision))
        exchange.opened = True
    elif exchange.refused:
        pass  # whoever waited for it has left, and closes it without knowing
    elif isinstance(entry, Extension):
        refusal = batch.extend(exchange.opening.id, entry.amount_nano)
        if refusal is not None:
            report.not_extended.append((entry.on_refused, refusal))
    elif entry.ended == OPEN:
        batch.note(entry)
    else:
        batch.close(entry, exchange.opening, exchange.claims, opened=exchange.opened)


def _change(batch: Batch, connection: sqlite3.Connection, change: Change) -> None:
    if change.abandoned:
        return
    try:
        change.value = batch.change(change.run)
    except Exception as fault:
        of_the_file = isinstance(fault, sqlite3.Error) and _primary_code(fault) not in _OF_A_STATEMENT
        if of_the_file or not connection.in_transaction:
            raise
        change.fault = fault


def _primary_code(fault: sqlite3.Error) -> int:
    """SQLite's result code without its extension; 0 for an error of Python's own layer."""
    return int(getattr(fault, "sqlite_errorcode", 0)) & 0xFF
