"""Every alert to every channel: each has a queue and a task of its own, so that one that hangs holds up no other.

What is not taken is tried again, later each time, for `GIVE_UP_SECONDS`. A queue that is full loses its oldest. Both
are lines of the log, which has been told of every alert at once. What is still queued when the process ends is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

import structlog
import trio

from tproxy.alert.alert import Alert
from tproxy.alert.channel import Channel
from tproxy.export.sink import NotTaken

NAMES: Final = ("webhook", "slack", "email")

QUEUED_MAX: Final = 200
SEND_SECONDS: Final = 30.0
GIVE_UP_SECONDS: Final = 900.0
PAUSES: Final = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0)  # the last one again and again

log = structlog.get_logger("tproxy.alert")


class Delivery:
    """Attributes:
    channels: those that are set, by their name; another mapping may take its place at any time.
    delivered, lost: how many deliveries there were, and how many were given up.
    """

    def __init__(self, channels: Mapping[str, Channel]) -> None:
        self.channels = channels
        self.delivered = 0
        self.lost = 0
        self._queues: dict[str, deque[Alert]] = {name: deque() for name in NAMES}
        self._more = {name: trio.Event() for name in NAMES}

    def put(self, alert: Alert) -> None:
        """Send it by all channels, when their turn comes. Never waits, never raises."""
        for name in NAMES:
            if name not in self.channels:
                continue
            queue = self._queues[name]
            if len(queue) >= QUEUED_MAX:
                self._lose(name, queue.popleft(), "too many wait")
            queue.append(alert)
            self._more[name].set()

    async def run(self) -> None:
        """Deliver, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                for name in NAMES:
                    nursery.start_soon(self._deliver, name)
        finally:
            waiting = {name: len(queue) for name, queue in self._queues.items() if queue}
            if waiting:
                log.warning("alerts are not delivered, the process ends", **waiting)

    async def try_now(self, name: str, alert: Alert) -> None:
        """Deliver at once, and once.

        Raises:
            NotTaken: it was not taken, or there is no such channel.
        """
        channel = self.channels.get(name)
        if channel is None:
            raise NotTaken("not set", final=True)
        try:
            with trio.fail_after(SEND_SECONDS):
                await channel.send(alert)
        except trio.TooSlowError:
            raise NotTaken(f"no answer within {SEND_SECONDS:g} s") from None
        except NotTaken:
            raise
        except Exception as bug:
            # The message of an error of a library may hold the address.
            raise NotTaken(type(bug).__name__) from None

    async def _deliver(self, name: str) -> None:
        queue = self._queues[name]
        while True:
            await self._more[name].wait()
            while queue:
                await self._one(name, queue[0])
            self._more[name] = trio.Event()

    async def _one(self, name: str, alert: Alert) -> None:
        """Deliver the first of a queue, or give it up; then it is no longer in it."""
        queue, ends, tries = self._queues[name], trio.current_time() + GIVE_UP_SECONDS, 0
        while queue and queue[0] is alert:  # it may have been lost to a newer one
            if name not in self.channels:  # it was, when this was put
                self._lose(name, queue.popleft(), "not set any more")
                return
            try:
                await self.try_now(name, alert)
            except NotTaken as fault:
                if fault.final or trio.current_time() >= ends:
                    if queue and queue[0] is alert:
                        self._lose(name, queue.popleft(), str(fault))
                    return
                log.info("an alert is sent again later", channel=name, kind=alert.kind, why=str(fault))
                pause = PAUSES[min(tries, len(PAUSES) - 1)]
                await trio.sleep(max(pause, min(fault.retry_after or 0.0, GIVE_UP_SECONDS)))
                tries += 1
            else:
                self.delivered += 1
                if queue and queue[0] is alert:
                    queue.popleft()
                return

    def _lose(self, name: str, alert: Alert, why: str) -> None:
        self.lost += 1
        log.error("an alert is not delivered", channel=name, kind=alert.kind, of=alert.name, why=why)
