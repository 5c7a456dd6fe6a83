from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.laws import T0, LedgerLaws, MoneyLaws, make_closing, make_opening, make_row, make_subject, until
from tests.store.memory import MemoryLedger
from tproxy.errors import LedgerUnavailable
from tproxy.store import money
from tproxy.store.base import (
    EXACT,
    EXPECTED,
    FINISHED,
    HARD,
    LOST,
    OPEN,
    PARTIAL,
    Claim,
    Ledger,
    Refusal,
    Standing,
    Ticket,
)
from tproxy.store.migrate import LedgerUnusable
from tproxy.store.reading import reading, recent
from tproxy.store.sqlite import SqliteLedger, open_ledger
from tproxy.store.subjects import Budget, Subject
from tproxy.store.ticket import SqliteTicket

UTC = ZoneInfo("UTC")
_BARRIER = 10_000_000  # openings from this number on are not shown by `rows`


class SqliteBook:
    ledger: SqliteLedger

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[str] = []
        self.soft: list[Standing] = []
        self.now_us = T0
        self._barriers = _BARRIER
        self._locker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    async def rows(self) -> dict[str, dict[str, Any]]:
        self._barriers += 1
        await self.ledger.open(make_opening(self._barriers)).durable()
        shown = make_opening(_BARRIER).id
        return {row["id"]: row for row in reversed(recent(self.path, 1000)) if row["id"] < shown}

    async def set_clock(self, now_us: int) -> None:
        await self.rows()
        self.now_us = now_us

    async def set_budgets(self, subject: Subject) -> None:
        await self.ledger.write(lambda connection: money.set_budgets(connection, subject, self.now_us, UTC))

    async def standings(self, kind: str, id: str) -> list[Standing]:
        await self.rows()
        return self.written_standings(kind, id)

    def written_standings(self, kind: str, id: str) -> list[Standing]:
        with reading(self.path) as connection:
            return money.standings(connection, kind, [id], self.now_us, UTC)[id]

    async def overshoots(self) -> int:
        await self.rows()
        return self.ledger.overshoots

    async def fail(self) -> None:
        self._locker.execute("BEGIN IMMEDIATE")
        self._barriers += 1
        with pytest.raises(LedgerUnavailable):
            await self.ledger.open(make_opening(self._barriers)).durable()

    async def mend(self) -> None:
        self._locker.execute("ROLLBACK")
        await until(lambda: self.ledger.writable)

    def close(self) -> None:
        self._locker.close()


