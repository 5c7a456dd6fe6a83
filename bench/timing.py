"""Waiting to the microsecond, for the upstream and the load."""

from __future__ import annotations

import ctypes
import select
import time

PR_SET_TIMERSLACK = 29  # prctl(2)


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
