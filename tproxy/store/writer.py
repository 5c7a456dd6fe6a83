"""The ledger's thread: it takes all that is queued, writes it in one transaction, and tells the loop what became of it.

- A bad entry does not fail its batch: all are written together at first, which costs less, and if one of them fails,
  all over again and apart (`batch`). Changes, which are made once, are always written apart.
- What nobody waits for may linger for `LINGER_SECONDS` (`inbox`). An exchange whose close lingers still runs, as far as
  the file knows: if the process is killed then, its row ends as `lost`.
- What is decided of claims is told as soon as nothing but the commit can fail, so that nobody waits for the disk to be
  let in; after the commit it is told that it is durable. Two are let in after the commit: who holds something HARD, for
  such a budget is not passed though the process be killed in between; and whoever is in one batch with an operator's
  change, for a limit that was raised and is undone must have let in nobody.
- It rests after a batch of more than `FEW_ENTRIES` as long as that took, `REST_SECONDS_MAX` at most, and writes what
  came meanwhile with one commit: commits are most of what an exchange costs. So under load an opening waits a moment
  more, and else not at all.
- When the file cannot be written (full, locked, I/O error, gone), opens and changes fail, notes and extensions are
  dropped, and closes are kept in order. They are tried again, or else a write that changes nothing is, until one
  succeeds.
- What was told stands though its commit fails. An open that was let in is kept in order too: the upstream may have been
  asked, so it holds its money before anybody else is let in, and until its close. One that was refused is over.
- While nothing is written, it looks every `LOOK_SECONDS` whether the file is still there, so that it is known before
  the next exchange asks.
- An exchange whose open failed is written whole when it is closed, so that it has its row in the end too.
- A commit that failed may yet be found in the WAL when the file is opened anew. So a retry can meet its own earlier
  success, and takes it for that.

It does not know what waits for the outcome (`sqlite`), nor how the file is kept (`file`).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from tproxy.store.base import HARD, OPEN, Closing, Opening, Refusal
from tproxy.store.batch import Batch, Told
from tproxy.store.budgets import Budgets
from tproxy.store.claims import Decision
from tproxy.store.customers import Customers
from tproxy.store.file import LedgerFile
from tproxy.store.inbox import Inbox
from tproxy.store.journal import Journal
from tproxy.store.pace import Pace
from tproxy.store.rows import ROW_FAULTS
from tproxy.store.ticket import NOT_WRITABLE, SqliteTicket

LOOK_SECONDS = 1.0
LINGER_SECONDS = 0.01
REST_SECONDS_MAX = 0.005
FEW_ENTRIES = 4
BACKOFF_FIRST_SECONDS = 0.05
BACKOFF_LAST_SECONDS = 1.0

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
Outcome = tuple[SqliteTicket, str | Decision]


@dataclass(slots=True)
class Report:
    """What became of one batch.

    `decided` are opens, with why they could not be written or what was decided of their claims. `changed` have been
    made or have their own `fault`; `unchanged` could not be written. `settled` counts the rows that ended.
    """

    writable: bool = True
    settled: int = 0
    decided: list[Outcome] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
    unchanged: list[Change] = field(default_factory=list)
    not_extended: list[tuple[Callable[[Refusal], None], Refusal]] = field(default_factory=list)
    told: Told = field(default_factory=Told)


class Writer:
    """The thread's side. `pending` is what was taken from the queue and is not written.

    Args:
        tell_decided: called in this thread with what was decided of the opens of a batch, before its commit.
        tell: called in this thread with what became of each batch.
        pace: told how it goes.
    """

    def __init__(
        self,
        file: LedgerFile,
        inbox: Inbox[Item],
        tell_decided: Callable[[Sequence[Outcome]], None],
        tell: Callable[[Report], None],
        *,
        now_us: Callable[[], int],
        zone: Callable[[], ZoneInfo],
        customers: Customers,
        pace: Pace,
    ) -> None:
        self.abandoned = threading.Event()
        self.pending: list[Item] = []
        self._file = file
        self._inbox = inbox
        self._tell_decided = tell_decided
        self._tell = tell
        self._now_us = now_us
        self._zone = zone
        self._customers = customers
        self._budgets = Budgets()
        self._journal = Journal()
        self._pace = pace

    def run(self) -> None:
        """Write until the end is queued and all closes are written, or until `abandoned` is set."""
        stopping, delay, complaint, ready_at = False, 0.0, "", 0.0
        while not (stopping and not self.pending):
            if delay and self.abandoned.wait(delay):
                break
            wait, linger = (0.0, 0.0) if delay else (LOOK_SECONDS, LINGER_SECONDS)
            items, stopping = self._inbox.take(ready_at, wait, linger)
            begun = time.monotonic()
            if items and not self.pending:
                self._pace.taken_since = self._inbox.taken_since
            self.pending += items
            self._pace.taken = len(self.pending)
            many = len(self.pending) > FEW_ENTRIES
            report = Report()
            try:
                if self.pending or delay:
                    report = self._write()
                    # What seemed to fail may have given something back, or ended.
                    report.told.freed_all = report.told.freed_all or delay > 0
                    self._pace.settlements += delay > 0
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
            self._pace.taken = len(self.pending)
            self._tell(report)
            ended = time.monotonic()
            ready_at = ended + (min(ended - begun, REST_SECONDS_MAX) if many else 0)

    def _give_up(self) -> Report:
        """All that is pending was undone: let it fail, but for the closes and those that were let in."""
        report, kept = Report(writable=False), []
        for item in self.pending:
            if isinstance(item, Change):
                report.unchanged.append(item)
            elif isinstance(item[0], Opening):
                ticket = item[1]
                ticket.opened, ticket.refused = False, ticket.turned_away
                report.decided.append((ticket, NOT_WRITABLE))
                if ticket.decision is not None and not ticket.refused:
                    kept.append(item)
            elif isinstance(item[0], Closing) and item[0].ended != OPEN:
                kept.append(item)
        self.pending = kept  # type: ignore[assignment]
        return report

    def _write(self) -> Report:
        """Write all that is pending in one transaction, durable on return; with nothing pending, one page."""
        connection = self._file.ready()
        changes = any(isinstance(item, Change) for item in self.pending)
        report: Report | None = None
        if not changes:
            with suppress(*ROW_FAULTS):  # one of them failed, and nothing was written or told
                report = self._transact(connection, apart=False)
        if report is None:
            report = self._transact(connection, apart=True)
        with self._undone(connection):
            early = [] if changes else [outcome for outcome in report.decided if _is_told_early(*outcome)]
            if early:
                self._tell_decided(early)
            begun = time.perf_counter_ns()
            connection.execute("COMMIT")
        self._pace.commits.observe((time.perf_counter_ns() - begun) // 1000)
        self._pace.settlements += report.settled
        return report

    def _transact(self, connection: sqlite3.Connection, *, apart: bool) -> Report:
        """All that is pending, in a transaction that is still to be committed."""
        connection.execute("BEGIN IMMEDIATE")
        with self._undone(connection):
            now_us, zone = self._now_us(), self._zone()
            batch = Batch(connection, now_us, zone, self._customers, self._budgets, self._journal, apart=apart)
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
            report.settled = batch.settled
        return report

    @contextmanager
    def _undone(self, connection: sqlite3.Connection) -> Iterator[None]:
        """What is raised within undoes the transaction."""
        try:
            yield
        except BaseException:
            self._budgets.forget()
            self._customers.recount()
            self._journal.forget()
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _is_told_early(exchange: SqliteTicket, decision: str | Decision) -> bool:
    """May it be told before its commit?"""
    if isinstance(decision, str):
        return False
    return decision.refusal is not None or all(claim.mode != HARD for claim in exchange.claims)


def _enter(batch: Batch, entry: Opening | Closing | Extension, exchange: SqliteTicket, report: Report) -> None:
    if isinstance(entry, Opening):
        decision = batch.open(entry, exchange.claims, let_in=exchange.decision is not None)
        exchange.opened = True
        exchange.refused = isinstance(decision, Decision) and decision.refusal is not None
        report.decided.append((exchange, decision))
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
    batch.finish()
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
