from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.laws import T0, LedgerLaws, make_closing, make_opening, make_row, until
from tests.store.memory import MemoryLedger
from tproxy.errors import LedgerUnavailable
from tproxy.store.base import EXACT, FINISHED, LOST, OPEN, PARTIAL, Ledger, Ticket
from tproxy.store.migrate import LedgerUnusable
from tproxy.store.reading import recent
from tproxy.store.sqlite import SqliteLedger, open_ledger

_BARRIER = 10_000_000  # openings from this number on are not shown by `rows`


class SqliteBook:
    def __init__(self, path: Path, ledger: SqliteLedger, faults: list[str]) -> None:
        self.path = path
        self.ledger = ledger
        self.faults = faults
        self._barriers = _BARRIER
        self._locker = sqlite3.connect(path, isolation_level=None)

    async def rows(self) -> dict[str, dict[str, Any]]:
        self._barriers += 1
        await self.ledger.open(make_opening(self._barriers)).durable()
        shown = make_opening(_BARRIER).id
        return {row["id"]: row for row in reversed(recent(self.path, 1000)) if row["id"] < shown}

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
        self.faults = self.ledger.faults

    async def rows(self) -> dict[str, dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        return self.ledger.rows

    async def fail(self) -> None:
        await trio.lowlevel.checkpoint()
        self.ledger.fail()

    async def mend(self) -> None:
        await trio.lowlevel.checkpoint()
        self.ledger.mend()


class TestSqlite(LedgerLaws):
    @pytest.fixture
    async def book(self, tmp_path: Path) -> AsyncIterator[SqliteBook]:
        faults: list[str] = []
        async with open_ledger(tmp_path / "t.db", busy_seconds=0.01, on_fault=faults.append) as ledger:
            with closing(SqliteBook(tmp_path / "t.db", ledger, faults)) as book:
                yield book


class TestMemory(LedgerLaws):
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
        tickets = [ledger.open(make_opening(n)) for n in range(100)]
        await tickets[-1].durable()
        assert all(ticket.opening is None for ticket in tickets)
        for n in range(100):
            ledger.close(make_closing(n))
        await ledger.open(make_opening(100)).durable()
        assert list(ledger._running) == [make_opening(100).id]


_OPS = st.tuples(st.sampled_from(["open", "open", "note", "close", "wait"]), st.integers(0, 4), st.integers(0, 1000))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lives=st.lists(st.lists(_OPS, max_size=25), min_size=1, max_size=3))
def test_it_keeps_what_the_reference_keeps(lives: list[list[tuple[str, int, int]]]) -> None:
    """Each life ends in a crash: the next one starts from a copy of the files as they were then."""

    async def act(ledgers: list[Ledger], ops: list[tuple[str, int, int]]) -> None:
        tickets: dict[int, list[Ticket]] = {}
        for op, n, tokens in ops:
            if op == "wait":
                assert len({await _is_durable(ticket) for ticket in tickets.get(n, [])}) <= 1
            elif op == "open":
                tickets[n] = [ledger.open(make_opening(n)) for ledger in ledgers]
            else:
                for ledger in ledgers:
                    if op == "note":
                        ledger.note(make_closing(n, OPEN, output_tokens=tokens))
                    else:
                        ledger.close(make_closing(n, output_tokens=tokens))
        await trio.lowlevel.checkpoint()

    async def live(directory: Path) -> None:
        reference = MemoryLedger()
        for number, ops in enumerate(lives):
            before, path = directory / str(number), directory / str(number) / "t.db"
            before.mkdir(exist_ok=True)
            async with open_ledger(path, now_us=lambda: 5, on_fault=lambda _: None) as ledger:
                assert ledger.recovered == reference.crash(5)
                await act([ledger, reference], ops)
                await ledger.open(make_opening(_BARRIER + number)).durable()
                reference.open(make_opening(_BARRIER + number))
                assert {row["id"]: row for row in recent(path, 1000)} == reference.rows
                shutil.copytree(before, directory / str(number + 1))
        await trio.lowlevel.checkpoint()

    with tempfile.TemporaryDirectory() as directory:
        trio.run(live, Path(directory))


async def _is_durable(ticket: Ticket) -> bool:
    await trio.lowlevel.checkpoint()
    try:
        await ticket.durable()
    except LedgerUnavailable:
        return False
    return True
