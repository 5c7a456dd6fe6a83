"""A ledger in memory: the reference that the drivers are compared with, and the one that flow tests use.

It writes at once, unless a test says otherwise: `hold` makes tickets wait, `fail` makes the ledger unwritable.
`rows` has the form of `reading.exchange`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import trio

from tproxy.errors import LedgerUnavailable
from tproxy.store.base import LOST, OPEN, Closing, Opening


class MemoryTicket:
    def __init__(self, fault: str | None, held: trio.Event | None) -> None:
        self._fault = fault
        self._held = held

    async def durable(self) -> None:
        if self._held is not None:
            await self._held.wait()
        else:
            await trio.lowlevel.checkpoint()
        if self._fault is not None:
            raise LedgerUnavailable(self._fault)


class MemoryLedger:
    """A `base.Ledger`. `faults` holds what a driver would tell `on_fault`."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.faults: list[str] = []
        self.writable = True
        self._held: trio.Event | None = None
        self._running: dict[str, Opening | None] = {}  # None: the open was refused
        self._kept: list[tuple[Closing, Opening | None]] = []

    def hold(self) -> None:
        """From now on, `durable()` waits."""
        self._held = trio.Event()

    def release(self) -> None:
        if self._held is not None:
            self._held.set()
        self._held = None

    def fail(self) -> None:
        """From now on, nothing can be written."""
        self.writable = False

    def mend(self) -> None:
        self.writable = True
        kept, self._kept = self._kept, []
        for closing, opening in kept:
            self._end(closing, opening)

    def crash(self, now_us: int) -> int:
        """Die and start again; returns how many rows were found open."""
        self._running.clear()
        self._kept.clear()
        lost = [row for row in self.rows.values() if row["ended"] == OPEN]
        for row in lost:
            row.update(ended=LOST, ended_us=now_us)
        self.mend()
        return len(lost)

    def open(self, opening: Opening) -> MemoryTicket:
        if opening.id in self._running:
            return self._refuse(f"{opening.id} is open already")
        self._running[opening.id] = opening
        if not self.writable:
            return MemoryTicket("the ledger cannot be written", self._held)
        if opening.id in self.rows:
            self._running[opening.id] = None
            return self._refuse(f"{opening.id} has a row already")
        self._insert(opening)
        return MemoryTicket(None, self._held)

    def note(self, closing: Closing) -> None:
        if closing.ended != OPEN:
            self.faults.append(f"note of {closing.id} refused")
        elif closing.id in self._running and self.writable:
            self._update(closing)

    def close(self, closing: Closing) -> None:
        if closing.ended == OPEN or closing.id not in self._running:
            self.faults.append(f"close of {closing.id} refused")
            return
        opening = self._running.pop(closing.id)
        if self.writable:
            self._end(closing, opening)
        else:
            self._kept.append((closing, opening))

    def _end(self, closing: Closing, opening: Opening | None) -> None:
        if opening is not None and opening.id not in self.rows:
            self._insert(opening)
        if not self._update(closing):
            self.faults.append(f"close of {closing.id} refused")

    def _insert(self, opening: Opening) -> None:
        row = asdict(Closing(id=opening.id, ended=OPEN)) | asdict(opening)
        self.rows[opening.id] = row | {"tags": list(opening.tags)}

    def _update(self, closing: Closing) -> bool:
        row = self.rows.get(closing.id)
        if row is None or row["ended"] != OPEN:
            return False
        row.update(asdict(closing))
        return True

    def _refuse(self, message: str) -> MemoryTicket:
        self.faults.append(message)
        return MemoryTicket(message, self._held)
