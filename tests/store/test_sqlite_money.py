"""Money in the SQLite ledger: changes, customers, starts after a crash, commits that fail, many at once."""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import trio
import trio.testing

from tests.store.laws import T0, kept_sums, known, make_closing, make_opening, make_subject, summed, until
from tests.store.test_sqlite_faults import Frail
from tproxy.errors import LedgerUnavailable
from tproxy.store import money, sqlite
from tproxy.store.base import EXACT, EXPECTED, FINISHED, HARD, LOST, OPEN, PARTIAL, SOFT, Claim, Refusal, Standing
from tproxy.store.reading import reading, recent
from tproxy.store.sqlite import SqliteLedger, open_ledger
from tproxy.store.subject_changes import Changes
from tproxy.store.subjects import Budget, Subject, from_document
from tproxy.store.ticket import SqliteTicket
from tproxy.store.verify import verify

UTC = ZoneInfo("UTC")
CORE = [Claim("team", "core", HARD, 60)]


@dataclass
class Book:
    """A ledger, and what its file says."""

    path: Path
    faults: list[str] = field(default_factory=list)
    soft: list[Standing] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[SqliteLedger]:
        options: dict[str, Any] = {"now_us": lambda: T0, "busy_seconds": 0.01} | self.options
        async with open_ledger(self.path, on_fault=self.faults.append, on_soft=self.soft.append, **options) as ledger:
            yield ledger

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with reading(self.path) as connection:
            return [tuple(row) for row in connection.execute(query, values)]

    @property
    def figures(self) -> list[tuple[int, int]]:
        """Spent and held, of each budget."""
        return self.ask("SELECT spent_nano, held_nano FROM budget ORDER BY id")

    @property
    def sums_are_right(self) -> bool:
        assert verify(self.path).faults == []
        with reading(self.path) as connection:
            return kept_sums(connection) == summed(recent(self.path, 100_000), known(connection))


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "t.db")


async def _govern(ledger: SqliteLedger, *subjects: Subject) -> None:
    def change(connection: sqlite3.Connection) -> None:
        for subject in subjects:
            money.set_budgets(connection, subject, T0, UTC)

    await ledger.write(change)


async def _barrier(ledger: SqliteLedger) -> None:
    """Return when all that was queued before is written."""
    await ledger.write(lambda connection: None)


def _put(number: int, fault: Exception | None = None) -> Callable[[sqlite3.Connection], int]:
    def change(connection: sqlite3.Connection) -> int:
        connection.execute(
            "INSERT INTO subject (kind, id, created_us, document) VALUES ('tag', ?, 1, '{}')", (str(number),)
        )
        if fault is not None:
            raise fault
        return number

    return change


TAGS = "SELECT id FROM subject WHERE kind = 'tag' ORDER BY id"


# Changes


async def test_a_change_gives_its_result_once_it_is_in_the_file(book: Book) -> None:
    async with book.open() as ledger:
        freed = [ledger.freed("team", "core"), ledger.freed("key", "x")]
        assert await ledger.write(_put(1)) == 1
        assert book.ask(TAGS) == [("1",)]
        assert [event.is_set() for event in freed] == [True, True]  # it may have raised a limit


@pytest.mark.parametrize(
    ("change", "raised"),
    [
        (_put(2, KeyError("it is not there")), KeyError),
        (_put(2, ValueError("no")), ValueError),
        (_put(2, sqlite3.OperationalError("made by hand")), sqlite3.OperationalError),
        (lambda c: (_put(2)(c), _put(1)(c)), sqlite3.IntegrityError),
        (lambda c: (_put(2)(c), c.execute("SELECT nothing FROM nowhere")), sqlite3.OperationalError),
    ],
    ids=["its own", "like a row's", "like the file's", "constraint", "statement"],
)
async def test_what_a_change_raises_undoes_it_alone(
    book: Book, change: Callable[[sqlite3.Connection], object], raised: type[Exception]
) -> None:
    async with book.open() as ledger, trio.open_nursery() as nursery:
        await ledger.write(_put(1))
        ticket = ledger.open(make_opening(1))
        nursery.start_soon(ledger.write, _put(3))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(raised):
            await ledger.write(change)
        await ledger.write(_put(4))
        await ticket.durable()
        assert ledger.writable
    assert book.ask(TAGS) == [("1",), ("3",), ("4",)]
    assert book.faults == []


