"""The start of a ledger: the file is opened and brought up to date, and what an earlier process left is ended."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from zoneinfo import ZoneInfo

from tproxy.store.batch import Batch, Told
from tproxy.store.budgets import Budgets
from tproxy.store.customers import Customers
from tproxy.store.feed import newest
from tproxy.store.file import LedgerFile
from tproxy.store.journal import Journal
from tproxy.store.migrate import LedgerUnusable


def start(
    path: Path, now_us: int, zone: ZoneInfo, busy_seconds: float, customers: Customers
) -> tuple[LedgerFile, int, int, Told]:
    """Open the ledger at `path` for one that writes: see `sqlite.open_ledger`. Blocks.

    Returns:
        The file; how many rows were found open, and were closed as `lost`; the number of the journal's newest entry
        before these; what others should hear of that.

    Raises:
        LedgerUnusable: it cannot be opened, or another process keeps it open.
    """
    try:
        file = LedgerFile(path, now_us=now_us, busy_seconds=busy_seconds)
        try:
            connection = file.ready()
            connection.execute("BEGIN IMMEDIATE")
            batch = Batch(connection, now_us, zone, customers, Budgets(), Journal(), apart=True)
            recovered = batch.recover()
            batch.finish()
            connection.execute("COMMIT")
            return file, recovered, newest(connection) - recovered, batch.told
        except BaseException:
            file.close()
            raise
    except (LedgerUnusable, sqlite3.Error, OSError) as fault:
        raise LedgerUnusable(f"{path}: {fault}") from fault
