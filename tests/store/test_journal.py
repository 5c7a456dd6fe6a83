from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import asdict, replace

from tests.store.laws import T0, make_closing, make_opening
from tests.store.test_sqlite_faults import Frail, frail
from tests.store.test_sqlite_money import Book
from tproxy.store import rows
from tproxy.store.base import CLIENT_GONE, FAILED, FINISHED, LOST, OPEN, REFUSED, Closing, Opening
from tproxy.store.file import LedgerFile
from tproxy.store.journal import NOTHING, Journal, digest
from tproxy.store.migrate import migrate, shipped
from tproxy.store.sqlite import open_ledger
from tproxy.store.verify import verify

__all__ = ["frail"]

_NO_COLUMN_HOLDS = 2**70


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, now_us=1)
    yield connection
    connection.close()


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "t.db")


def _entries(book: Book) -> list[tuple[int, str]]:
    return [(seq, id) for seq, id in book.ask("SELECT seq, id FROM settled ORDER BY seq")]


def _ids(*numbers: int) -> list[tuple[int, str]]:
    return [(seq, make_opening(number).id) for seq, number in enumerate(numbers, 1)]


# The digest


def test_a_digest_is_the_same_in_every_version() -> None:
    """Where this fails, no ledger that there is can be proved any more."""
    opening, closing = make_opening(1, caller="c", expected_nano=7), make_closing(1, error_type=None, tap_fault=None)
    assert digest(NOTHING, opening, closing).hex() == "91e00f958f1d87299b2acd3f7dbf0669"
    small = Opening(id="i", accepted_us=1, method="GET", path="/", upstream="u", caller="c", stream=True)
    assert digest(b"x" * 16, small, Closing(id="i", ended=FINISHED)).hex() == "fb4af1482ad01a86d547b1b5a4ac2ffb"


_OTHER: dict[type, Any] = {str: "other", int: 12345, bool: False, tuple: ("other",), type(None): "other"}
_OPENING, _CLOSING = make_opening(1), make_closing(1)


@pytest.mark.parametrize("name", Opening.__struct_fields__)
def test_every_field_of_an_opening_is_in_the_digest(name: str) -> None:
    was = getattr(_OPENING, name)
    assert digest(NOTHING, _OPENING, _CLOSING) != digest(
        NOTHING, replace(_OPENING, **{name: _OTHER[type(was)]}), _CLOSING
    )


@pytest.mark.parametrize("name", [n for n in Closing.__struct_fields__ if n != "id"])
@pytest.mark.parametrize("to_none", [False, True])
def test_every_field_of_a_closing_is_in_the_digest(name: str, to_none: bool) -> None:
    value = None if to_none else _OTHER[type(getattr(_CLOSING, name))]
    assert digest(NOTHING, _OPENING, _CLOSING) != digest(NOTHING, _OPENING, replace(_CLOSING, **{name: value}))


def test_values_do_not_run_into_each_other() -> None:
    made = {
        digest(before, replace(_OPENING, team=team, user=user, tags=tags), _CLOSING)
        for before in (NOTHING, b"\1" * 16)
        for team, user in (("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc"), ("abc", None), (None, "abc"))
        for tags in ((), ("",), ("a", "b"), ("ab",), ('["a","b"]',))
    }
    assert len(made) == 2 * 6 * 5


# What gets an entry


async def test_every_way_of_ending_makes_one_entry(book: Book) -> None:
    async with book.open() as ledger:
        for number, ended in enumerate((FINISHED, REFUSED, CLIENT_GONE, FAILED), 1):
            await ledger.open(make_opening(number)).durable()
            ledger.note(make_closing(number, OPEN))
            ledger.close(make_closing(number, ended))
        # without its figures
        await ledger.open(make_opening(5)).durable()
        ledger.close(make_closing(5, input_tokens=_NO_COLUMN_HOLDS))
        # open and close in one batch, and the rest is left open
        ledger.open(make_opening(6))
        ledger.close(make_closing(6))
        await ledger.open(make_opening(7)).durable()
        await ledger.open(make_opening(8)).durable()
    assert _entries(book) == _ids(1, 2, 3, 4, 5, 6)
    async with book.open() as ledger:
        assert ledger.recovered == 2
    assert sorted(_entries(book)) == _ids(1, 2, 3, 4, 5, 6, 7, 8)
    assert verify(book.path).faults == []
    ends = dict(book.ask("SELECT id, ended FROM exchange"))
    assert [ends[id] for _, id in _ids(5, 7, 8)[:3]] == [FINISHED, LOST, LOST]


async def test_what_was_refused_or_closed_twice_makes_none(book: Book) -> None:
    async with book.open() as ledger:
        await ledger.open(make_opening(1)).durable()
        ledger.close(make_closing(1))
        ledger.close(make_closing(1))
        ledger.close(make_closing(2))
    assert _entries(book) == _ids(1)


