"""The ledger when its file fails it: full, locked, broken, gone."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from tests.store.laws import make_closing, make_opening, make_row, until
from tproxy.errors import LedgerUnavailable
from tproxy.store import sqlite
from tproxy.store.base import FINISHED, OPEN
from tproxy.store.reading import recent
from tproxy.store.sqlite import SqliteLedger, open_ledger

ROOT = Path(__file__).parents[2]
BIG = "x" * 200_000


class Frail(sqlite3.Connection):
    """A connection that fails on demand, in the writer's thread alone."""

    made: ClassVar[list[Frail]] = []
    begun: ClassVar[int] = 0
    fails: ClassVar[str] = ""  # "before" or "after" the next commit; "bug": before it, by no fault of the file

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Frail.made.append(self)

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if threading.current_thread().name != "ledger":
            return super().execute(sql, *args)
        Frail.begun += sql.startswith("BEGIN")
        when = Frail.fails if sql == "COMMIT" else ""
        if when:
            Frail.fails = ""
            if when == "bug":
                raise RuntimeError("a bug")
            if when == "after":
                super().execute(sql)
            fault = sqlite3.OperationalError("disk I/O error")
            fault.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise fault
        return super().execute(sql, *args)


@pytest.fixture
def frail(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Frail]]:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Frail, **options))
    Frail.made, Frail.begun, Frail.fails = [], 0, ""
    yield Frail
    for connection in Frail.made:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.db"


@pytest.fixture
def faults() -> list[str]:
    return []


@pytest.fixture
async def ledger(frail: type[Frail], path: Path, faults: list[str]) -> AsyncIterator[SqliteLedger]:
    async with open_ledger(path, busy_seconds=0.01, on_fault=faults.append) as ledger:
        yield ledger


def _rows(path: Path) -> list[dict[str, Any]]:
    return recent(path, 100_000)[::-1]


def _wal_bytes(path: Path) -> int:
    return os.path.getsize(f"{path}-wal")


async def _barrier(ledger: SqliteLedger, number: int) -> None:
    """Return when all that was queued before is written."""
    await ledger.open(make_opening(number)).durable()
    ledger.close(make_closing(number))


_FULL = """
import resource, sys, trio
from pathlib import Path
from tests.store.laws import make_closing, make_opening, until
from tproxy.errors import LedgerUnavailable
from tproxy.store.sqlite import open_ledger

async def main(path):
    faults = []
    async with open_ledger(path, on_fault=faults.append) as ledger:
        await ledger.open(make_opening(0)).durable()
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
        number = 0
        try:
            while True:
                number += 1
                await ledger.open(make_opening(number, user_agent="x" * 9_000)).durable()
        except LedgerUnavailable:
            assert not ledger.writable
        for n in range(number + 1):
            ledger.close(make_closing(n))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await until(lambda: ledger.writable)
        await ledger.open(make_opening(number + 1)).durable()
    assert len(faults) == 1, faults
    print(number + 2)

trio.run(main, Path(sys.argv[1]))
"""


