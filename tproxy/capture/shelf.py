"""Where captured bodies are kept: a SQLite file of their own, beside the ledger and apart from it.

The file is made (mode 0600) with the first capture, not before. One connection writes, under a lock; reading is done on
connections that cannot write. Nothing waits for the disk: what a crash loses is the last captures. What is deleted
is overwritten, and its room given back.

The process that keeps captures puts and tidies; the server reads and removes. Every method may block: the server calls
them in threads. They raise `sqlite3.Error` or `OSError`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from tproxy.capture.record import Kept

DAY_US = 86_400_000_000
SLICE = 100  # rows that are deleted at a time
SLICES = 50
SWEEP_SECONDS = 10.0
BUSY_SECONDS = 5.0
_VERSION = 1
_WAL_BYTES = 16 << 20
_FREE_PAGES = 2000  # given back at a time

_COLUMNS = Kept.__struct_fields__
_TYPES = {
    **dict.fromkeys(("at_us", "request_bytes", "answer_bytes", "redacted", "size"), "INTEGER NOT NULL"),
    **dict.fromkeys(("request_cut", "answer_cut"), "INTEGER NOT NULL"),
    **dict.fromkeys(("status", "answer_whole"), "INTEGER"),
    **dict.fromkeys(("caller", "path", "ended", "why"), "TEXT NOT NULL"),
    "id": "TEXT NOT NULL PRIMARY KEY",
}
_SCHEMA = (
    "CREATE TABLE capture (" + ", ".join(f"{name} {_TYPES.get(name, 'TEXT')}" for name in _COLUMNS) + ") STRICT",
    "CREATE INDEX capture_age ON capture (at_us, id, size)",
    f"PRAGMA user_version = {_VERSION}",
)
_INSERT = f"INSERT OR REPLACE INTO capture VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608 (names of ours)
_LISTED = ", ".join(name for name in _COLUMNS if name not in ("request", "answer", "answer_error"))
_BOOLS = ("request_cut", "answer_cut", "answer_whole")


class Shelf:
    """The file of captured bodies.

    Args:
        path: its directory must exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._path

    def put(self, rows: Sequence[Kept]) -> None:
        """Keep some. One whose id is there already takes its place."""
        with self._writing(make=True) as connection:
            connection.executemany(_INSERT, [msgspec.structs.astuple(row) for row in rows])

    def tidy(self, now_us: int, days: int, most_bytes: int) -> int:
        """Delete what is older than `days`, and the oldest of what is too much; no more than some thousand rows, and no
        more than can be in `SWEEP_SECONDS`. What is left goes the next time.

        Returns:
            How many went.
        """
        if not self._path.exists():
            return 0
        gone, enough = 0, time.monotonic() + SWEEP_SECONDS
        for _ in range(SLICES):
            with self._writing() as connection:
                total = connection.execute("SELECT coalesce(sum(size), 0) FROM capture").fetchone()[0]
                oldest = connection.execute(
                    "SELECT id, at_us, size FROM capture ORDER BY at_us, id LIMIT ?", (SLICE,)
                ).fetchall()
                going = []
                for id, at_us, size in oldest:
                    if at_us >= now_us - days * DAY_US and total <= most_bytes:
                        break
                    going.append((id,))
                    total -= size
                connection.executemany("DELETE FROM capture WHERE id = ?", going)
            gone += len(going)
            if len(going) < SLICE or time.monotonic() > enough:
                break
        if gone:
            self._give_back()
        return gone

    def remove(self, id: str) -> bool:
        """Delete one. Returns whether it was there."""
        if not self._path.exists():
            return False
        try:
            with self._writing() as connection:
                return connection.execute("DELETE FROM capture WHERE id = ?", (id,)).rowcount > 0
        finally:
            self.close()  # whoever reads has no connection of its own between the calls

    def find(self, id: str) -> dict[str, Any] | None:
        """One, with its bodies, by its columns' names; None where it is not kept."""
        with self._reading() as connection:
            if connection is None:
                return None
            row = connection.execute("SELECT * FROM capture WHERE id = ?", (id,)).fetchone()
        return None if row is None else _values(row)

    def rows(
        self, *, limit: int, before: str | None = None, caller: str | None = None, ended: str | None = None
    ) -> list[dict[str, Any]]:
        """The newest, without their bodies.

        Args:
            before: only what is older than this one.
            caller: only those of a caller, by its id or alias.
            ended: only those that ended so.
        """
        where, values = ["1"], list[object]()
        if before is not None:
            where.append("(at_us, id) < (SELECT at_us, id FROM capture WHERE id = ?)")
            values.append(before)
        if caller is not None:
            where.append("(caller = ? OR caller_alias = ?)")
            values += [caller, caller]
        if ended is not None:
            where.append("ended = ?")
            values.append(ended)
        with self._reading() as connection:
            if connection is None:
                return []
            wanted = f"SELECT {_LISTED} FROM capture WHERE {' AND '.join(where)}"  # noqa: S608 (names of ours)
            found = connection.execute(f"{wanted} ORDER BY at_us DESC, id DESC LIMIT ?", (*values, limit)).fetchall()
        return [_values(row) for row in found]

    def close(self) -> None:
        """Let the connection go."""
        with self._lock:
            self._drop()

    @contextmanager
    def _writing(self, *, make: bool = False) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                connection = self._opened(make=make)
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                self._drop()  # what was begun is rolled back
                raise

    def _opened(self, *, make: bool) -> sqlite3.Connection:
        if self._connection is not None and self._identity == self._look():
            return self._connection
        self._drop()
        if make:
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,  # the lock sees to it that one thread at a time has it
        )
        self._connection = connection
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file, before anything is asked of it
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version != _VERSION and (version or tables):
            raise sqlite3.DatabaseError("it is no file of captures of this version")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        if version != _VERSION:
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute("COMMIT")
        self._identity = self._look()
        return connection

    def _look(self) -> tuple[int, int] | None:
        """A file that was moved away would go on taking what nobody ever finds."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _drop(self) -> None:
        connection, self._connection, self._identity = self._connection, None, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _give_back(self) -> None:
        with self._lock:
            if self._connection is not None:
                # A page goes with each step, and `execute` makes only one.
                self._connection.executescript(f"PRAGMA incremental_vacuum({_FREE_PAGES})")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection that cannot write; None where nothing has been kept yet."""
        if not self._path.exists():
            yield None
            return
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS, isolation_level=None
        )
        try:
            connection.row_factory = sqlite3.Row
            tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'capture'").fetchone()[0]
            yield connection if tables else None
        finally:
            connection.close()


def _values(row: sqlite3.Row) -> dict[str, Any]:
    values = dict(row)
    for name in _BOOLS:
        if values[name] is not None:
            values[name] = bool(values[name])
    return values
