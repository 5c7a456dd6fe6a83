"""One task that takes the turns of all paced streams.

A task of its own for each event's wait would cost more than all the rest of the event. So the streams that have a
pace lie in one heap by when their next turn is due; one task sleeps until the first is, takes all turns that are due,
and sleeps again. The schedule is open-loop: a turn is due when it is due, however late those before it were.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Never

import trio

_AT_ONCE = 64


@dataclass(slots=True)
class _Turns:
    """The turns of one stream. `step` is None once nobody waits for them."""

    step: Callable[[], bool] | None
    interval: float
    over: trio.Event = field(default_factory=trio.Event)
    fault: trio.BrokenResourceError | None = None


class Pacer:
    """Calls each stream's step on time; `run` must run beside the streams."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Turns]] = []
        self._number = itertools.count()
        self._added = trio.Event()

    async def turns(self, first: float, interval: float, step: Callable[[], bool]) -> None:
        """Have `step` called at `first`, and every `interval` seconds from then on until it returns False.

        Args:
            first: seconds on trio's clock.
            step: must not wait.

        Raises:
            trio.BrokenResourceError: `step` did.
        """
        turns = _Turns(step, interval)
        heapq.heappush(self._heap, (first, next(self._number), turns))
        self._added.set()
        try:
            await turns.over.wait()
        finally:
            turns.step = None
        if turns.fault is not None:
            raise turns.fault

    async def run(self) -> Never:
        """Take turns until cancelled."""
        while True:
            await trio.lowlevel.checkpoint()
            for _ in range(_AT_ONCE):
                if not self._heap or self._heap[0][0] > trio.current_time():
                    break
                self._take()
            else:
                continue
            self._added = trio.Event()
            with trio.move_on_at(self._heap[0][0] if self._heap else math.inf):
                await self._added.wait()

    def _take(self) -> None:
        due, number, turns = heapq.heappop(self._heap)
        if turns.step is None:
            return
        try:
            more = turns.step()
        except trio.BrokenResourceError as fault:
            turns.fault = fault
            more = False
        if more:
            heapq.heappush(self._heap, (due + turns.interval, number, turns))
        else:
            turns.over.set()
