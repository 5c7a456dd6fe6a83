from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from tproxy.store.inbox import Inbox

Step = Callable[[Inbox[int]], None]

WAIT, LINGER = 5.0, 0.25


class Bell:
    """In place of the lock: what would happen while the taker waits for it happens at once."""

    def __init__(self, inbox: Inbox[int], steps: list[Step]) -> None:
        self.inbox = inbox
        self.steps = steps
        self.waits: list[float] = []
        self.rung = 0

    def acquire(self, timeout: float) -> bool:
        self.waits.append(timeout)
        if not self.rung and self.steps:
            self.steps.pop(0)(self.inbox)
        rung, self.rung = self.rung, 0
        return rung > 0

    def locked(self) -> bool:
        return not self.rung

    def release(self) -> None:
        self.rung += 1


def _put(number: int, *, urgent: bool) -> Step:
    return lambda inbox: inbox.put(number, urgent=urgent)


def _both(inbox: Inbox[int]) -> None:
    inbox.put(1, urgent=False)
    inbox.put(2, urgent=True)


@pytest.mark.parametrize(
    ("steps", "taken", "ended", "waits"),
    [
        ([], [], False, [WAIT]),
        ([_put(1, urgent=True)], [1], False, [WAIT]),
        ([_put(1, urgent=False)], [1], False, [WAIT, LINGER]),
        ([_put(1, urgent=False), _put(2, urgent=True)], [1, 2], False, [WAIT, LINGER]),
        ([_both], [1, 2], False, [WAIT]),
        ([Inbox.end], [], True, [WAIT]),
        ([_put(1, urgent=False), Inbox.end], [1], True, [WAIT, LINGER]),
    ],
    ids=["nothing", "urgent", "patient", "urgent in the linger", "both at once", "end", "end in the linger"],
)
def test_how_long_it_is_waited(steps: list[Step], taken: list[int], ended: bool, waits: list[float]) -> None:
    inbox: Inbox[int] = Inbox()
    bell = Bell(inbox, steps)
    inbox._bell = bell  # type: ignore[assignment]
    assert inbox.take(0, WAIT, LINGER) == (taken, ended)
    assert bell.waits == waits
    assert len(inbox) == 0


def test_what_is_urgent_is_so_once() -> None:
    inbox: Inbox[int] = Inbox()
    bell = Bell(inbox, [_put(1, urgent=True), _put(2, urgent=False)])
    inbox._bell = bell  # type: ignore[assignment]
    assert inbox.take(0, WAIT, LINGER) == ([1], False)
    assert inbox.take(0, WAIT, LINGER) == ([2], False)
    assert bell.waits == [WAIT, WAIT, LINGER]


@pytest.mark.parametrize(
    ("urgencies", "rings"),
    [([False], 1), ([False, False, False], 1), ([False, True], 2), ([True, False], 1), ([True, True], 2)],
    ids=["first", "patient after it", "urgent after it", "patient after urgent", "all urgent"],
)
def test_when_it_rings(urgencies: list[bool], rings: int) -> None:
    inbox: Inbox[int] = Inbox()
    heard = 0
    for number, urgent in enumerate(urgencies):
        inbox.put(number, urgent=urgent)
        heard += inbox._bell.acquire(blocking=False)
    assert heard == rings
    assert len(inbox) == len(urgencies)


@pytest.mark.parametrize("linger", [0.0, 60.0])
def test_nothing_is_lost_between_two_threads(linger: float) -> None:
    """With a linger of a minute, whatever an urgent item fails to wake would be missed."""
    inbox: Inbox[int] = Inbox()
    dice = random.Random(3)
    taken: list[int] = []
    progress = threading.Semaphore(0)

    def take() -> None:
        ended = False
        while not ended:
            items, ended = inbox.take(0, 60, linger)
            taken.extend(items)
            progress.release()

    thread = threading.Thread(target=take)
    thread.start()
    for number in range(3_000):
        urgent = dice.random() < 0.3
        inbox.put(number, urgent=urgent)
        if urgent and dice.random() < 0.1:
            assert progress.acquire(timeout=10)
    inbox.end()
    thread.join(10)
    assert not thread.is_alive()
    assert taken == list(range(3_000))


@pytest.mark.parametrize(("ended", "rests"), [(False, [2.0]), (True, [])], ids=["in use", "at the end"])
def test_the_taker_rests_but_not_at_the_end(monkeypatch: pytest.MonkeyPatch, ended: bool, rests: list[float]) -> None:
    monkeypatch.setattr("tproxy.store.inbox.time.monotonic", lambda: 100.0)
    inbox: Inbox[int] = Inbox()
    inbox.put(1, urgent=True)
    if ended:
        inbox.end()
    bell = Bell(inbox, [_put(2, urgent=False)])
    inbox._end = bell  # type: ignore[assignment]
    assert inbox.take(102.0, 0, 0) == ([1] if ended else [1, 2], ended)  # what comes in the rest is taken too
    assert inbox.take(99.0, 0, 0)[0] == []
    assert bell.waits == rests


def test_the_end_ends_the_rest() -> None:
    inbox: Inbox[int] = Inbox()
    inbox.put(1, urgent=True)
    taken: list[tuple[list[int], bool]] = []
    thread = threading.Thread(target=lambda: taken.append(inbox.take(time.monotonic() + 60, 60, 60)))
    thread.start()
    inbox.end()
    thread.join(10)
    assert taken == [([1], True)]
