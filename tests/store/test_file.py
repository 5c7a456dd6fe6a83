from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tproxy.store.file import LedgerFile
from tproxy.store.migrate import LedgerUnusable


@pytest.fixture
def file(tmp_path: Path) -> Iterator[LedgerFile]:
    file = LedgerFile(tmp_path / "t.db", now_us=1, busy_seconds=0.01)
    yield file
    file.close()


def _put(file: LedgerFile, version: int) -> None:
    file.ready().execute(f"PRAGMA user_version = {version}")


def _get(path: Path) -> int:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return version


@pytest.mark.parametrize("name", ["t.db", "t.db-wal", "t.db-shm", "t.db.lock"])
def test_only_its_owner_can_read_it(file: LedgerFile, name: str) -> None:
    _put(file, 1)
    assert (file.path.parent / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("busy_timeout", 10)])
def test_its_connection_is_set_up(file: LedgerFile, pragma: str, value: object) -> None:
    for _ in range(2):
        assert file.ready().execute(f"PRAGMA {pragma}").fetchone() == (value,)
        file.drop()


def test_the_connection_is_kept_until_it_is_dropped(file: LedgerFile) -> None:
    first = file.ready()
    assert file.ready() is first
    file.drop()
    assert file.ready() is not first


def test_a_new_connection_writes_the_wal_back_first(file: LedgerFile, tmp_path: Path) -> None:
    _put(file, 5)
    with closing(sqlite3.connect(tmp_path / "t.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("PRAGMA user_version").fetchone() == (5,)
        _put(file, 6)
        file.drop()
        with pytest.raises(LedgerUnusable, match="reader"):
            file.ready()
        reader.execute("COMMIT")
        assert file.ready().execute("PRAGMA user_version").fetchone() == (6,)
        assert (tmp_path / "t.db-wal").stat().st_size == 0


def test_a_new_connection_looks_whether_the_ledger_is_whole(file: LedgerFile) -> None:
    file.ready().execute("DELETE FROM schema_migration")
    file.drop()
    for _ in range(2):
        with pytest.raises(LedgerUnusable, match="holds no ledger"):
            file.ready()


def test_a_file_that_is_gone_takes_nothing_until_it_is_back(file: LedgerFile, tmp_path: Path) -> None:
    connection = file.ready()
    (tmp_path / "t.db").rename(tmp_path / "away.db")
    with pytest.raises(FileNotFoundError):
        file.ready()
    assert not (tmp_path / "t.db").exists()
    (tmp_path / "away.db").rename(tmp_path / "t.db")
    assert file.ready() is connection


def test_a_file_put_in_its_place_is_left_alone_until_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    file = LedgerFile(path, now_us=1, busy_seconds=0.01)
    _put(file, 5)
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        file.ready().backup(copy)
    _put(file, 6)
    path.rename(tmp_path / "old.db")
    (tmp_path / "copy.db").rename(path)
    for _ in range(2):
        with pytest.raises(LedgerUnusable, match="another file was put in its place"):
            file.ready()
    file.close()
    assert _get(tmp_path / "old.db") == 6
    LedgerFile(path, now_us=1, busy_seconds=0.01).close()
    assert _get(path) == 5


def test_the_lock_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    first = LedgerFile(path, now_us=1, busy_seconds=0.01)
    with pytest.raises(LedgerUnusable, match="another tproxy"):
        LedgerFile(path, now_us=1, busy_seconds=0.01)
    _put(first, 4)
    first.close()
    assert sorted(os.listdir(tmp_path)) == ["t.db", "t.db.lock"]
    LedgerFile(path, now_us=1, busy_seconds=0.01).close()
    assert _get(path) == 4


def test_a_start_that_fails_gives_the_lock_up(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE invoices (x)")
    for _ in range(2):
        with pytest.raises(LedgerUnusable, match="another program"):
            LedgerFile(path, now_us=1, busy_seconds=0.01)
