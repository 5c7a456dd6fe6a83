"""The ledger looks after its file when nobody asks, and says at the end what it could not write."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests.store.laws import make_closing, make_opening, until
from tproxy.errors import LedgerUnavailable
from tproxy.store import writer
from tproxy.store.base import FINISHED
from tproxy.store.reading import recent
from tproxy.store.sqlite import SqliteLedger, open_ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.db"


@pytest.fixture
def faults() -> list[str]:
    return []


async def _serve(ledger: SqliteLedger, number: int) -> None:
    await ledger.open(make_opening(number)).durable()
    ledger.close(make_closing(number))


@pytest.mark.parametrize("another", [False, True])
async def test_a_file_that_is_gone_is_missed_before_anyone_asks(
    path: Path, faults: list[str], monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    monkeypatch.setattr(writer, "LOOK_SECONDS", 0.01)
    away = path.with_name("away.db")
    async with open_ledger(path, busy_seconds=0.01, on_fault=faults.append) as ledger:
        await _serve(ledger, 1)
        os.rename(path, away)
        if another:
            shutil.copy(away, path)
        await until(lambda: not ledger.writable)
        os.rename(away, path)
        await until(lambda: ledger.writable)
        await _serve(ledger, 2)
    assert [row["ended"] for row in recent(path, 10)[::-1]] == [FINISHED] * 2
    assert len(faults) == 1


async def test_who_is_told_of_faults_may_fail(path: Path) -> None:
    def raises(message: str) -> None:
        raise OSError(message)

    async with open_ledger(path, busy_seconds=0.01, on_fault=raises) as ledger:
        await ledger.open(make_opening(1)).durable()
        ledger.close(make_closing(2))
        os.rename(path, path.with_name("away.db"))
        with pytest.raises(LedgerUnavailable):
            await ledger.open(make_opening(3)).durable()
        os.rename(path.with_name("away.db"), path)
        await until(lambda: ledger.writable)
        ledger.close(make_closing(1))
    assert ledger.faults == 2
    assert ledger.unwritten == 0
    assert [row["ended"] for row in recent(path, 10)[::-1]] == [FINISHED]


async def test_what_a_writer_that_hangs_never_took_is_counted(path: Path, faults: list[str]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as locker:
        async with open_ledger(path, flush_seconds=0.05, busy_seconds=1, on_fault=faults.append) as ledger:
            await ledger.open(make_opening(1)).durable()
            locker.execute("BEGIN IMMEDIATE")
            ledger.close(make_closing(1))
            await until(lambda: not len(ledger._inbox))  # the writer has it, and waits for the lock
            for n in (2, 3):
                ledger.open(make_opening(n))
        locker.execute("ROLLBACK")
        assert ledger.unwritten == 3
        await until(lambda: all(thread.name != "ledger" for thread in threading.enumerate()))
    assert faults == ["3 entries were not written within 0.05 s"]
