"""One SQLite file, one lock, one connection.

- The lock is on `<file>.lock`, for as long as this object lives: a second process is told so, and never closes rows
  of exchanges that run here. It is not on the file itself, where SQLite has its own.
- One connection both writes and checkpoints. (With two, the SQLite versions up to 3.51.2 can lose commits when the
  WAL is reset.)
- A file that was moved away or deleted would go on taking writes that nobody ever finds. So each use looks whether
  the file that was opened still has its name. Another file in its place is left alone until the next start: to it,
  the WAL that lies beside it would be poison.
- After an I/O error a second fsync proves nothing, because Linux marks the pages clean. The connection is made
  anew, and everything in the WAL is written and synced again, into the file, before anything else is.

Every method may block, and raises `LedgerUnusable`, `sqlite3.Error` or `OSError`. It does not know the rows.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from tproxy.store.migrate import LedgerUnusable, check, migrate

WAL_KEPT_BYTES = 64 << 20  # a WAL that a long reader let grow is cut back to this


class LedgerFile:
    """Lock, create (mode 0600) and open the file at `path`, and bring its schema up to date.

    Args:
        path: its directory must exist.
        now_us: the time, kept with the migrations that are applied.
        busy_seconds: how long a statement waits for a lock that another connection holds.
    """

    def __init__(self, path: Path, *, now_us: int, busy_seconds: float) -> None:
        self.path = path.resolve()
        self._busy_seconds = busy_seconds
        self._connection: sqlite3.Connection | None = None
        self._lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LedgerUnusable("another tproxy uses this ledger") from None
            # O_EXCL: a file that is there is not opened. Closing it again would drop this process's SQLite locks.
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            self._connection = self._connect()
            self._identity = self._look()
            migrate(self._connection, now_us=now_us)
        except BaseException:
            self.drop()
            os.close(self._lock)
            raise

    def ready(self) -> sqlite3.Connection:
        """The connection, made anew if it was dropped."""
        if self._look() != self._identity:
            raise LedgerUnusable("another file was put in its place; a restart takes that one")
        if self._connection is None:
            connection = self._connect()
            try:
                check(connection)
                if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    raise LedgerUnusable("a reader keeps the WAL from being written back")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def drop(self) -> None:
        """Let the connection go: it is not to be trusted any more."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def close(self) -> None:
        """Write the WAL back, as far as readers let it be, close, and give up the lock."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.drop()
        os.close(self._lock)

    def _look(self) -> tuple[int, int]:
        status = os.stat(self.path)
        return status.st_dev, status.st_ino

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw",
            uri=True,
            timeout=self._busy_seconds,
            isolation_level=None,  # transactions are begun and ended by name
            check_same_thread=False,  # opened in one thread, then the writer's alone
        )
        try:
            if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise LedgerUnusable("its file system does not support SQLite's WAL mode")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA fullfsync = ON")  # macOS: there a plain fsync stops at the drive's cache
            connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
        except BaseException:
            connection.close()
            raise
        return connection