class MemoryBook:
    def __init__(self) -> None:
        self.ledger = MemoryLedger()
        self.ledger.now_us = T0
        self.faults = self.ledger.faults
        self.soft = self.ledger.soft

    async def set_clock(self, now_us: int) -> None:
        await trio.lowlevel.checkpoint()
        self.ledger.now_us = now_us

    async def set_budgets(self, subject: Subject) -> None:
        await trio.lowlevel.checkpoint()
        self.ledger.set_budgets(subject)

    async def standings(self, kind: str, id: str) -> list[Standing]:
        await trio.lowlevel.checkpoint()
        return self.ledger.standings(kind, id)

    async def overshoots(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.ledger.overshoots

    async def rows(self) -> dict[str, dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        return self.ledger.rows

    async def fail(self) -> None:
        await trio.lowlevel.checkpoint()
        self.ledger.fail()

    async def mend(self) -> None:
        await trio.lowlevel.checkpoint()
        self.ledger.mend()


@asynccontextmanager
async def _book(path: Path) -> AsyncIterator[SqliteBook]:
    book = SqliteBook(path)
    async with open_ledger(
        path,
        now_us=lambda: book.now_us,
        busy_seconds=0.01,
        on_fault=book.faults.append,
        on_soft=book.soft.append,
    ) as book.ledger:
        with closing(book):
            yield book


class TestSqlite(LedgerLaws, MoneyLaws):
    @pytest.fixture
    async def book(self, tmp_path: Path) -> AsyncIterator[SqliteBook]:
        async with _book(tmp_path / "t.db") as book:
            yield book


class TestMemory(LedgerLaws, MoneyLaws):
    @pytest.fixture
    async def book(self) -> MemoryBook:
        return MemoryBook()


async def test_the_end_writes_all_that_is_queued(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    with trio.CancelScope() as scope:
        async with open_ledger(path) as ledger:
            for n in range(300):
                ledger.open(make_opening(n))
                ledger.note(make_closing(n, OPEN))
                ledger.close(make_closing(n))
            scope.cancel()
    assert sorted(os.listdir(tmp_path)) == ["t.db", "t.db.lock"]
    assert [row["ended"] for row in recent(path, 1000)] == [FINISHED] * 300


async def test_after_the_end_nothing_is_taken(tmp_path: Path) -> None:
    faults: list[str] = []
    async with open_ledger(tmp_path / "t.db", on_fault=faults.append) as ledger:
        ledger.open(make_opening(1))
    assert not ledger.writable
    ledger.close(make_closing(1))
    assert len(faults) == 1
    with pytest.raises(LedgerUnavailable):
        await ledger.open(make_opening(2)).durable()


async def test_what_an_earlier_process_left_open_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    async with open_ledger(path) as ledger:
        assert ledger.recovered == 0
        for n in range(4):
            ledger.open(make_opening(n))
        ledger.note(make_closing(1, OPEN, certainty=PARTIAL))
        ledger.note(make_closing(2, OPEN, certainty=EXACT))
        ledger.close(make_closing(3))
    async with open_ledger(path, now_us=lambda: 77) as ledger:
        assert ledger.recovered == 3
    rows = {row["id"]: row for row in recent(path)}
    lost = {"ended": LOST, "ended_us": 77}
    assert rows == {
        make_opening(0).id: make_row(make_opening(0)) | lost,
        make_opening(1).id: make_row(make_opening(1), make_closing(1, OPEN, certainty=PARTIAL)) | lost,
        make_opening(2).id: make_row(make_opening(2), make_closing(2, OPEN, certainty=EXACT)) | lost,
        make_opening(3).id: make_row(make_opening(3), make_closing(3)),
    }
    async with open_ledger(path) as ledger:
        assert ledger.recovered == 0


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    (tmp_path / "other-name.db").symlink_to(path)
    async with open_ledger(path) as ledger:
        await ledger.open(make_opening(1)).durable()
        for name in ("t.db", "other-name.db"):
            with pytest.raises(LedgerUnusable, match="another tproxy uses this ledger"):
                async with open_ledger(tmp_path / name):
                    pass
        assert recent(path)[0]["ended"] == OPEN
    async with open_ledger(path) as ledger:
        assert ledger.recovered == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no database at all, but long enough to be one" * 100, "not a database"),
        (None, "directory"),
    ],
    ids=["text", "directory"],
)
async def test_a_file_that_cannot_be_one_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "t.db"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(LedgerUnusable, match=r"t\.db: .*" if content is None else message):
        async with open_ledger(path):
            pass
    assert content is None or path.read_bytes() == content


async def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnusable, match="nowhere"):
        async with open_ledger(tmp_path / "nowhere" / "t.db"):
            pass


