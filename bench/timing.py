"""Waiting to the microsecond, and phases that are the same in every run: for the upstream and the load."""

from __future__ import annotations

import ctypes
import select
import time

PR_SET_TIMERSLACK = 29  # prctl(2)
_64_BITS = (1 << 64) - 1


def sharp_timers() -> None:
    """Let the waits of this process end when they should: Linux may else add 50 µs to each."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


def wait(readiness: select.epoll, until_ns: int | None) -> list[tuple[int, int]]:
    """What is ready, as (descriptor, events), at the latest at a time of the monotonic clock; None: no such time.

    epoll_wait counts in ms, select in µs, so select waits for the epoll set. The set must be opened early in the
    process: select takes no descriptor above 1023.
    """
    timeout = None if until_ns is None else max(0.0, (until_ns - time.monotonic_ns()) / 1e9)
    select.select([readiness], [], [], timeout)
    return readiness.poll(0, 256)


def phase_us(number: int, interval_us: int) -> int:
    """Where in its interval the stream of this number stands: from 1 to the interval.

    As random, but the same in every run and in both loads (the splitmix64 generator).
    """
    mixed = (number + 1) * 0x9E3779B97F4A7C15 & _64_BITS
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _64_BITS
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _64_BITS
    return (mixed ^ (mixed >> 31)) % interval_us + 1