async def test_a_row_whose_caller_was_renamed_stands_as_it_is_then(book: Book) -> None:
    opening = make_opening(1, caller="key:old")
    async with book.open() as ledger:
        await ledger.open(opening).durable()
        await ledger.write(lambda connection: rows.rename_caller(connection, "key:old", "key:new"))
        ledger.close(make_closing(1))
    renamed = replace(opening, caller="key:new")
    assert book.ask("SELECT digest FROM settled") == [(digest(NOTHING, renamed, make_closing(1)),)]


async def test_numbers_go_on_after_a_restart(book: Book) -> None:
    for number in (1, 2, 3):
        async with book.open() as ledger:
            await ledger.open(make_opening(number)).durable()
            ledger.close(make_closing(number))
    assert _entries(book) == _ids(1, 2, 3)
    assert verify(book.path).faults == []


async def test_a_change_that_fails_undoes_no_entry(book: Book) -> None:
    def change(connection: sqlite3.Connection) -> None:
        raise ValueError("no")

    async with book.open() as ledger:
        for number in (1, 2):
            await ledger.open(make_opening(number)).durable()
            ledger.close(make_closing(number))
            with pytest.raises(ValueError, match="no"):
                await ledger.write(change)
    assert _entries(book) == _ids(1, 2)
    assert verify(book.path).faults == []


@pytest.mark.parametrize("when", ["before", "after", "bug"])
async def test_a_commit_that_fails_doubles_no_entry(book: Book, frail: type[Frail], when: str) -> None:
    async with book.open() as ledger:
        for number in (1, 2, 3):
            await ledger.open(make_opening(number)).durable()
        ledger.close(make_closing(1))
        await ledger.write(lambda connection: None)
        frail.fails = when
        ledger.close(make_closing(2))
        with trio.fail_after(10):
            while not ledger.faults or not ledger.writable or ledger.queued:  # noqa: ASYNC110
                await trio.sleep(0.005)
        assert ledger.settlements >= 2
        ledger.close(make_closing(3))
    assert _entries(book) == _ids(1, 2, 3)
    assert verify(book.path).faults == []


def test_what_was_undone_is_forgotten(connection: sqlite3.Connection) -> None:
    journal = Journal()

    def end(number: int) -> None:
        journal.add(connection, make_opening(number), make_closing(number))
        journal.flush(connection)

    end(1)
    connection.execute("BEGIN")
    end(2)
    connection.execute("ROLLBACK")
    journal.add(connection, make_opening(3), make_closing(3))  # not written yet
    journal.forget()
    end(4)
    first = digest(NOTHING, make_opening(1), make_closing(1))
    second = digest(first, make_opening(4), make_closing(4))
    assert connection.execute("SELECT * FROM settled ORDER BY seq").fetchall() == [
        (1, make_opening(1).id, first),
        (2, make_opening(4).id, second),
    ]


# Rows from before


def _old_file(path: Path, ends: dict[int, int | None]) -> None:
    """A file of version 2 with rows that ended at these times, and one that runs."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection, now_us=1, migrations=shipped()[:1])
        for number, ended_us in (*ends.items(), (99, None)):
            row = asdict(make_closing(number, OPEN if number == 99 else FINISHED)) | asdict(make_opening(number))
            row |= {"ended_us": ended_us, "cost_nano": 7}
            there = [column[1] for column in connection.execute("PRAGMA table_info(exchange)")]
            values = [json.dumps(row[n], ensure_ascii=False) if n == "tags" else row[n] for n in there]
            connection.execute(
                f"INSERT INTO exchange ({', '.join(there)}) VALUES ({', '.join('?' * len(there))})", values
            )
        migrate(connection, now_us=1, migrations=shipped()[:2])


async def test_rows_from_before_are_adopted_once_in_the_order_in_which_they_ended(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tproxy.store.journal._SLICE", 2)
    _old_file(book.path, {1: T0 + 50, 2: T0 + 30, 3: T0 + 40, 4: T0 + 30, 5: None})
    for _ in range(2):
        async with book.open():
            assert _entries(book) == _ids(5, 2, 4, 3, 1, 99)
    assert verify(book.path).faults == []


def test_a_start_that_fails_adopts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.db"
    _old_file(path, {1: T0})
    with monkeypatch.context() as patch:
        patch.setattr("tproxy.store.batch.Batch.finish", lambda self: 1 / 0)

        async def start() -> None:
            async with open_ledger(path):
                pass

        with pytest.raises(ZeroDivisionError):
            trio.run(start)
    file = LedgerFile(path, now_us=1, busy_seconds=0)
    assert file.ready().execute("SELECT count(*) FROM settled").fetchone() == (0,)
    file.close()