async def test_a_bad_row_does_not_fail_its_batch(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    faults: list[str] = []
    async with open_ledger(path, on_fault=faults.append) as ledger:
        bad = ledger.open(make_opening(0, user_agent="\ud800"))
        tickets = [ledger.open(make_opening(n)) for n in range(1, 5)]
        ledger.close(make_closing(0))
        ledger.note(make_closing(1, OPEN, input_tokens=2**63))
        ledger.close(make_closing(2, input_tokens=2**63))
        ledger.close(make_closing(3, status="two hundred"))
        ledger.close(make_closing(4, ended_us=2**63))
        ledger.close(make_closing(1))
        with pytest.raises(LedgerUnavailable):
            await bad.durable()
        for ticket in tickets:
            await ticket.durable()
        assert ledger.writable
    rows = {row["id"]: row for row in recent(path)}
    bare = {"ended": FINISHED, "ended_us": T0 + 902}
    whole = make_row(make_opening(2), make_closing(2))
    measured = ("status", "dialled_us", "head_us", "first_content_us", "last_byte_us", "bytes_in", "bytes_out")
    assert rows == {
        make_opening(1).id: make_row(make_opening(1), make_closing(1)),
        make_opening(2).id: make_row(make_opening(2)) | bare | {name: whole[name] for name in measured},
        make_opening(3).id: make_row(make_opening(3)) | bare | {"ended_us": T0 + 903},
        make_opening(4).id: make_row(make_opening(4)),  # found at the next start
    }
    assert len(faults) == ledger.faults == 6


async def test_what_has_ended_leaves_nothing_in_memory(tmp_path: Path) -> None:
    async with open_ledger(tmp_path / "t.db") as ledger:
        for n in range(100):
            ledger.open(make_opening(n))
            ledger.close(make_closing(n))
        lasting = [ledger.open(make_opening(100))]
        await lasting[0].durable()
        lasting.append(ledger.open(make_opening(101)))
        await lasting[1].durable()  # by now the writer has forgotten its earlier batches
        gc.collect()
        assert {t for t in gc.get_objects() if isinstance(t, SqliteTicket)} == set(lasting)
        assert list(ledger._running) == [make_opening(100).id, make_opening(101).id]


_ACTS = ["open", "claim", "claim", "claim", "extend", "note", "close", "close", "wait"]
_OPS = st.tuples(st.sampled_from(_ACTS), st.integers(0, 4), st.integers(0, 1000))
_GOVERNED = (
    make_subject("team", "core", Budget("1mo", 100, 50), Budget(limit_nano=300)),
    make_subject("user", "ada", 200, cut=True),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lives=st.lists(st.lists(_OPS, max_size=25), min_size=1, max_size=3))
def test_it_keeps_what_the_reference_keeps(lives: list[list[tuple[str, int, int]]]) -> None:
    """Each life ends in a crash: the next one starts from a copy of the files as they were then."""

    async def act(ledgers: list[Ledger], ops: list[tuple[str, int, int]]) -> list[list[Refusal]]:
        tickets: dict[int, list[Ticket]] = {}
        refused: list[list[Refusal]] = [[] for _ in ledgers]
        for op, n, figure in ops:
            cost: dict[str, Any] = {"cost_nano": figure % 50, "certainty": PARTIAL if figure % 2 else EXACT}
            claims = [Claim("team", "core", HARD, figure % 60), Claim("user", "ada", EXPECTED, figure % 90)]
            if op == "wait":
                assert len({await _is_durable(ticket) for ticket in tickets.get(n, [])}) <= 1
            elif op == "open":
                tickets[n] = [ledger.open(make_opening(n)) for ledger in ledgers]
            elif op == "claim":
                tickets[n] = [ledger.open(make_opening(n), claims) for ledger in ledgers]
                one, other = [await _outcome(ticket) for ticket in tickets[n]]
                assert one == other
            for number, ledger in enumerate(ledgers):
                if op == "note":
                    ledger.note(make_closing(n, OPEN, **cost))
                elif op == "close":
                    ledger.close(make_closing(n, **cost))
                elif op == "extend":
                    ledger.extend(make_opening(n).id, figure % 120, refused[number].append)
        await trio.lowlevel.checkpoint()
        return refused

    async def live(directory: Path) -> None:
        reference = MemoryLedger()
        reference.now_us = T0
        for number, ops in enumerate(lives):
            before, path = directory / str(number), directory / str(number) / "t.db"
            before.mkdir(exist_ok=True)
            async with _book(path) as book:
                assert book.ledger.recovered == reference.crash(T0)
                if number == 0:
                    for subject in _GOVERNED:
                        await book.set_budgets(subject)
                        reference.set_budgets(subject)
                one, other = await act([book.ledger, reference], ops)
                await book.ledger.open(make_opening(_BARRIER + number)).durable()
                reference.open(make_opening(_BARRIER + number))
                assert {row["id"]: row for row in recent(path, 1000)} == reference.rows
                for subject in _GOVERNED:
                    expected = reference.standings(subject.kind, subject.id)
                    assert book.written_standings(subject.kind, subject.id) == expected
                await trio.testing.wait_all_tasks_blocked()
                assert one == other
                assert book.ledger.faults == len(book.faults)
                shutil.copytree(before, directory / str(number + 1))
        await trio.lowlevel.checkpoint()

    with tempfile.TemporaryDirectory() as directory:
        trio.run(live, Path(directory))


async def _outcome(ticket: Ticket) -> Refusal | str | Sequence[Standing]:
    try:
        return await ticket.admitted() or list(ticket.standings)
    except LedgerUnavailable:
        return "not written"


async def _is_durable(ticket: Ticket) -> bool:
    await trio.lowlevel.checkpoint()
    try:
        await ticket.durable()
    except LedgerUnavailable:
        return False
    return True
