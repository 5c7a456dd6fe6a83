"""The exchanges that have ended, in the order in which they did: what exports and alerts read, and how far they are.

Each has a number in the journal (`journal.py`), `seq`, which only grows. Whoever has told others of all up to one
asks for those after it, and keeps its number in the file as the cursor of its name, so that it goes on there after a
restart.

Plain functions over a connection. Those that read take any; `set_cursor` is for the ledger's thread
(`SqliteLedger.write`).
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final

import msgspec

from tproxy.store import rows
from tproxy.store.base import Closing, Opening
from tproxy.store.migrate import LedgerUnusable, check

BUSY_SECONDS: Final = 5.0

# A cross join, so that the journal is gone through in its order and the rows are looked up.
_AFTER: Final = (
    f"SELECT settled.seq, {rows.COLUMNS} "  # noqa: S608
    "FROM settled CROSS JOIN exchange ON exchange.id = settled.id WHERE settled.seq > ? ORDER BY settled.seq LIMIT ?"
)


class Settled(msgspec.Struct, frozen=True, gc=False):
    """One exchange that has ended, and its number in the journal."""

    seq: int
    opening: Opening
    closing: Closing


def after(connection: sqlite3.Connection, seq: int, limit: int) -> list[Settled]:
    """The first `limit` that come after number `seq`. Those whose rows retention has taken are passed over."""
    return [Settled(number, *rows.values(row)) for number, *row in connection.execute(_AFTER, (seq, limit))]


def newest(connection: sqlite3.Connection) -> int:
    """The number of the one that ended last; 0 where none has."""
    (seq,) = connection.execute("SELECT max(seq) FROM settled").fetchone()
    return seq or 0


def cursors(connection: sqlite3.Connection) -> dict[str, tuple[int, int]]:
    """How far each sink has come, and when that was kept (microseconds), by its name."""
    found = connection.execute("SELECT sink, seq, updated_us FROM cursor")
    return {sink: (seq, updated_us) for sink, seq, updated_us in found}


def set_cursor(connection: sqlite3.Connection, sink: str, seq: int, now_us: int) -> None:
    """All up to `seq` have been taken by `sink`."""
    connection.execute(
        "INSERT INTO cursor (sink, seq, updated_us) VALUES (?, ?, ?) "
        "ON CONFLICT (sink) DO UPDATE SET seq = excluded.seq, updated_us = excluded.updated_us",
        (sink, seq, now_us),
    )


class Reader:
    """A connection that stays open and cannot write. Each call sees the newest state of the file; the methods are those
    of this file. It may be used in any thread, by one at a time.

    Args:
        path: the ledger's file.

    Raises:
        LedgerUnusable: it is not there, is no ledger, or is at another version. So do the methods, if it cannot be
            read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise LedgerUnusable(f"{path}: there is no such file")
        try:
            self._connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                check(self._connection)
            except BaseException:
                self._connection.close()
                raise
        except (LedgerUnusable, sqlite3.Error) as fault:
            raise LedgerUnusable(f"{path}: {fault}") from fault

    def after(self, seq: int, limit: int) -> list[Settled]:
        """See `after`."""
        return self._asked(after, seq, limit)  # type: ignore[no-any-return]

    def newest(self) -> int:
        """See `newest`."""
        return self._asked(newest)  # type: ignore[no-any-return]

    def cursors(self) -> dict[str, tuple[int, int]]:
        """See `cursors`."""
        return self._asked(cursors)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Let the file go."""
        self._connection.close()

    def _asked(self, question: Any, *values: Any) -> Any:
        try:
            return question(self._connection, *values)
        except sqlite3.Error as fault:
            raise LedgerUnusable(f"{self._path}: {fault}") from fault