def test_a_file_that_cannot_grow_is_used_again_when_it_can(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = _rows(path)
    assert len(rows) == int(done.stdout) > 3
    assert [row["ended"] for row in rows] == [FINISHED] * (len(rows) - 1) + [OPEN]


async def test_a_full_database_takes_rows_again_when_there_is_room(
    ledger: SqliteLedger, frail: type[Frail], path: Path, faults: list[str]
) -> None:
    writer = frail.made[-1]
    await ledger.open(make_opening(1)).durable()
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages}")
    refused = ledger.open(make_opening(2, user_agent=BIG))
    with pytest.raises(LedgerUnavailable):
        await refused.durable()
    ledger.close(make_closing(2))
    ledger.close(make_closing(1))
    writer.execute(f"PRAGMA max_page_count = {pages + 1000}")
    await until(lambda: ledger.writable)
    await _barrier(ledger, 3)
    assert [row["ended"] for row in _rows(path)][:2] == [FINISHED] * 2
    assert faults == ["the ledger cannot be written: database or disk is full"]
    assert frail.made[-1] is not writer  # made by `_rows`
    assert writer.execute("PRAGMA page_count").fetchone() > (pages,)  # still in use


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_io_error_of_an_open(
    ledger: SqliteLedger, frail: type[Frail], path: Path, faults: list[str], when: str
) -> None:
    """`after`: the commit seemed to fail, and yet it is in the WAL."""
    first = frail.made[-1]
    frail.fails = when
    with pytest.raises(LedgerUnavailable):
        await ledger.open(make_opening(1)).durable()
    await until(lambda: ledger.writable)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        first.execute("SELECT 1")
    ledger.close(make_closing(1, status=503))
    await _barrier(ledger, 2)
    assert _rows(path)[0] == make_row(make_opening(1), make_closing(1, status=503))
    assert faults == ["the ledger cannot be written: disk I/O error"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_io_error_of_a_close(
    ledger: SqliteLedger, frail: type[Frail], path: Path, faults: list[str], when: str
) -> None:
    await ledger.open(make_opening(1)).durable()
    frail.fails = when
    ledger.close(make_closing(1))
    await until(lambda: not frail.fails)
    for number in count(2):
        with suppress(LedgerUnavailable):
            await _barrier(ledger, number)
            break
        await until(lambda: ledger.writable)
    assert _rows(path)[0] == make_row(make_opening(1), make_closing(1))
    assert faults == ["the ledger cannot be written: disk I/O error"]


async def test_an_error_of_our_own_leaves_the_connection_as_it_was(
    ledger: SqliteLedger, frail: type[Frail], path: Path, faults: list[str]
) -> None:
    frail.fails = "bug"
    with pytest.raises(LedgerUnavailable):
        await ledger.open(make_opening(1)).durable()
    await until(lambda: ledger.writable)
    assert len(frail.made) == 1
    ledger.close(make_closing(1))
    await _barrier(ledger, 2)
    assert _rows(path)[0] == make_row(make_opening(1), make_closing(1))
    assert faults == ["the ledger cannot be written: a bug"]


class Impatient(threading.Event):
    """Waits a thousandth of what it is asked to."""

    waits: ClassVar[list[float]] = []

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None:
            return super().wait()
        self.waits.append(timeout)
        return super().wait(timeout / 1000)


async def test_a_lock_is_told_once_and_outlived(path: Path, faults: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Impatient, "waits", [])
    monkeypatch.setattr(threading, "Event", Impatient)
    with closing(sqlite3.connect(path, isolation_level=None)) as locker:
        async with open_ledger(path, busy_seconds=0.001, on_fault=faults.append) as ledger:
            await ledger.open(make_opening(1)).durable()
            locker.execute("BEGIN IMMEDIATE")
            ledger.close(make_closing(1))
            await until(lambda: len(Impatient.waits) > 6)
            assert not ledger.writable
            locker.execute("ROLLBACK")
            await until(lambda: ledger.writable)
    assert [row["ended"] for row in _rows(path)] == [FINISHED]
    assert faults == ["the ledger cannot be written: database is locked"]
    assert Impatient.waits[:7] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


async def test_it_finds_by_itself_that_it_is_writable(ledger: SqliteLedger, frail: type[Frail], path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable):
            await ledger.open(make_opening(1)).durable()
        begun = frail.begun
        await until(lambda: frail.begun >= begun + 2)
        assert not ledger.writable
        before = _wal_bytes(path)
        locker.execute("ROLLBACK")
        await until(lambda: ledger.writable)
        assert _wal_bytes(path) > before  # a real write, not only a lock
    assert _rows(path) == []


async def test_the_end_outlives_a_lock(frail: type[Frail], path: Path, faults: list[str]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as locker:

        async def unlock(begun: int) -> None:
            await until(lambda: frail.begun >= begun)
            locker.execute("ROLLBACK")

        async with (
            trio.open_nursery() as nursery,
            open_ledger(path, busy_seconds=0.01, on_fault=faults.append) as ledger,
        ):
            await ledger.open(make_opening(1)).durable()
            locker.execute("BEGIN IMMEDIATE")
            ledger.close(make_closing(1))
            await until(lambda: not ledger.writable)
            nursery.start_soon(unlock, frail.begun + 3)
    assert [row["ended"] for row in _rows(path)] == [FINISHED]
    assert len(faults) == 1


async def test_a_file_that_is_gone_comes_back(ledger: SqliteLedger, path: Path, faults: list[str]) -> None:
    await ledger.open(make_opening(1)).durable()
    os.rename(path, path.with_name("away.db"))
    with pytest.raises(LedgerUnavailable):
        await ledger.open(make_opening(2)).durable()
    for n in (1, 2):
        ledger.close(make_closing(n))
    os.rename(path.with_name("away.db"), path)
    await until(lambda: ledger.writable)
    await _barrier(ledger, 3)
    assert [row["ended"] for row in _rows(path)][:2] == [FINISHED] * 2
    assert len(faults) == 1


async def test_a_disk_that_hangs_holds_nobody_for_ever(
    path: Path, faults: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tproxy.store.ticket.DURABLE_SECONDS", 0.05)
    async with open_ledger(path, busy_seconds=30, on_fault=faults.append) as ledger:
        with closing(sqlite3.connect(path, isolation_level=None)) as locker:
            locker.execute("BEGIN IMMEDIATE")
            tickets = [ledger.open(make_opening(n)) for n in range(3)]
            for ticket in tickets:
                with pytest.raises(LedgerUnavailable, match="in time"):
                    await ticket.durable()
            assert not ledger.writable
            with pytest.raises(LedgerUnavailable, match="cannot be written now"):
                await ledger.open(make_opening(3)).durable()
            locker.execute("ROLLBACK")
        await until(lambda: ledger.writable)
        for n in range(4):
            ledger.close(make_closing(n))
    assert faults == ["the ledger wrote nothing for 0.05 s"]
    assert [row["ended"] for row in _rows(path)] == [FINISHED] * 4


async def test_the_end_does_not_wait_for_ever(path: Path, faults: list[str]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as locker:
        async with open_ledger(path, flush_seconds=0.05, busy_seconds=0.01, on_fault=faults.append) as ledger:
            for n in range(2):
                await ledger.open(make_opening(n)).durable()
            locker.execute("BEGIN IMMEDIATE")
            for n in range(2):
                ledger.close(make_closing(n))
            await until(lambda: not ledger.writable)
        await until(lambda: all(thread.name != "ledger" for thread in threading.enumerate()))
    assert ledger.unwritten == 2
    assert faults == ["the ledger cannot be written: database is locked", "2 entries were not written within 0.05 s"]
    async with open_ledger(path) as ledger:
        assert ledger.recovered == 2


async def test_notes_are_dropped_when_it_lags(
    ledger: SqliteLedger, path: Path, faults: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "NOTES_MAX", 0)
    ledger.open(make_opening(1))
    ledger.note(make_closing(1, OPEN))
    await _barrier(ledger, 2)
    assert _rows(path)[0] == make_row(make_opening(1))
    assert faults == []
