from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.store.laws import T0, make_closing, make_opening
from tests.store.test_sqlite_money import Book
from tproxy.store import feed
from tproxy.store.base import FINISHED, REFUSED, Closing, Opening
from tproxy.store.feed import Reader, Settled
from tproxy.store.migrate import LedgerUnusable
from tproxy.store.retention import drop_oldest
from tproxy.store.sqlite import SqliteLedger

BARE = Opening(id="i", accepted_us=1, method="GET", path="/", upstream="u", caller="c")


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "t.db")


async def _end(ledger: SqliteLedger, *numbers: int) -> None:
    for number in numbers:
        await ledger.open(make_opening(number, traceparent="00-1-2-01", stream=None)).durable()
        ledger.close(make_closing(number, REFUSED))
    await ledger.write(lambda connection: None)


def _settled(seq: int, number: int) -> Settled:
    return Settled(seq, make_opening(number, traceparent="00-1-2-01", stream=None), make_closing(number, REFUSED))


async def test_what_has_ended_comes_in_the_order_in_which_it_did(book: Book) -> None:
    async with book.open() as ledger:
        with closing(Reader(book.path)) as reader:
            assert (reader.newest(), reader.after(0, 10)) == (0, [])
        await ledger.open(make_opening(0)).durable()
        await _end(ledger, 3, 1, 2)
        with closing(Reader(book.path)) as reader:
            assert reader.newest() == 3
            assert reader.after(0, 10) == [_settled(1, 3), _settled(2, 1), _settled(3, 2)]
            assert reader.after(0, 2) == [_settled(1, 3), _settled(2, 1)]
            assert reader.after(2, 2) == [_settled(3, 2)]
            assert reader.after(3, 2) == []
            await _end(ledger, 5)  # the reader was there before
            assert reader.after(3, 2) == [_settled(4, 5)]


async def test_a_row_with_nothing_in_it(book: Book) -> None:
    async with book.open() as ledger:
        await ledger.open(BARE).durable()
        ledger.close(Closing(id="i", ended=FINISHED))
    with closing(Reader(book.path)) as reader:
        assert reader.after(0, 1) == [Settled(1, BARE, Closing(id="i", ended=FINISHED))]


async def test_rows_that_were_deleted_are_passed_over(book: Book) -> None:
    async with book.open() as ledger:
        await _end(ledger, 1, 2, 3)
        assert await ledger.write(lambda connection: drop_oldest(connection, T0 + 3, None, 500)) == 2
        with closing(Reader(book.path)) as reader:
            assert reader.after(0, 10) == [_settled(3, 3)]
            assert reader.newest() == 3


async def test_cursors_are_kept_by_name(book: Book) -> None:
    async with book.open() as ledger:
        await ledger.write(lambda connection: feed.set_cursor(connection, "otlp", 7, 100))
        await ledger.write(lambda connection: feed.set_cursor(connection, "s3", 9, 101))
        await ledger.write(lambda connection: feed.set_cursor(connection, "otlp", 8, 102))
        with closing(Reader(book.path)) as reader:
            assert reader.cursors() == {"otlp": (8, 102), "s3": (9, 101)}


async def test_a_reader_cannot_write(book: Book) -> None:
    async with book.open():
        with (
            closing(Reader(book.path)) as reader,
            pytest.raises(sqlite3.OperationalError, match="readonly"),
        ):
            feed.set_cursor(reader._connection, "otlp", 1, 1)


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    with pytest.raises(LedgerUnusable, match="no such file"):
        Reader(path)
    path.write_bytes(b"no database, but long enough to be looked at")
    with pytest.raises(LedgerUnusable, match="not a database"):
        Reader(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE invoices (x)")
    with pytest.raises(LedgerUnusable, match="another program"):
        Reader(path)


async def test_a_file_that_cannot_be_read_any_more(book: Book) -> None:
    async with book.open():
        reader = Reader(book.path)
        reader.close()
        with pytest.raises(LedgerUnusable, match="closed database"):
            reader.newest()
