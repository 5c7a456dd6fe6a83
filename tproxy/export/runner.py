"""One sink at work: from its cursor on, batch by batch, for as long as it is in the settings.

    rest ──► read after the cursor ──► send ──► keep the cursor ──┐
      ▲               ▲                 │ not taken               │
      │               └── back off ◄────┘ (the batch is held)     │
      └───────────────────────────────────────────────────────────┘

- A batch is held from when it is read until it is taken, so one that was not taken is given again as it was, and no
  more than one is in memory, however long a receiver is away.
- The back-off doubles from one second to `BACK_OFF_MAX`, with a share of chance. What a receiver says itself is waited
  for; what it refuses for good is tried again with the longest.
- One warning when a sink begins to fail, one line when it takes again.
- In the end it has what is left of `LAST_SECONDS` to send what is there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio

from tproxy.errors import LedgerUnavailable
from tproxy.export.sink import SEND_SECONDS, NotTaken, Sink
from tproxy.store.feed import Settled
from tproxy.store.migrate import LedgerUnusable

BACK_OFF_FIRST: Final = 1.0
BACK_OFF_MAX: Final = 60.0
LAST_SECONDS: Final = 2.0
CLOSE_SECONDS: Final = 2.0

log = structlog.get_logger("tproxy.export")


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """How one sink does.

    Attributes:
        behind: how many exchanges it has not taken, as of the last second.
        last_us: when it last took some, microseconds since the epoch; None: not yet.
        failures: how often a batch was not taken, since the process began.
        fault: why the last one was not; None: it was.
    """

    name: str
    behind: int
    last_us: int | None
    failures: int
    fault: str | None


class Source(Protocol):
    """What a runner reads from, and keeps its cursor in; shared by all."""

    @property
    def newest(self) -> int:
        """The number of the newest exchange, as of the last second."""

    async def grown(self) -> None:
        """Return when `newest` has."""

    async def look(self) -> None:
        """Bring `newest` up to date, with all that has been closed before.

        Raises:
            LedgerUnavailable: that is not known.
        """

    async def after(self, seq: int, limit: int) -> Sequence[Settled]:
        """The first exchanges after that number.

        Raises:
            LedgerUnusable: they cannot be read.
        """

    async def keep(self, sink: str, seq: int) -> None:
        """Keep a cursor.

        Raises:
            LedgerUnavailable: it is not kept.
        """

    def now_us(self) -> int:
        """Microseconds since the epoch."""


class Runner:
    """Runs `sink` from the exchange after `seq` on.

    Args:
        kept: whether that cursor is in the ledger; else it is put there first.
        last_us: when it moved last.
        chance: where the jitter comes from.
    """

    def __init__(
        self,
        sink: Sink,
        source: Source,
        seq: int,
        *,
        kept: bool,
        last_us: int | None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.sink = sink
        self.seq = seq  # all up to it have been taken
        self.kept = seq if kept else -1  # so the ledger says
        self.last_us = last_us
        self.failures = 0
        self.fault: str | None = None
        self._source = source
        self._chance = chance
        self._opened = False
        self._held: Sequence[Settled] = ()
        self._in_a_row = 0
        self._limit = sink.batch
        self._scope = trio.CancelScope()
        self._finished = trio.Event()

    @property
    def status(self) -> SinkStatus:
        behind = max(self._source.newest - self.seq, 0)
        return SinkStatus(self.sink.name, behind, self.last_us, self.failures, self.fault)

    async def run(self) -> None:
        """Go on until cancelled; then send what is there."""
        try:
            with self._scope:
                while True:
                    if self._opened:
                        await self._rest()
                    await trio.sleep(await self._turn())
        finally:
            with trio.CancelScope(shield=True):
                if not self._scope.cancel_called:
                    with trio.move_on_after(LAST_SECONDS):
                        await self._last()
                with trio.move_on_after(CLOSE_SECONDS):
                    await self._close()
            self._finished.set()

    async def stop(self) -> None:
        """End without sending anything more, and return when the sink is closed."""
        self._scope.cancel()
        await self._finished.wait()

    async def _rest(self) -> None:
        """Wait until there is something to send, and then as long as the sink likes to gather."""
        if self._held:
            return
        if self.kept != self.seq:
            await self._keep()
        while self._source.newest <= self.seq:
            await self._source.grown()
        with trio.move_on_after(self.sink.linger):
            while self._source.newest - self.seq < self.sink.batch:
                await self._source.grown()

    async def _turn(self) -> float:
        """Open the sink, or send one batch. Returns for how many seconds not to try again."""
        try:
            await self._send()
        except NotTaken as fault:
            return self._failed(fault)
        except LedgerUnusable:
            return self._failed(NotTaken("the ledger cannot be read"))
        except trio.TooSlowError:
            return self._failed(NotTaken(f"it took more than {SEND_SECONDS:g} s"))
        except Exception as fault:
            if self.fault is None:
                log.exception("an export failed", sink=self.sink.name)
            return self._failed(NotTaken(f"a fault of ours: {type(fault).__name__}"))
        return 0.0

    async def _send(self) -> None:
        if not self._opened:
            with trio.fail_after(SEND_SECONDS):
                await self.sink.open()
            self._opened = True
            return
        if not self._held:
            self._held = await self._source.after(self.seq, self._limit)
        if not self._held:  # retention has taken all that there was
            self.seq = self._source.newest
            return
        with trio.fail_after(SEND_SECONDS):
            await self.sink.send(self._held)
        self.seq, self.last_us = self._held[-1].seq, self._source.now_us()
        self._held = ()
        self._limit = min(self._limit * 2, self.sink.batch)
        if self.fault is not None:
            log.info("an export takes exchanges again", sink=self.sink.name, failed=self._in_a_row)
        self._in_a_row, self.fault = 0, None
        await self._keep()

    async def _keep(self) -> None:
        seq = self.seq
        try:
            await self._source.keep(self.sink.name, seq)
            self.kept = seq
        except LedgerUnavailable:
            await trio.sleep(BACK_OFF_FIRST)  # nothing new is settled either; it is kept with the next batch, or later

    def _failed(self, fault: NotTaken) -> float:
        self.failures += 1
        self._in_a_row += 1
        if self.fault is None:
            log.warning("an export does not take exchanges", sink=self.sink.name, why=fault.why)
        self.fault = fault.why
        if fault.too_large and len(self._held) > 1:
            self._limit = len(self._held) // 2
            self._held = ()
            return 0.0
        if fault.final:
            return BACK_OFF_MAX
        seconds = min(BACK_OFF_FIRST * 2.0 ** min(self._in_a_row - 1, 10), BACK_OFF_MAX)
        seconds *= 0.5 + self._chance() / 2
        return max(seconds, fault.retry_after or 0.0)

    async def _last(self) -> None:
        try:
            await self._source.look()
            while (self._held or self._source.newest > self.seq) and not await self._turn():
                pass
        except LedgerUnavailable:
            pass  # the next start goes on from the cursor

    async def _close(self) -> None:
        try:
            await self.sink.aclose()
        except Exception:
            log.exception("an export could not be closed", sink=self.sink.name)
