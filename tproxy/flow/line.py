"""Who waits for money that other exchanges hold: one line for each subject, first come first served.

Only the first of a line is woken when money of that subject comes free. It tries; if it is let in, the next one tries
at once, for there may be enough for two. So what comes free is tried for by as many as it lets in and one more, however
many wait.

An exchange that has just come tries before it stands in line: it may be small enough for what is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import trio

Subject = tuple[str, str]


class Line:
    """All lines, by kind and id. Bounded by the exchanges that wait, each of which has a deadline."""

    def __init__(self) -> None:
        self._lines: dict[Subject, deque[trio.Event]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    @contextmanager
    def place(self, subject: Subject) -> Iterator[trio.Event]:
        """Stand in line. The event is set once nobody stands before."""
        line = self._lines.setdefault(subject, deque())
        first = trio.Event()
        line.append(first)
        if len(line) == 1:
            first.set()
        try:
            yield first
        finally:
            was_first = line[0] is first
            line.remove(first)
            if not line:
                del self._lines[subject]
            elif was_first:
                line[0].set()
