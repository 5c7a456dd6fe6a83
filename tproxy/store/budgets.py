"""The budgets as the ledger's thread knows them: read once, changed here, written once for each batch.

That thread alone books and holds, so what it has read stays true. It is forgotten, and read anew when it is next
asked for, where that may not be so: an operator has changed something (`forget`), a transaction was undone (`forget`),
or another program has written to the file (`begin` finds that out).

Within a transaction the table lags behind what is known here until `flush`.
"""

from __future__ import annotations

import sqlite3
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from tproxy.store import money
from tproxy.store.money import Row

KNOWN_MAX = 20_000  # subjects; past it, a batch begins with none known

_WRITE: Final = "UPDATE budget SET spent_nano = ?, held_nano = ?, started_us = ?, reset_us = ? WHERE id = ?"


class Budgets:
    """What is known of the table `budget`. To be used within a transaction, after `begin`."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], tuple[int, ...]] = {}
        self._rows: dict[int, Row] = {}
        self._changed: set[int] = set()
        self._version: int | None = None

    def begin(self, connection: sqlite3.Connection, now_us: int, zone: ZoneInfo) -> None:
        """A transaction has begun.

        Args:
            now_us: the time for all of it.
            zone: where the calendar's periods begin and end.
        """
        self._connection, self._now_us, self._zone = connection, now_us, zone
        (version,) = connection.execute("PRAGMA data_version").fetchone()  # another one: others have written
        if version != self._version or len(self._of) > KNOWN_MAX:
            self.forget()
            self._version = version

    def of(self, kind: str, subject: str) -> list[Row]:
        """The budgets of one subject in their present periods, in the order in which they were set."""
        ids = self._of.get((kind, subject))
        if ids is None:
            rows = money.rows_of(self._connection, kind, subject)
            for row in rows:
                self._rows.setdefault(row.id, row)  # one that was asked for by its id may have changed since
            ids = self._of[kind, subject] = tuple(row.id for row in rows)
        return [self.one(id) for id in ids]

    def one(self, id: int) -> Row:
        """One budget in its present period. It is there: something is held of it."""
        row = self._rows.get(id)
        if row is None:
            row = self._rows[id] = money.row(self._connection, id)
        if row.reset_us is not None and row.reset_us <= self._now_us:
            row = money.current(row, self._now_us, self._zone)
            self._put(row)
        return row

    def set(self, row: Row, *, spent: int, held: int) -> None:
        """Let so much be spent and held of a budget."""
        self._put(msgspec.structs.replace(row, spent_nano=spent, held_nano=held))

    def flush(self) -> None:
        """Write what was changed."""
        if self._changed:
            rows = [self._rows[id] for id in self._changed]
            self._connection.executemany(
                _WRITE, [(row.spent_nano, row.held_nano, row.started_us, row.reset_us, row.id) for row in rows]
            )
            self._changed.clear()

    def forget(self) -> None:
        """The table is right, whatever is known here."""
        self._of.clear()
        self._rows.clear()
        self._changed.clear()

    def _put(self, row: Row) -> None:
        self._rows[row.id] = row
        self._changed.add(row.id)
