"""What the ledger says of how its thread keeps up."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.store.laws import make_closing, make_opening, until
from tests.store.test_sqlite_money import Book
from tproxy.store.inbox import Inbox


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "t.db", options={"busy_seconds": 0.001})


async def test_nothing_waits_in_a_ledger_that_rests(book: Book) -> None:
    async with book.open() as ledger:
        assert (ledger.queued, ledger.behind_us, ledger.settlements, ledger.commits.count) == (0, 0, 0, 0)
        await ledger.open(make_opening(1)).durable()
        assert (ledger.queued, ledger.behind_us, ledger.settlements) == (0, 0, 0)
        assert ledger.commits.count == 1
        assert ledger.commits.total > 0
        ledger.close(make_closing(1))
        await ledger.write(lambda connection: None)
        assert (ledger.queued, ledger.behind_us, ledger.settlements) == (0, 0, 1)
        assert ledger.commits.count in (2, 3)


async def test_what_cannot_be_written_waits(book: Book) -> None:
    async with book.open() as ledger:
        for number in (1, 2):
            await ledger.open(make_opening(number)).durable()
        commits = ledger.commits.count
        with closing(sqlite3.connect(book.path, isolation_level=None)) as locker:
            locker.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            ledger.close(make_closing(1))
            await until(lambda: not ledger.writable)
            await until(lambda: ledger.behind_us >= 50_000)
            assert ledger.behind_us >= 50_000
            assert ledger.pace.taken_since >= began
            assert ledger.queued == 1
            ledger.close(make_closing(2))
            await until(lambda: ledger.pace.taken == 2)  # which came later, and does not make the first one younger
            assert ledger.behind_us >= 50_000
            assert (ledger.settlements, ledger.commits.count) == (0, commits)
            locker.execute("ROLLBACK")
        await until(lambda: ledger.writable and not ledger.queued)
        assert ledger.behind_us == 0
        assert ledger.settlements >= 2
        assert ledger.commits.count == commits + 1


async def test_what_the_thread_has_not_taken_waits_too(book: Book) -> None:
    async with book.open() as ledger:
        ledger._inbox = Inbox()  # which nobody takes from
        ledger.open(make_opening(1))
        assert ledger.queued == 1
        await until(lambda: ledger.behind_us >= 10_000)
        ledger.open(make_opening(2))
        assert ledger.queued == 2
        assert ledger.behind_us >= 10_000
        ledger._inbox.take(0, 0, 0)
        assert (ledger.queued, ledger.behind_us) == (0, 0)
        ledger.open(make_opening(3))
        assert ledger.behind_us < 10_000_000
        await trio.lowlevel.checkpoint()


async def test_rows_that_the_start_closed_are_settlements(book: Book) -> None:
    async with book.open() as ledger:
        assert ledger.pace.begun_seq == 0
        for number in (1, 2, 3):
            await ledger.open(make_opening(number)).durable()
        ledger.close(make_closing(2))
    for lost in (2, 0):
        async with book.open() as ledger:
            assert (ledger.settlements, ledger.pace.begun_seq) == (lost, 3 - lost)