async def test_a_change_that_ends_the_transaction_is_refused(book: Book) -> None:
    async with book.open() as ledger:
        with pytest.raises(LedgerUnavailable):
            await ledger.write(lambda connection: connection.execute("COMMIT"))
        await until(lambda: ledger.writable)
        assert await ledger.write(_put(1)) == 1
    assert len(book.faults) == 1


async def test_who_waits_for_a_change_may_leave(book: Book) -> None:
    async with book.open() as ledger:
        with trio.CancelScope() as scope:
            scope.cancel()
            await ledger.write(_put(1))
        assert await ledger.write(_put(2)) == 2
        assert ledger._waiting == {}
    assert book.faults == []


async def test_a_change_fails_while_nothing_can_be_written(book: Book) -> None:
    async with book.open() as ledger:
        await ledger.write(_put(1))
        with closing(sqlite3.connect(book.path, isolation_level=None)) as locker:
            locker.execute("BEGIN IMMEDIATE")
            for _ in range(2):  # the first finds it out
                with pytest.raises(LedgerUnavailable):
                    await ledger.write(_put(2))
            locker.execute("ROLLBACK")
        await until(lambda: ledger.writable)
        await ledger.write(_put(3))
    assert book.ask(TAGS) == [("1",), ("3",)]


async def test_a_change_that_nobody_waits_for_any_more_is_not_begun(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tproxy.store.ticket.DURABLE_SECONDS", 0.05)
    book.options["busy_seconds"] = 30
    async with book.open() as ledger:
        with closing(sqlite3.connect(book.path, isolation_level=None)) as locker:
            locker.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerUnavailable, match="in time"):
                await ledger.write(_put(1))
            locker.execute("ROLLBACK")
        monkeypatch.undo()
        await until(lambda: ledger.writable)
        await ledger.write(_put(2))
    assert book.ask(TAGS) == [("2",)]
    assert book.faults == ["the ledger wrote nothing for 0.05 s"]


async def test_after_the_end_nothing_is_changed(book: Book) -> None:
    async with book.open() as ledger:
        pass
    with pytest.raises(LedgerUnavailable):
        await ledger.write(_put(1))


async def test_a_change_sees_the_sums_of_what_was_closed_before_it(book: Book) -> None:
    async with book.open() as ledger:
        for n in range(3):
            ledger.open(make_opening(n))
            ledger.close(make_closing(n, cost_nano=5))
        tally = await ledger.write(lambda connection: money.tallies(connection, "proxy", [""])[""])
        assert (tally.exchanges, tally.cost_nano) == (3, 15)


async def test_the_time_zone_may_change(book: Book) -> None:
    zones = [UTC]
    book.options["zone"] = lambda: zones[-1]
    day = 86_400_000_000
    times = [T0]
    book.options["now_us"] = lambda: times[-1]
    async with book.open() as ledger:
        await _govern(ledger, make_subject("team", "core", Budget("1d", 100)))
        times.append(T0 + day)
        zones.append(ZoneInfo("Asia/Tokyo"))
        [standing] = (await _admitted(ledger, 1, CORE)).standings
        assert standing.reset_us == T0 - T0 % day + 2 * day + 15 * 3_600_000_000


async def _admitted(ledger: SqliteLedger, number: int, claims: list[Claim]) -> SqliteTicket:
    ticket = ledger.open(make_opening(number), claims)
    assert await ticket.admitted() is None
    return ticket


# Customers


CUSTOMERS = "SELECT id, document FROM subject WHERE kind = 'customer' ORDER BY id"


async def test_a_customer_is_made_when_first_named(book: Book) -> None:
    names = ["acme", "'; DROP TABLE subject; --", "ü €\n", ""]
    async with book.open() as ledger:
        for n in range(8):
            ledger.open(make_opening(n, customer=names[n % 4]))
        ledger.open(make_opening(8, customer=None))
        await _barrier(ledger)
        found = {id: from_document(document) for id, document in book.ask(CUSTOMERS)}
        assert found == {
            name: Subject(kind="customer", id=name, created_us=T0 + n, updated_us=T0 + n)
            for n, name in enumerate(names)
        }
    assert book.faults == []


async def test_a_customer_who_is_there_stays_as_he_is(book: Book) -> None:
    async with book.open() as ledger:
        await ledger.write(
            lambda c: c.execute(
                "INSERT INTO subject (kind, id, created_us, document) VALUES ('customer', 'acme', 5, '{\"a\": 1}')"
            )
        )
        await ledger.open(make_opening(1, customer="acme")).durable()
    assert book.ask(CUSTOMERS) == [("acme", '{"a": 1}')]


