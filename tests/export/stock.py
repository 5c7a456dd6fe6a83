"""Exchanges to send, where a runner reads them from, and a ledger that has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.store.laws import T0, make_closing, make_opening
from tproxy.errors import LedgerUnavailable
from tproxy.export.sink import NotTaken
from tproxy.settings import Settings, load
from tproxy.store.feed import Settled
from tproxy.store.sqlite import SqliteLedger, open_ledger


def settled(number: int, **closing: Any) -> Settled:
    return Settled(number, make_opening(number), make_closing(number, **closing))


ROUNDS = 5000  # more are a loop without a wait, in which a clock that jumps would stand still


class Shelf:
    """A `runner.Source` in memory.

    Attributes:
        reads: the numbers and limits that were asked for.
        kept: the cursors, each in its turn.
        out: the ledger cannot be written.
    """

    def __init__(self, count: int = 0) -> None:
        self.exchanges = [settled(number) for number in range(1, count + 1)]
        self.reads: list[tuple[int, int]] = []
        self.kept: list[int] = []
        self.out = False
        self._grown = trio.Event()

    @property
    def newest(self) -> int:
        return self.exchanges[-1].seq if self.exchanges else 0

    def add(self, count: int) -> None:
        self.exchanges += [settled(self.newest + number) for number in range(1, count + 1)]
        self._grown.set()
        self._grown = trio.Event()

    async def grown(self) -> None:
        await self._grown.wait()

    async def look(self) -> None:
        await trio.lowlevel.checkpoint()

    async def after(self, seq: int, limit: int) -> Sequence[Settled]:
        await trio.lowlevel.checkpoint()
        self.reads.append((seq, limit))
        assert len(self.reads) < ROUNDS
        return [one for one in self.exchanges if one.seq > seq][:limit]

    async def keep(self, sink: str, seq: int) -> None:
        await trio.lowlevel.checkpoint()
        if self.out:
            raise LedgerUnavailable("out")
        self.kept.append(seq)

    def now_us(self) -> int:
        return T0


class Scripted:
    """A sink that does as it is told.

    Attributes:
        faults: what the next sends raise, each in its turn; None is taken.
        down: what every send raises; None: it is up.
        tries: when each was made, and with which numbers.
        taken: the numbers that were.
    """

    def __init__(self, name: str = "scripted", batch: int = 500, linger: float = 0.0) -> None:
        self.name = name
        self.batch = batch
        self.linger = linger
        self.faults: list[Exception | None] = []
        self.down: Exception | None = None
        self.hangs = False
        self.tries: list[tuple[float, list[int]]] = []
        self.taken: list[int] = []
        self.opened = 0
        self.closed = 0

    @property
    def times(self) -> list[float]:
        return [time for time, _ in self.tries]

    async def open(self) -> None:
        self.opened += 1

    async def send(self, settled: Sequence[Settled]) -> None:
        numbers = [one.seq for one in settled]
        self.tries.append((trio.current_time(), numbers))
        assert len(self.tries) < ROUNDS
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep(3600)  # an end, so that a test fails where nobody gives it up
        fault = self.faults.pop(0) if self.faults else self.down
        if fault is not None:
            raise fault
        self.taken += numbers

    async def aclose(self) -> None:
        self.closed += 1


DOWN = NotTaken("it answered 503")


def with_export(folder: Path, tables: str = "") -> Settings:
    """Settings with these tables, and the ledger in `folder`."""
    path = folder / "config.toml"
    path.write_text(f'[tproxy]\ndatabase = "sqlite:books.db"\naccess = "open"\n{tables}\n')
    return load(path, {"ANTHROPIC_API_KEY": "sk-ant-real"})


@asynccontextmanager
async def books(folder: Path) -> AsyncIterator[SqliteLedger]:
    async with open_ledger(folder / "books.db") as ledger:
        yield ledger


def settle(ledger: SqliteLedger, numbers: Sequence[int]) -> None:
    """Let exchanges begin and end."""
    for number in numbers:
        ledger.open(make_opening(number))
        ledger.close(make_closing(number))


def id_of(number: int) -> str:
    return make_opening(number).id
