"""What the SQLite ledger tells before its commit, and what becomes of that when the commit fails."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.store.laws import T0, make_closing, make_opening, make_row, make_subject, until
from tests.store.test_sqlite_money import UTC, Book
from tproxy.errors import LedgerUnavailable
from tproxy.store import money
from tproxy.store.base import (
    CLIENT_GONE,
    EXACT,
    EXPECTED,
    FAILED,
    FINISHED,
    HARD,
    OPEN,
    PARTIAL,
    Claim,
    Refusal,
    Standing,
)
from tproxy.store.batch import Batch
from tproxy.store.budgets import Budgets
from tproxy.store.claims import Decision
from tproxy.store.customers import Customers
from tproxy.store.file import LedgerFile
from tproxy.store.inbox import Inbox
from tproxy.store.journal import Journal
from tproxy.store.pace import Pace
from tproxy.store.reading import recent
from tproxy.store.sqlite import SqliteLedger
from tproxy.store.ticket import SqliteTicket
from tproxy.store.writer import Outcome, Report

CORE = [Claim("team", "core", EXPECTED, 60)]
STRICT = [Claim("team", "core", HARD, 60)]
OVER = [Claim("team", "core", HARD, 101)]
NOTHING = Standing(
    kind="team", subject="core", period=None, limit_nano=1, soft_nano=None, spent_nano=0, held_nano=0, reset_us=None
)
REFUSED = Decision(Refusal(NOTHING, 101, HARD), ())


@dataclass
class Disk:
    """A commit of the ledger's thread hangs from `hang` until `go`, which may let it fail."""

    connections: list[sqlite3.Connection] = field(default_factory=list)
    hangs: int = 0  # how many commits are to come until one hangs, itself included
    hung: bool = False
    fails: str = ""
    going: threading.Event = field(default_factory=threading.Event)

    def hang(self, nth: int = 1) -> None:
        self.hangs, self.hung, self.fails = nth, False, ""
        self.going.clear()

    def go(self, fails: str = "") -> None:
        """`fails`: "before" the commit, or "after" it, which is then in the WAL all the same."""
        self.fails = fails
        self.going.set()

    def commit(self, commit: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        if not self.hangs or threading.current_thread().name != "ledger":
            return commit()
        self.hangs -= 1
        if self.hangs:
            return commit()
        self.hung = True
        self.going.wait(20)
        if not self.fails:
            return commit()
        if self.fails == "after":
            commit()
        fault = sqlite3.OperationalError("disk I/O error")
        fault.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise fault


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk, connect = Disk(), sqlite3.connect

    class Slow(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            execute = super().execute
            return disk.commit(lambda: execute(sql)) if sql == "COMMIT" else execute(sql, *args)

    def opened(*args: Any, **options: Any) -> sqlite3.Connection:
        disk.connections.append(connect(*args, factory=Slow, **options))
        return disk.connections[-1]

    monkeypatch.setattr(sqlite3, "connect", opened)
    yield disk
    disk.go()
    for connection in disk.connections:
        connection.close()


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "t.db", options={"busy_seconds": 20})


@pytest.fixture(name="ledger")
async def _ledger(book: Book, disk: Disk) -> AsyncIterator[SqliteLedger]:
    async with book.open() as ledger:
        await ledger.write(_limit(100))
        yield ledger


def _limit(limit: int) -> Callable[[sqlite3.Connection], None]:
    subject = make_subject("team", "core", limit)
    return lambda connection: money.set_budgets(connection, subject, T0, UTC)


@asynccontextmanager
async def _one_batch(book: Book, ledger: SqliteLedger) -> AsyncIterator[None]:
    """Let all that is queued within be written in one batch, with the second commit from now on."""
    with closing(sqlite3.connect(book.path, isolation_level=None)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        ledger.open(make_opening(98))
        await until(lambda: not len(ledger._inbox))  # the writer has it, and waits for the lock
        yield
        locker.execute("ROLLBACK")


async def _waiting(nursery: trio.Nursery, wait: Callable[[], Any]) -> list[str]:
    """Wait in a task of its own; what became of it is in the list once it is known."""
    outcome: list[str] = []

    async def run() -> None:
        try:
            await wait()
            outcome.append("done")
        except LedgerUnavailable:
            outcome.append("unavailable")

    nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked()
    return outcome


async def _settled(ledger: SqliteLedger) -> None:
    """Return when all that was queued before is written, the file being in order again."""
    await until(lambda: ledger.writable)
    await ledger.write(lambda connection: None)


async def test_who_is_let_in_does_not_wait_for_the_commit(book: Book, disk: Disk, ledger: SqliteLedger) -> None:
    disk.hang()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            ticket = ledger.open(make_opening(1), CORE)
            assert await ticket.admitted() is None
            assert [standing.held_nano for standing in ticket.standings] == [60]
            durable = await _waiting(nursery, ticket.durable)
            await until(lambda: disk.hung)
            assert await ticket.admitted() is None
            assert recent(book.path) == []
            assert durable == []
            disk.go()
        await ticket.durable()
    assert durable == ["done"]
    assert [row["ended"] for row in recent(book.path)] == [OPEN]
    assert book.faults == []


async def test_who_is_refused_does_not_wait_for_the_commit(disk: Disk, ledger: SqliteLedger) -> None:
    """And may ask again under the same id at once."""
    disk.hang()
    with trio.fail_after(10):
        refused = ledger.open(make_opening(1), OVER)
        assert await refused.admitted() is not None
        again = ledger.open(make_opening(1), CORE)
        await until(lambda: disk.hung)
        disk.go()
        assert await again.admitted() is None
        with pytest.raises(LedgerUnavailable, match="was refused"):
            await refused.durable()


async def test_a_wait_for_the_commit_that_is_cancelled_takes_nothing_back(
    book: Book, disk: Disk, ledger: SqliteLedger
) -> None:
    disk.hang()
    ticket = ledger.open(make_opening(1), CORE)
    assert await ticket.admitted() is None
    with trio.move_on_after(0.01) as scope:
        await ticket.durable()
    assert scope.cancelled_caught
    ledger.close(make_closing(1, cost_nano=7))
    disk.go()
    await _settled(ledger)
    assert book.figures == [(7, 0)]
    assert [row["ended"] for row in recent(book.path)] == [FINISHED]
    assert book.sums_are_right


@pytest.mark.parametrize("fails", ["before", "after"])
@pytest.mark.parametrize(
    ("ended", "cost", "certainty", "booked"),
    [(FAILED, 7, EXACT, 7), (CLIENT_GONE, None, PARTIAL, 60)],
    ids=["what it cost is known", "what it cost is not known"],
)
async def test_who_was_let_in_holds_the_money_though_the_commit_fails(
    book: Book,
    disk: Disk,
    ledger: SqliteLedger,
    fails: str,
    ended: str,
    cost: int | None,
    certainty: str,
    booked: int,
) -> None:
    """The upstream may have been asked: until the close comes, nobody else may have that money."""
    disk.hang()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            ticket = ledger.open(make_opening(1), CORE)
            assert await ticket.admitted() is None
            durable = await _waiting(nursery, ticket.durable)
            disk.go(fails)
        assert durable == ["unavailable"]
        await _settled(ledger)
        assert book.figures == [(0, 60)]
        await ticket.durable()  # by now it is
        refusal = await ledger.open(make_opening(2), CORE).admitted()
        assert refusal is not None
        assert refusal.held_only
        closed = make_closing(1, ended, status=503, cost_nano=cost, certainty=certainty)
        ledger.close(closed)
        await _settled(ledger)
    assert book.figures == [(booked, 0)]
    assert recent(book.path) == [make_row(make_opening(1), closed)]
    assert book.ask("SELECT * FROM reservation") == []
    assert book.sums_are_right
    assert book.faults == ["the ledger cannot be written: disk I/O error"]


@pytest.mark.parametrize(("fails", "admitted"), [("", "done"), ("before", "unavailable"), ("after", "unavailable")])
async def test_who_holds_something_hard_is_let_in_after_the_commit(
    book: Book, disk: Disk, ledger: SqliteLedger, fails: str, admitted: str
) -> None:
    """A process that dies between the two has not sent what its books know nothing of."""
    disk.hang()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            ticket = ledger.open(make_opening(1), STRICT)
            outcome = await _waiting(nursery, ticket.admitted)
            await until(lambda: disk.hung)
            await trio.testing.wait_all_tasks_blocked()
            assert outcome == []
            disk.go(fails)
        assert outcome == [admitted]
        ledger.close(make_closing(1, cost_nano=0))
        await _settled(ledger)
    assert book.figures == [(0, 0)]
    assert [row["ended"] for row in recent(book.path)] == [FINISHED]
    assert book.ask("SELECT * FROM reservation") == []


@pytest.mark.parametrize("fails", ["before", "after"])
async def test_a_close_that_comes_before_the_ledger_is_well_is_booked_once(
    book: Book, disk: Disk, ledger: SqliteLedger, fails: str
) -> None:
    disk.hang(2)
    async with _one_batch(book, ledger):
        ticket = ledger.open(make_opening(1), CORE)
        ledger.close(make_closing(1, cost_nano=7))
    assert await ticket.admitted() is None
    disk.go(fails)
    with pytest.raises(LedgerUnavailable):
        await ticket.durable()
    await _settled(ledger)
    assert book.figures == [(7, 0)]
    assert [row["ended"] for row in recent(book.path)] == [OPEN, FINISHED]
    assert book.sums_are_right


@pytest.mark.parametrize("fails", ["before", "after"])
async def test_a_refusal_stands_though_its_commit_fails(
    book: Book, disk: Disk, ledger: SqliteLedger, fails: str
) -> None:
    """Whoever asked has gone away; one who was cancelled instead, and closes it, changes nothing."""
    disk.hang(2)
    async with _one_batch(book, ledger):
        tickets = [ledger.open(make_opening(n), OVER) for n in (1, 2)]
        ledger.close(make_closing(1, cost_nano=9))
    await until(lambda: disk.hung)
    ledger.close(make_closing(2, cost_nano=9))
    disk.go(fails)
    for ticket in tickets:
        assert await ticket.admitted() is not None
        with pytest.raises(LedgerUnavailable):
            await ticket.durable()
    await _settled(ledger)
    assert await ledger.open(make_opening(1), CORE).admitted() is None
    await _settled(ledger)
    assert [row["id"] for row in recent(book.path)] == [make_opening(98).id, make_opening(1).id]
    assert book.figures == [(0, 60)]
    assert book.faults == ["the ledger cannot be written: disk I/O error"]


async def test_a_limit_that_is_raised_lets_nobody_in_before_it_is_durable(
    book: Book, disk: Disk, ledger: SqliteLedger
) -> None:
    await ledger.open(make_opening(2), CORE).durable()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            disk.hang(2)
            async with _one_batch(book, ledger):
                change = await _waiting(nursery, lambda: ledger.write(_limit(1_000)))
                ticket = ledger.open(make_opening(1), CORE)
                admitted = await _waiting(nursery, ticket.admitted)
            await until(lambda: disk.hung)
            await trio.testing.wait_all_tasks_blocked()
            assert (change, admitted) == ([], [])
            disk.go("before")
        assert (change, admitted) == (["unavailable"], ["unavailable"])
        ledger.close(make_closing(1, status=503, cost_nano=0))
        await _settled(ledger)
    assert book.figures == [(0, 60)]
    assert book.ask("SELECT limit_nano FROM budget") == [(100,)]


async def test_nothing_is_told_of_a_batch_that_is_written_anew(
    book: Book, ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[SqliteTicket]] = []
    decide = ledger._decide

    def spy(decided: Sequence[Outcome]) -> bool:
        told.append([ticket for ticket, outcome in decided if isinstance(outcome, Decision)])
        return decide(decided)

    monkeypatch.setattr(ledger, "_decide", spy)
    async with _one_batch(book, ledger):
        told.clear()
        good = ledger.open(make_opening(1), CORE)
        bad = ledger.open(make_opening(2, accepted_us=2**70))
    assert await good.admitted() is None
    with pytest.raises(LedgerUnavailable, match="cannot be recorded"):
        await bad.admitted()
    await _settled(ledger)
    with_it = [tickets for tickets in told if good in tickets]
    assert with_it == [[good]] * 2  # before the commit and with it
    assert all(bad not in tickets for tickets in told)


async def test_one_wake_of_the_loop_is_enough_where_nobody_waits_for_the_commit(
    disk: Disk, ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    hear, hear_decided = ledger._hear, ledger._hear_decided

    def spy(report: Report) -> None:
        heard.append("settled")
        hear(report)

    def spy_decided(decided: Sequence[Outcome]) -> None:
        heard.append("decided")
        hear_decided(decided)

    monkeypatch.setattr(ledger, "_hear", spy)
    monkeypatch.setattr(ledger, "_hear_decided", spy_decided)
    disk.hang()
    ticket = ledger.open(make_opening(1), CORE)
    assert await ticket.admitted() is None
    disk.go()
    await ledger.write(lambda connection: None)
    assert heard[0] == "decided"
    assert heard.count("settled") == 1  # the change's
    await ticket.durable()


async def test_who_waits_for_the_commit_is_not_woken_by_the_decision(
    book: Book, disk: Disk, ledger: SqliteLedger
) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            disk.hang(2)
            async with _one_batch(book, ledger):
                ticket = ledger.open(make_opening(1), CORE)
                admitted = await _waiting(nursery, ticket.admitted)
                durable = await _waiting(nursery, ticket.durable)
            await until(lambda: admitted == ["done"])
            await trio.testing.wait_all_tasks_blocked()
            assert durable == []
            disk.go("before")
        assert durable == ["unavailable"]


async def test_the_refused_can_ask_again_before_the_loop_has_heard_of_the_refusal() -> None:
    faults: list[str] = []
    ledger = SqliteLedger(Inbox(), faults.append, lambda standing: None, 0, Pace())
    refused = ledger.open(make_opening(1), OVER)
    assert ledger._decide([(refused, REFUSED)])
    assert await refused.admitted() is not None
    again = ledger.open(make_opening(1), CORE)
    ledger._hear_decided([(refused, REFUSED)])
    ledger.close(make_closing(1))
    assert [item[1] for item in ledger._inbox.take(0, 0, 0)[0] if isinstance(item, tuple)] == [refused, again, again]
    assert faults == []


def test_who_was_let_in_holds_its_money_whatever_the_limit_is_now(book: Book) -> None:
    """Another program may have lowered it since."""
    file = LedgerFile(book.path, now_us=T0, busy_seconds=0)
    with closing(file):
        connection = file.ready()
        connection.execute("BEGIN IMMEDIATE")
        batch = Batch(connection, T0, UTC, Customers(1), Budgets(), Journal(), apart=True)
        batch.change(_limit(0))
        assert isinstance(refused := batch.open(make_opening(1), CORE), Decision)
        assert refused.refusal is not None
        assert isinstance(held := batch.open(make_opening(1), CORE, let_in=True), Decision)
        assert held.refusal is None
        assert isinstance(there := batch.open(make_opening(1), CORE, let_in=True), Decision)
        assert there.refusal is None
        batch.finish()
        connection.execute("COMMIT")
    assert book.figures == [(0, 60)]
