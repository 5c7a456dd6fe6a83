"""How the SQLite ledger writes many entries as one: what lingers, what fails alone, what is kept in memory, who is
told."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing, nullcontext
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import trio

from tests.store.laws import T0, make_closing, make_opening, make_row, make_subject, until
from tests.store.test_sqlite_money import Book
from tproxy.errors import LedgerUnavailable
from tproxy.store import money, writer
from tproxy.store.base import EXACT, FINISHED, HARD, OPEN, Claim, Refusal, Standing
from tproxy.store.batch import Told
from tproxy.store.claims import Decision
from tproxy.store.customers import Customers
from tproxy.store.file import LedgerFile
from tproxy.store.inbox import Inbox
from tproxy.store.pace import Pace
from tproxy.store.reading import recent
from tproxy.store.sqlite import SqliteLedger
from tproxy.store.subjects import Budget
from tproxy.store.ticket import SqliteTicket
from tproxy.store.writer import Change, Item, Report, Writer

UTC = ZoneInfo("UTC")
CORE = [Claim("team", "core", HARD, 60)]
STANDING = Standing(
    kind="team", subject="core", period=None, limit_nano=1, soft_nano=None, spent_nano=0, held_nano=0, reset_us=None
)


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "t.db")


@pytest.fixture(name="ledger")
async def _ledger(book: Book) -> AsyncIterator[SqliteLedger]:
    async with book.open() as ledger:
        yield ledger


def _limit(limit: int | None) -> Callable[[sqlite3.Connection], None]:
    """A change: the budget of the team; None: it has none."""
    subject = make_subject("team", "core", *([] if limit is None else [Budget(None, limit)]))
    return lambda connection: money.set_budgets(connection, subject, T0, UTC)


def _rows(book: Book) -> list[str]:
    return [row["ended"] for row in recent(book.path)[::-1]]


# What lingers


async def _opening(ledger: SqliteLedger) -> None:
    await ledger.open(make_opening(2)).durable()


async def _change(ledger: SqliteLedger) -> None:
    await ledger.write(lambda connection: None)


@pytest.mark.parametrize("then", [_opening, _change])
async def test_a_close_is_written_with_what_comes_after_it(
    book: Book, monkeypatch: pytest.MonkeyPatch, then: Callable[[SqliteLedger], Awaitable[None]]
) -> None:
    monkeypatch.setattr(writer, "LINGER_SECONDS", 60)
    async with book.open() as ledger:
        await ledger.open(make_opening(1)).durable()
        ledger.close(make_closing(1))
        with trio.fail_after(10):
            await then(ledger)
        assert _rows(book)[0] == FINISHED


async def test_a_close_does_not_linger_when_the_ledger_is_closed(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LINGER_SECONDS", 60)
    book.options["flush_seconds"] = 10
    async with book.open() as ledger:
        await ledger.open(make_opening(1)).durable()
        ledger.note(make_closing(1, OPEN))
        ledger.close(make_closing(1))
    assert ledger.unwritten == 0
    assert _rows(book) == [FINISHED]


async def test_a_close_does_not_linger_while_somebody_waits_for_its_money(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "LINGER_SECONDS", 60)
    async with book.open() as ledger:
        await ledger.write(_limit(100))
        assert await ledger.open(make_opening(1), CORE).admitted() is None
        freed = ledger.freed("team", "core")
        assert await ledger.open(make_opening(2), CORE).admitted() is not None
        ledger.close(make_closing(1, cost_nano=1, certainty=EXACT))
        with trio.fail_after(10):
            await freed.wait()
        assert await ledger.open(make_opening(3), CORE).admitted() is None


async def test_a_close_is_written_soon_though_nothing_comes_after_it(book: Book, ledger: SqliteLedger) -> None:
    await ledger.open(make_opening(1)).durable()
    ledger.close(make_closing(1))
    await until(lambda: _rows(book) == [FINISHED])


@pytest.mark.parametrize(
    ("entries", "begun", "ended", "ready_at"),
    [(5, 10.0, 10.002, 10.004), (5, 10.0, 12.0, 12.005), (4, 10.0, 12.0, 12.0)],
    ids=["as long as it took", "at most so long", "not after a few"],
)
def test_it_rests_after_a_batch(
    book: Book, monkeypatch: pytest.MonkeyPatch, entries: int, begun: float, ended: float, ready_at: float
) -> None:
    class Twice(Inbox[Item]):
        def take(self, not_before: float, wait_seconds: float, linger_seconds: float) -> tuple[list[Item], bool]:
            asked.append(not_before)
            if len(asked) == 2:
                return [], True
            tickets = [SqliteTicket(make_opening(n), [], lambda seconds: None) for n in range(entries)]
            return [(ticket.opening, ticket) for ticket in tickets], False

    asked: list[float] = []
    times = iter([begun, ended, 20.0, 20.0])
    monkeypatch.setattr("tproxy.store.writer.time.monotonic", lambda: next(times))
    file = LedgerFile(book.path, now_us=T0, busy_seconds=0)
    customers = Customers(1)
    with closing(file):
        Writer(
            file,
            Twice(),
            lambda decided: None,
            lambda report: None,
            now_us=lambda: T0,
            zone=lambda: UTC,
            customers=customers,
            pace=Pace(),
        ).run()
    assert asked == pytest.approx([0.0, ready_at])


# What fails alone

_BAD = 2**70  # no column holds it


async def _together(book: Book, ledger: SqliteLedger, queue: Callable[[SqliteLedger], None]) -> None:
    """Let all that `queue` queues be written in one batch."""
    with closing(sqlite3.connect(book.path, isolation_level=None)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        ticket = ledger.open(make_opening(99))
        await until(lambda: not len(ledger._inbox))  # the writer has it, and waits for the lock
        queue(ledger)
        locker.execute("ROLLBACK")
    await ticket.durable()
    await _change(ledger)


@pytest.mark.parametrize("first", [False, True])
async def test_an_entry_that_fails_harms_no_other_of_its_batch(book: Book, first: bool) -> None:
    book.options["busy_seconds"] = 30
    tickets: dict[int, SqliteTicket] = {}

    def bad(ledger: SqliteLedger) -> None:
        tickets[3] = ledger.open(make_opening(3, accepted_us=_BAD, customer="new"), CORE)
        ledger.close(make_closing(1, cost_nano=7, certainty=EXACT, input_tokens=_BAD))
        ledger.note(make_closing(2, OPEN, output_tokens=_BAD))
        ledger.extend(make_opening(2).id, 10, lambda refusal: None)

    def good(ledger: SqliteLedger) -> None:
        tickets[4] = ledger.open(make_opening(4), CORE)
        tickets[5] = ledger.open(make_opening(5), CORE)
        ledger.close(make_closing(5, cost_nano=11, certainty=EXACT))
        ledger.note(make_closing(2, OPEN, output_tokens=5))

    def both(ledger: SqliteLedger) -> None:
        for each in (bad, good) if first else (good, bad):
            each(ledger)

    async with book.open() as ledger:
        await ledger.write(_limit(1_000))
        for n in (1, 2):
            assert await ledger.open(make_opening(n), CORE).admitted() is None
        await _together(book, ledger, both)
        for n in (4, 5):
            assert await tickets[n].admitted() is None
        with pytest.raises(LedgerUnavailable, match="cannot be recorded"):
            await tickets[3].admitted()
        rows = {row["id"]: row for row in recent(book.path)}
        assert rows[make_opening(2).id]["output_tokens"] == 5
        assert rows[make_opening(5).id] == make_row(make_opening(5), make_closing(5, cost_nano=11, certainty=EXACT))
        assert rows[make_opening(1).id]["ended"] == FINISHED
        assert make_opening(3).id not in rows
        # The close without figures is booked as it was held; 2 and 4 still hold theirs.
        assert book.figures == [(60 + 11, 120)]
        assert book.ask("SELECT exchange FROM reservation ORDER BY exchange") == [(make_opening(n).id,) for n in (2, 4)]
        assert book.ask("SELECT id FROM subject WHERE kind = 'customer'") == [(make_opening(1).customer,)]
        assert book.sums_are_right
        assert sorted(fault.split(" ")[0] for fault in book.faults) == ["close", "note", "open"]


# What is kept in memory


async def test_what_an_operator_changes_is_known_to_the_next_claim(book: Book, ledger: SqliteLedger) -> None:
    async def ask(number: int) -> Refusal | None:
        ticket = ledger.open(make_opening(number), CORE)
        refusal = await ticket.admitted()
        if refusal is None:
            ledger.close(make_closing(number, cost_nano=50, certainty=EXACT))
        return refusal

    await ledger.write(_limit(100))
    assert await ask(1) is None
    refusal = await ask(2)
    assert refusal is not None
    assert (refusal.standing.limit_nano, refusal.standing.spent_nano) == (100, 50)
    await ledger.write(_limit(200))
    assert await ask(3) is None
    await ledger.write(lambda connection: money.set_spent(connection, "team", "core", 190, T0, UTC))
    refusal = await ask(4)
    assert refusal is not None
    assert refusal.standing.spent_nano == 190
    await ledger.write(lambda connection: money.set_spent(connection, "team", "core", 0, T0, UTC))
    assert await ask(5) is None
    await ledger.write(_limit(None))
    refusal = await ask(6)
    assert refusal is not None
    assert refusal.stale
    await ledger.write(_limit(70))
    assert await ask(7) is None
    await _change(ledger)
    assert book.figures == [(50, 0)]


async def test_a_change_that_failed_changed_nothing_of_what_is_known(book: Book, ledger: SqliteLedger) -> None:
    def change(connection: sqlite3.Connection) -> None:
        _limit(1)(connection)
        raise KeyError("no")

    await ledger.write(_limit(100))
    first = ledger.open(make_opening(1), CORE)
    with pytest.raises(KeyError):
        await ledger.write(change)
    assert await first.admitted() is None
    ledger.close(make_closing(1, cost_nano=10, certainty=EXACT))
    assert await ledger.open(make_opening(2), CORE).admitted() is None
    await _change(ledger)
    assert book.figures == [(10, 60)]


async def test_what_another_program_changes_is_known_to_the_next_claim(book: Book, ledger: SqliteLedger) -> None:
    await ledger.write(_limit(100))
    assert await ledger.open(make_opening(1), CORE).admitted() is None
    with closing(sqlite3.connect(book.path, isolation_level=None)) as other:
        other.execute("UPDATE budget SET limit_nano = 1000, spent_nano = 500")
    assert await ledger.open(make_opening(2), CORE).admitted() is None
    await _change(ledger)
    assert book.figures == [(500, 120)]


# Who is told


def _ticket() -> SqliteTicket:
    return SqliteTicket(make_opening(1), [], lambda seconds: None)


def _awaited(*, durable: bool) -> SqliteTicket:
    """Somebody waits to hear of it: what was decided, or that it is durable."""
    ticket = _ticket()
    if durable:
        ticket._settling = trio.Event()
    else:
        ticket._deciding = trio.Event()
    return ticket


def _told(decision: Decision) -> SqliteTicket:
    ticket = _awaited(durable=False)
    ticket.decide(decision)
    return ticket


ADMITTED = Decision(None, ())
REFUSED = Decision(Refusal(STANDING, 1, HARD), ())
CHANGE = Change(lambda connection: None)


@pytest.mark.parametrize(
    ("report", "heard"),
    [
        (lambda: Report(), False),
        (lambda: Report(decided=[(_ticket(), ADMITTED)]), False),
        (lambda: Report(decided=[(_ticket(), ADMITTED), (_awaited(durable=False), ADMITTED)]), True),
        (lambda: Report(decided=[(_awaited(durable=True), ADMITTED), (_ticket(), ADMITTED)]), True),
        (lambda: Report(decided=[(_told(ADMITTED), ADMITTED)]), False),
        (lambda: Report(decided=[(_awaited(durable=False), "no")]), True),
        (lambda: Report(decided=[(_ticket(), REFUSED)]), True),
        (lambda: Report(decided=[(_told(REFUSED), REFUSED)]), False),
        (lambda: Report(writable=False), True),
        (lambda: Report(changed=[CHANGE]), True),
        (lambda: Report(unchanged=[CHANGE]), True),
        (lambda: Report(not_extended=[(lambda r: None, Refusal(STANDING, 1, HARD))]), True),
        (lambda: Report(told=Told(faults=["a"])), True),
        (lambda: Report(told=Told(soft=[STANDING])), True),
        (lambda: Report(told=Told(freed={("team", "core")})), False),
        (lambda: Report(told=Told(freed_all=True)), False),
    ],
    ids=[
        "nothing",
        "nobody waits",
        "one waits to be let in",
        "one waits for the commit",
        "one was let in before the commit",
        "one waits and fails",
        "refused",
        "refused before the commit",
        "not writable",
        "changed",
        "unchanged",
        "not extended",
        "fault",
        "soft",
        "freed",
        "all freed",
    ],
)
@pytest.mark.parametrize("state", ["idle", "somebody waits for money", "not writable before"])
async def test_the_loop_is_woken_for_what_somebody_has_to_hear(
    report: Callable[[], Report], heard: bool, state: str
) -> None:
    ledger = SqliteLedger(Inbox(), lambda fault: None, lambda standing: None, 0, Pace())
    there = report()
    waits = ledger.freed("team", "core") if state == "somebody waits for money" else None
    ledger._writable = state != "not writable before"
    freed = bool(there.told.freed) or there.told.freed_all
    assert ledger._settle(there) == (heard or state == "not writable before" or (waits is not None and freed))
    for ticket, outcome in there.decided:
        with trio.fail_after(10), pytest.raises(LedgerUnavailable) if outcome is not ADMITTED else nullcontext():
            await ticket.durable()


async def test_the_loop_hears_that_it_is_writable_again_though_it_has_not_heard_that_it_was_not() -> None:
    ledger = SqliteLedger(Inbox(), lambda fault: None, lambda standing: None, 0, Pace())
    reports = [Report(writable=False), Report(), Report()]
    assert [ledger._settle(report) for report in reports] == [True, True, False]
    for report in reports[:2]:
        ledger._hear(report)
    assert ledger.writable


async def test_what_is_decided_before_anybody_waits_is_not_waited_for(book: Book, ledger: SqliteLedger) -> None:
    ticket = ledger.open(make_opening(1))
    await until(lambda: _rows(book) == [OPEN])
    await until(lambda: ticket._settled)
    assert (ticket._deciding, ticket._settling) == (None, None)
    with trio.fail_after(10):
        await ticket.durable()
    with trio.CancelScope() as scope:
        scope.cancel()
        await ticket.durable()
    assert scope.cancelled_caught
