"""The budgets that the ledger's thread keeps in memory, against the table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.store.laws import T0, make_subject
from tproxy.store import budgets as module
from tproxy.store import money
from tproxy.store.budgets import Budgets
from tproxy.store.migrate import migrate
from tproxy.store.subjects import Budget

UTC = ZoneInfo("UTC")
DAY = 24 * 3_600_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.db"


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, now_us=1)
    money.set_budgets(connection, make_subject("team", "core", Budget("1d", 100), Budget(None, 900)), T0, UTC)
    money.set_budgets(connection, make_subject("user", "ada", Budget(None, 50)), T0, UTC)
    yield connection
    connection.close()


@pytest.fixture
def budgets(connection: sqlite3.Connection) -> Budgets:
    budgets = Budgets()
    budgets.begin(connection, T0, UTC)
    return budgets


def _in_table(connection: sqlite3.Connection) -> list[tuple[int, int]]:
    return connection.execute("SELECT spent_nano, held_nano FROM budget ORDER BY id").fetchall()


def _spend(budgets: Budgets, kind: str, subject: str, amount: int) -> None:
    for row in budgets.of(kind, subject):
        budgets.set(row, spent=row.spent_nano + amount, held=row.held_nano + 1)


def test_they_are_read_once_and_each_is_written_once(connection: sqlite3.Connection, budgets: Budgets) -> None:
    asked: list[str] = []
    connection.set_trace_callback(asked.append)
    for _ in range(3):
        _spend(budgets, "team", "core", 5)
        assert budgets.of("team", "nobody") == []
    assert sum("FROM budget" in sql for sql in asked) == 2
    assert _in_table(connection) == [(0, 0)] * 3
    asked.clear()
    for _ in range(2):
        budgets.flush()
    assert sum(sql.startswith("UPDATE budget") for sql in asked) == 2
    assert _in_table(connection) == [(15, 3), (15, 3), (0, 0)]


def test_one_that_was_changed_by_its_id_is_not_read_again_with_its_subject(budgets: Budgets) -> None:
    row = budgets.one(2)
    budgets.set(row, spent=7, held=3)
    assert [(each.id, each.spent_nano, each.held_nano) for each in budgets.of("team", "core")] == [(1, 0, 0), (2, 7, 3)]


def test_a_period_that_has_ended_begins_anew_in_the_table_too(connection: sqlite3.Connection, budgets: Budgets) -> None:
    _spend(budgets, "team", "core", 5)
    budgets.flush()
    budgets.begin(connection, T0 + DAY, UTC)
    assert [row.spent_nano for row in budgets.of("team", "core")] == [0, 5]
    budgets.flush()
    assert _in_table(connection) == [(0, 1), (5, 1), (0, 0)]
    assert money.rows_of(connection, "team", "core") == budgets.of("team", "core")


def test_what_is_forgotten_is_read_anew_and_not_written(connection: sqlite3.Connection, budgets: Budgets) -> None:
    _spend(budgets, "team", "core", 5)
    budgets.forget()
    budgets.flush()
    assert _in_table(connection) == [(0, 0)] * 3
    assert [row.spent_nano for row in budgets.of("team", "core")] == [0, 0]


@pytest.mark.parametrize("other", [False, True], ids=["nobody", "another program"])
def test_what_another_program_writes_is_seen(
    path: Path, connection: sqlite3.Connection, budgets: Budgets, other: bool
) -> None:
    _spend(budgets, "user", "ada", 5)
    budgets.flush()
    if other:
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("UPDATE budget SET limit_nano = 7, spent_nano = 6 WHERE subject = 'ada'")
    asked: list[str] = []
    connection.set_trace_callback(asked.append)
    budgets.begin(connection, T0, UTC)
    [row] = budgets.of("user", "ada")
    assert (row.limit_nano, row.spent_nano) == ((7, 6) if other else (50, 5))
    assert sum("FROM budget" in sql for sql in asked) == other


def test_so_many_are_known_at_most(
    connection: sqlite3.Connection, budgets: Budgets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KNOWN_MAX", 2)
    for number in range(5):
        budgets.of("user", str(number))
    budgets.begin(connection, T0, UTC)
    assert budgets._of == {}