async def test_a_refused_exchange_makes_no_customer(book: Book) -> None:
    async with book.open() as ledger:
        await _govern(ledger, make_subject("team", "core", 10))
        assert await ledger.open(make_opening(1, customer="acme"), CORE).admitted() is not None
        await _barrier(ledger)
    assert book.ask(CUSTOMERS) == []


async def test_made_up_names_fill_nothing(book: Book) -> None:
    book.options["max_customers"] = 3
    async with book.open() as ledger:
        for n in range(2):
            ledger.open(make_opening(n, customer=f"c{n}"))
    async with book.open() as ledger:
        for n in range(2, 20):
            ledger.open(make_opening(n, customer=f"c{n}"))
            ledger.close(make_closing(n, cost_nano=1))
    assert [id for id, _ in book.ask(CUSTOMERS)] == ["c0", "c1", "c2"]
    assert book.faults == ["there are 3 customers: no new ones are made"]
    sums = (
        "SELECT 'tally', id FROM tally WHERE kind = 'customer' UNION ALL SELECT 'daily', id FROM daily WHERE kind = ?"
    )
    assert book.ask(sums, "customer") == [("tally", "c2"), ("daily", "c2")]  # the first two came to nothing
    assert {row["customer"] for row in recent(book.path)} == {f"c{n}" for n in range(20)}


# Ends and starts


@pytest.mark.parametrize("opened", [True, False], ids=["opened", "not opened"])
async def test_an_end_whose_figures_cannot_be_written_books_what_was_held(book: Book, opened: bool) -> None:
    async with book.open() as ledger:
        await _govern(ledger, make_subject("team", "core", 100))
        if opened:
            await _admitted(ledger, 1, CORE)
        else:
            with closing(sqlite3.connect(book.path, isolation_level=None)) as locker:
                locker.execute("BEGIN IMMEDIATE")
                with pytest.raises(LedgerUnavailable):
                    await ledger.open(make_opening(1), CORE).admitted()
                locker.execute("ROLLBACK")
            await until(lambda: ledger.writable)
        ledger.close(make_closing(1, cost_nano=7, input_tokens=2**63))
        await _barrier(ledger)
        assert book.figures == [(60 if opened else 0, 0)]
        assert [row["ended"] for row in recent(book.path)] == [FINISHED]
        assert book.sums_are_right
        assert any("written without its figures" in fault for fault in book.faults)


async def test_a_start_books_what_was_held_by_those_that_are_lost(book: Book) -> None:
    async with book.open() as ledger:
        await _govern(
            ledger,
            make_subject("team", "core", 1000),
            make_subject("user", "ada", Budget(None, 1000, 25)),
            make_subject("tag", "x", 1000),
        )
        for n in range(4):
            await _admitted(
                ledger,
                n,
                [Claim("team", "core", HARD, 10), Claim("user", "ada", EXPECTED, 5), Claim("tag", "x", SOFT)],
            )
        ledger.note(make_closing(1, OPEN, cost_nano=7))
        ledger.note(make_closing(2, OPEN, cost_nano=9))
        ledger.close(make_closing(3, cost_nano=8))
        ledger.extend(make_opening(2).id, 6, lambda refusal: None)
        await _barrier(ledger)
        assert book.figures == [(8, 30), (8, 16), (8, 0)]
        assert book.soft == []
    async with book.open() as ledger:
        assert ledger.recovered == 3
        # 0: nothing noted; 1: noted 7; 2: noted 9
        assert book.figures == [(8 + 10 + 10 + 10, 0), (8 + 5 + 7 + 9, 0), (8 + 0 + 7 + 9, 0)]
        assert book.ask("SELECT * FROM reservation") == []
        assert [row["ended"] for row in recent(book.path)] == [FINISHED, LOST, LOST, LOST]
        assert book.sums_are_right
        assert [(s.subject, s.spent_nano, s.held_nano) for s in book.soft] == [("ada", 29, 0)]
    async with book.open() as ledger:
        assert ledger.recovered == 0
        assert book.figures == [(38, 0), (29, 0), (24, 0)]
    assert book.faults == []


