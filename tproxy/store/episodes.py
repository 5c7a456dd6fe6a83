"""The table `episode`: alerts that have been told and whose cause has not gone, so that a restart tells none of them
again.

Functions on a connection, within a transaction of the caller. `put_all` is for the ledger's thread
(`SqliteLedger.write`); `all_open` may be used by any connection.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Episode:
    """One row: the kind of alert, whom it is of ('' where that is the proxy itself), when it began, and when its cause
    was last seen; microseconds since the epoch."""

    kind: str
    subject: str
    began_us: int
    last_us: int


def all_open(connection: sqlite3.Connection, limit: int) -> list[Episode]:
    """Those that are there, the newest first, at most so many."""
    found = connection.execute(
        "SELECT kind, subject, began_us, last_us FROM episode ORDER BY began_us DESC, kind, subject LIMIT ?", (limit,)
    )
    return [Episode(*row) for row in found]


def put_all(connection: sqlite3.Connection, episodes: Iterable[Episode], gone: Iterable[tuple[str, str]] = ()) -> None:
    """Let `episodes` be there as given, and those of these kinds and subjects be there no more."""
    connection.executemany("DELETE FROM episode WHERE kind = ? AND subject = ?", gone)
    connection.executemany(
        "INSERT INTO episode (kind, subject, began_us, last_us) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (kind, subject) DO UPDATE SET began_us = excluded.began_us, last_us = excluded.last_us",
        [(each.kind, each.subject, each.began_us, each.last_us) for each in episodes],
    )
