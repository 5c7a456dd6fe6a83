"""What the management side works with: who is known, the ledger's file, and what the process knows of itself.

What a reload can change is a function here, asked anew each time.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo

import trio

from tproxy.capture.shelf import Shelf
from tproxy.protocol.pricing import PriceBook
from tproxy.store.directory import Directory
from tproxy.store.reading import reading

T = TypeVar("T")

READERS = 4
READ_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Desk:
    """What every route has in hand.

    Attributes:
        directory: who is known; the only way to change it.
        database: the ledger's file, for reading.
        clock: wall-clock microseconds since the epoch.
        zone: where the days and months of budgets begin.
        master: the SHA-256 of the master key in hex; None if there is none, and then there is no management API.
        prices: what is billed by.
        models: the ids of the models that have a price.
        unready: why no traffic should be sent here, or None.
        running: how many requests to the upstream are being served now.
        mode: the `budget_mode` of budgets that name none.
        captures: where captured bodies are kept; None where that is not known.
        threads: bounds how many reads run at a time, so that they take no thread that others need.
    """

    directory: Directory
    database: Path
    clock: Callable[[], int]
    zone: Callable[[], ZoneInfo]
    master: Callable[[], str | None]
    prices: Callable[[], PriceBook]
    models: Callable[[], Sequence[str]]
    unready: Callable[[], str | None]
    running: Callable[[], int]
    mode: Callable[[], str]
    captures: Callable[[], Shelf | None] = lambda: None
    threads: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(READERS))

    async def look(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Run `read` in a thread on a connection of its own that cannot write, and that sees one state of the file.

        Raises:
            LedgerUnusable: the file cannot be read, or not within `READ_SECONDS`; and whatever `read` raises.
        """

        def reads() -> T:
            with reading(self.database) as connection:
                ends = time.monotonic() + READ_SECONDS
                connection.set_progress_handler(lambda: time.monotonic() > ends, 100_000)
                return read(connection)

        return await trio.to_thread.run_sync(reads, limiter=self.threads)