async def test_a_start_gives_back_what_nobody_holds(book: Book) -> None:
    async with book.open() as ledger:
        await _govern(ledger, make_subject("team", "core", 1000))
        ledger.open(make_opening(1))
        ledger.close(make_closing(1))
    with closing(sqlite3.connect(book.path, isolation_level=None)) as other:
        for exchange in (make_opening(1).id, make_opening(2).id):  # one that has ended, one that is not there
            other.execute("INSERT INTO reservation SELECT ?, id, 'hard', 9 FROM budget", (exchange,))
        other.execute("UPDATE budget SET held_nano = 77")
    async with book.open():
        assert book.figures == [(0, 0)]
        assert book.ask("SELECT * FROM reservation") == []


async def test_a_lost_exchange_that_cost_more_than_it_held_is_told(book: Book) -> None:
    async with book.open() as ledger:
        await _govern(ledger, make_subject("team", "core", 1000))
        await _admitted(ledger, 1, CORE)
        ledger.note(make_closing(1, OPEN, cost_nano=61))
    async with book.open() as ledger:
        assert ledger.overshoots == ledger.faults == 1
        assert book.figures == [(61, 0)]


async def test_who_is_told_that_no_more_is_held_may_fail(book: Book) -> None:
    def fail(refusal: Refusal) -> None:
        raise OSError(refusal.asked_nano)

    async with book.open() as ledger:
        await _govern(ledger, make_subject("user", "ada", 10, cut=True))
        await _admitted(ledger, 1, [Claim("user", "ada", EXPECTED, 5)])
        ledger.extend(make_opening(1).id, 11, fail)
        await until(lambda: bool(book.faults))
        assert ledger.writable
    assert len(book.faults) == 1


