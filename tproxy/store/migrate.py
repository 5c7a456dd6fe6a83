"""The shape of a ledger file, and how it comes to the newest one.

A migration is a file `migrations/NNNN_name.sql`, numbered from 0001 without gaps. Each is applied in one
transaction together with its row in `schema_migration`, so a file is at one version or at the next, never between.
What was applied is never edited: a changed checksum is refused, and so is a file that a newer tproxy has written.

This file knows nothing of exchanges, threads or locks: whoever calls it holds the file alone.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files

_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")

_TABLE = """
CREATE TABLE schema_migration (
    version    INTEGER NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    checksum   TEXT    NOT NULL,
    applied_us INTEGER NOT NULL
) STRICT
"""


class LedgerUnusable(Exception):
    """This file cannot serve as a ledger. The message names the file's fault and, where there is one, the way out."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema: `version` counts from 1, `sql` holds whole statements."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return sha256(self.sql.encode()).hexdigest()


@cache
def shipped() -> tuple[Migration, ...]:
    """The migrations that this tproxy brings, in order."""
    found = []
    for file in files("tproxy.store").joinpath("migrations").iterdir():
        if match := _NAME.fullmatch(file.name):
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return tuple(sorted(found, key=lambda migration: migration.version))


def migrate(connection: sqlite3.Connection, *, now_us: int, migrations: Sequence[Migration] | None = None) -> int:
    """Bring a new, old or current file to the newest version.

    Args:
        connection: in autocommit mode (`isolation_level=None`), the only one that writes.
        now_us: kept with each migration that is applied.
        migrations: those to apply; the shipped ones by default.

    Returns:
        How many were applied.

    Raises:
        LedgerUnusable: the file was written by a newer or another program, or a migration was edited.
        sqlite3.Error: the database cannot be read or written; it is then at the version it had.
    """
    steps = shipped() if migrations is None else migrations
    done = _applied(connection, steps)
    for step in steps[done:]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            if step.version == 1:
                connection.execute(_TABLE)
            for statement in _statements(step.sql):
                connection.execute(statement)
            connection.execute(
                "INSERT INTO schema_migration VALUES (?, ?, ?, ?)",
                (step.version, step.name, step.checksum, now_us),
            )
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return len(steps) - done


def check(connection: sqlite3.Connection, *, migrations: Sequence[Migration] | None = None) -> None:
    """Read-only: pass if the file is a ledger at exactly the version of this tproxy, or of `migrations`.

    Raises:
        LedgerUnusable: it is not.
        sqlite3.Error: it cannot be read.
    """
    steps = shipped() if migrations is None else migrations
    done = _applied(connection, steps)
    if done == 0:
        raise LedgerUnusable("it holds no ledger")
    if done < len(steps):
        raise LedgerUnusable(
            f"it is at version {done}, this tproxy needs {len(steps)}; `tproxy serve` brings it up to date"
        )


def _applied(connection: sqlite3.Connection, steps: Sequence[Migration]) -> int:
    """How many of `steps` the file has had; refuses what is not theirs."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "schema_migration" not in tables:
        if tables:
            raise LedgerUnusable(f"it is a database of another program (it has a table {min(tables)})")
        return 0
    rows = connection.execute("SELECT version, checksum FROM schema_migration ORDER BY version").fetchall()
    if len(rows) > len(steps):
        raise LedgerUnusable(
            f"it is at version {len(rows)}, written by a newer tproxy; this one knows versions up to {len(steps)}"
        )
    for (version, checksum), step in zip(rows, steps, strict=False):
        if (version, checksum) != (step.version, step.checksum):
            raise LedgerUnusable(f"its migration {version:04d} is not the one that this tproxy ships")
    return len(rows)


def _statements(sql: str) -> Iterator[str]:
    """The statements of a script, one by one: `executescript` would end the transaction."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    yield statement  # what is left: comments, or a statement that lacks its end and fails
