"""What the loop queues for the ledger's thread, and when that thread wakes.

What somebody waits for, or soon will, wakes it at once. What nobody waits for, such as the end of an exchange, only
wakes it if nothing else is queued, and may then linger for a moment: most often an opening comes by meanwhile, and
all are written with one commit. The order is kept: what was queued before an opening is written with it or before it.
A taker that rests between two batches is not woken by anything but the end.

One thread puts, one takes; no lock is held while either does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """A queue of one giver and one taker. Its bound is the giver's to keep (`len`).

    Attributes:
        since: when the oldest item was put (`time.monotonic`); meaningless while there is none.
        taken_since: the same of what was taken last.
    """

    def __init__(self) -> None:
        self.since = self.taken_since = 0.0
        self._items: deque[T] = deque()
        self._urgent = False
        self._ended = False
        self._bell = threading.Lock()  # locked while it is silent
        self._bell.acquire()
        self._end = threading.Lock()  # locked until it has come
        self._end.acquire()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, *, urgent: bool) -> None:
        """Queue an item; `urgent`: it does not linger, nor does what was queued before it."""
        if not self._items:
            self.since = time.monotonic()
        self._items.append(item)
        if urgent:
            self._urgent = True
        if urgent or len(self._items) == 1:
            self._ring()

    def end(self) -> None:
        """Nothing will be put any more, and nothing lingers. Once only."""
        self._ended = self._urgent = True
        self._end.release()
        self._ring()

    def take(self, not_before: float, wait_seconds: float, linger_seconds: float) -> tuple[list[T], bool]:
        """All that is queued, and whether that is the end.

        Waits until `not_before` (`time.monotonic`) unless the end has come, whatever is put meanwhile; then at most
        `wait_seconds` for the first item, then at most `linger_seconds` for one that is urgent.
        """
        rest = not_before - time.monotonic()
        if rest > 0 and not self._ended:
            self._end.acquire(timeout=rest)
        if self._bell.acquire(timeout=wait_seconds) and not self._urgent:
            self._bell.acquire(timeout=linger_seconds)
        self._urgent = False  # before it is looked what there is: what comes now rings again
        self.taken_since = self.since
        ended, items = self._ended, []
        while self._items:
            items.append(self._items.popleft())
        return items, ended

    def _ring(self) -> None:
        if self._bell.locked():
            self._bell.release()