async def test_extensions_are_dropped_when_it_lags(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    async with book.open() as ledger:
        await _govern(ledger, make_subject("user", "ada", 10))
        await _admitted(ledger, 1, [Claim("user", "ada", EXPECTED, 5)])
        monkeypatch.setattr(sqlite, "NOTES_MAX", 0)
        ledger.extend(make_opening(1).id, 11, lambda refusal: None)
        await _barrier(ledger)
        assert book.figures == [(0, 5)]


async def test_who_waits_for_money_is_forgotten_when_he_leaves(book: Book) -> None:
    async with book.open() as ledger:
        event = ledger.freed("customer", "a")
        assert ledger.freed("customer", "a") is event
        assert [ledger.freed("customer", str(n)).is_set() for n in range(100)] == [False] * 100
        gc.collect()
        assert list(ledger._freed) == [("customer", "a")]


async def test_a_stream_that_runs_while_its_key_is_regenerated_is_summed_under_the_new_one(book: Book) -> None:
    async with book.open() as ledger:
        opening = make_opening(1)
        old = opening.caller.removeprefix("key:")
        for n in (1, 2, 4):
            ledger.open(make_opening(n, caller="key:other" if n == 2 else opening.caller))
        ledger.close(make_closing(4, cost_nano=3))

        def regenerate(connection: sqlite3.Connection) -> None:
            changes = Changes(connection, T0, UTC, {}, {})
            changes.insert(Subject(kind="key", id=old))
            changes.regenerate(old, "new", lambda key: key, None)

        await ledger.write(regenerate)
        for n in (1, 2):
            ledger.close(make_closing(n, cost_nano=5))
        await _barrier(ledger)
        tallies = "SELECT id, exchanges, cost_nano FROM tally WHERE kind = 'caller' ORDER BY id"
        assert book.ask(tallies) == [("key:new", 2, 8), ("key:other", 1, 5)]
        assert {row["id"]: row["caller"] for row in recent(book.path)} == {
            opening.id: "key:new",
            make_opening(2).id: "key:other",
            make_opening(4).id: opening.caller,
        }
    assert book.faults == []


async def test_only_so_many_of_the_refused_are_remembered(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "REFUSED_MAX", 2)
    async with book.open() as ledger:
        await _govern(ledger, make_subject("team", "core", 10))
        for n in range(4):
            assert await ledger.open(make_opening(n), CORE).admitted() is not None
        assert len(ledger._refused) == 2
        assert ledger._running == {}
        for n in range(4):
            ledger.close(make_closing(n))
        assert ledger._refused == {}
    assert len(book.faults) == 2
    assert recent(book.path) == []


# Commits that fail


@pytest.fixture
def frail(monkeypatch: pytest.MonkeyPatch) -> type[Frail]:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Frail, **options))
    Frail.made, Frail.begun, Frail.fails = [], 0, ""
    return Frail


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_open_whose_commit_fails_holds_nothing_in_the_end(book: Book, frail: type[Frail], when: str) -> None:
    """`after`: the commit seemed to fail, and yet it is in the WAL. What is not HARD: `test_sqlite_told`."""
    async with book.open() as ledger:
        await _govern(ledger, make_subject("team", "core", 100))
        frail.fails = when
        with pytest.raises(LedgerUnavailable):
            await ledger.open(make_opening(1), CORE).admitted()
        await until(lambda: ledger.writable)
        assert book.figures == [(0, 60 if when == "after" else 0)]
        ledger.close(make_closing(1, cost_nano=2))
        await _barrier(ledger)
        assert book.figures == [(2, 0)]
        assert book.sums_are_right
    assert book.faults == ["the ledger cannot be written: disk I/O error"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_close_whose_commit_fails_is_booked_once(book: Book, frail: type[Frail], when: str) -> None:
    async with book.open() as ledger:
        await _govern(ledger, make_subject("team", "core", 100))
        await _admitted(ledger, 1, CORE)
        freed = ledger.freed("team", "core")
        frail.fails = when
        ledger.close(make_closing(1, cost_nano=2))
        with trio.fail_after(10):
            await freed.wait()
        assert ledger.writable
        assert book.figures == [(2, 0)]
        assert book.sums_are_right
        assert book.ask("SELECT exchanges FROM tally WHERE kind = 'proxy'") == [(1,)]
    assert book.faults == ["the ledger cannot be written: disk I/O error"]


async def test_a_customer_whose_commit_fails_takes_room_once(book: Book, frail: type[Frail]) -> None:
    book.options["max_customers"] = 2
    async with book.open() as ledger:
        frail.fails = "before"
        with pytest.raises(LedgerUnavailable):
            await ledger.open(make_opening(1, customer="a")).durable()
        await until(lambda: ledger.writable)
        for n, name in enumerate("bcd", 2):
            await ledger.open(make_opening(n, customer=name)).durable()
    assert [id for id, _ in book.ask(CUSTOMERS)] == ["a", "b"]


# Many at once


async def test_no_number_of_exchanges_overshoots_a_hard_budget(book: Book) -> None:
    """300 at once on budgets that fit 40 of them; each costs what it holds or less, hangs up, breaks or is not sure."""
    amount = 1000
    subjects = [make_subject(kind, "x", 40 * amount) for kind in ("key", "team", "user", "customer")]
    claims = [Claim(subject.kind, subject.id, HARD, amount) for subject in subjects]
    ends = [(amount, EXACT), (None, PARTIAL), (amount // 2, PARTIAL), (amount, EXACT)]
    admitted = []

    async with book.open() as ledger:

        async def live(number: int) -> None:
            while True:
                freed = ledger.freed("team", "x")
                refusal = await ledger.open(make_opening(number), claims).admitted()
                if refusal is None:
                    break
                if not refusal.held_only:
                    return
                await freed.wait()
            admitted.append(number)
            await trio.lowlevel.checkpoint()
            cost, certainty = ends[number % 4]
            ledger.close(make_closing(number, cost_nano=cost, certainty=certainty))

        await _govern(ledger, *subjects)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(300):
                    nursery.start_soon(live, number)
        await _barrier(ledger)
        assert book.figures == [(40 * amount, 0)] * 4
        assert len(admitted) == 40
        assert len(recent(book.path, 1000)) == 40
        assert book.ask("SELECT * FROM reservation") == []
        assert book.sums_are_right
    assert book.faults == []


async def test_what_is_given_back_is_used_by_those_who_wait(book: Book) -> None:
    """Each costs half of what it holds: in the end the budget is used up to less than what one holds."""
    claims = [Claim("key", "x", HARD, 1000)]
    admitted = []
    async with book.open() as ledger:

        async def live(number: int) -> None:
            while True:
                freed = ledger.freed("key", "x")
                refusal = await ledger.open(make_opening(number), claims).admitted()
                if refusal is None:
                    break
                if not refusal.held_only:
                    return
                await freed.wait()
            admitted.append(number)
            ledger.close(make_closing(number, cost_nano=500))

        await _govern(ledger, make_subject("key", "x", 10_000))
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(live, number)
        await _barrier(ledger)
        [(spent, held)] = book.figures
        assert held == 0
        assert spent == 500 * len(admitted) == 9_500
    assert book.faults == []
