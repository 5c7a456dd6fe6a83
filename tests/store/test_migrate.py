from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from tproxy.store.migrate import LedgerUnusable, Migration, check, migrate, shipped

ONE = Migration(1, "one", "-- a; comment\nCREATE TABLE a (x);\nINSERT INTO a VALUES (';');\n-- the end")
TWO = Migration(2, "two", "ALTER TABLE a ADD y;\nUPDATE a SET y = 2;\n")
BROKEN = Migration(2, "broken", "ALTER TABLE a ADD y;\nINSERT INTO nowhere VALUES (1);\n")


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    yield connection
    connection.close()


def _applied(connection: sqlite3.Connection) -> list[tuple[int, str, int]]:
    return connection.execute("SELECT version, name, applied_us FROM schema_migration ORDER BY 1").fetchall()


def test_the_shipped_ones_are_numbered_without_gaps() -> None:
    assert [step.version for step in shipped()] == list(range(1, len(shipped()) + 1))
    assert shipped()[0].name == "exchange"


def test_a_new_file_gets_them_all_once(connection: sqlite3.Connection) -> None:
    assert migrate(connection, now_us=7, migrations=[ONE, TWO]) == 2
    assert migrate(connection, now_us=8, migrations=[ONE, TWO]) == 0
    assert _applied(connection) == [(1, "one", 7), (2, "two", 7)]
    assert connection.execute("SELECT x, y FROM a").fetchall() == [(";", 2)]


def test_an_old_file_gets_what_it_lacks(connection: sqlite3.Connection) -> None:
    migrate(connection, now_us=7, migrations=[ONE])
    assert migrate(connection, now_us=8, migrations=[ONE, TWO]) == 1
    assert _applied(connection) == [(1, "one", 7), (2, "two", 8)]


def test_one_that_fails_leaves_no_trace(connection: sqlite3.Connection) -> None:
    migrate(connection, now_us=7, migrations=[ONE])
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        migrate(connection, now_us=8, migrations=[ONE, BROKEN])
    assert not connection.in_transaction
    assert _applied(connection) == [(1, "one", 7)]
    assert migrate(connection, now_us=9, migrations=[ONE, TWO]) == 1


def test_a_statement_without_its_end_is_not_passed_over(connection: sqlite3.Connection) -> None:
    migrate(connection, now_us=7, migrations=[Migration(1, "one", "CREATE TABLE a (x);\nCREATE TABLE b (x)")])
    assert {"a", "b"} <= {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def test_a_newer_file_is_refused(connection: sqlite3.Connection) -> None:
    migrate(connection, now_us=7, migrations=[ONE, TWO])
    with pytest.raises(LedgerUnusable, match="version 2, written by a newer tproxy; this one knows versions up to 1"):
        migrate(connection, now_us=8, migrations=[ONE])


@pytest.mark.parametrize(
    "edited", [Migration(1, "one", ONE.sql + " "), Migration(2, "one", ONE.sql)], ids=["text", "number"]
)
def test_an_edited_migration_is_refused(connection: sqlite3.Connection, edited: Migration) -> None:
    migrate(connection, now_us=7, migrations=[ONE])
    with pytest.raises(LedgerUnusable, match="migration 0001 is not the one"):
        migrate(connection, now_us=8, migrations=[edited, TWO])
    assert _applied(connection) == [(1, "one", 7)]


def test_the_file_of_another_program_is_refused(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE invoices (x)")
    with pytest.raises(LedgerUnusable, match=r"another program .*invoices"):
        migrate(connection, now_us=7)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("invoices",)]


def test_check_passes_the_current_version_alone(connection: sqlite3.Connection) -> None:
    with pytest.raises(LedgerUnusable, match="holds no ledger"):
        check(connection)
    migrate(connection, now_us=7, migrations=[ONE])
    check(connection, migrations=[ONE])
    with pytest.raises(LedgerUnusable, match="at version 1, this tproxy needs 2"):
        check(connection, migrations=[ONE, TWO])
    with pytest.raises(LedgerUnusable, match="migration 0001 is not the one"):
        check(connection)
    migrate(connection, now_us=7, migrations=[ONE, TWO])
    with pytest.raises(LedgerUnusable, match="newer tproxy"):
        check(connection, migrations=[ONE])
