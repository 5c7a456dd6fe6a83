"""Readiness of sockets from an epoll set of our own, beside trio's.

Trio registers a descriptor for each wait and takes it out after it, and each wait is a task that is woken. Here a
socket is registered once, edge-triggered, for its whole life, and what is ready is told to whoever looks after it:

- a task that waits in `Watch.readable`, or
- a function that takes the bytes on at once, without any task (`Watch.on_readable`; see `relay.py`),
- and, when the peer has shut down its side or reset the connection, `Watch.on_gone`, however much lies unread before
  that. So nobody has to wait on a socket only to see its peer leave.

One task for each run of trio waits for the set. It is a system task, as trio's own helpers are: it lives as long as
the run, owns nothing but the set, and does nothing by itself. What is registered belongs to the caller, who has to
`close` the watch before the socket.

Edge-triggered means: after an event, read until the kernel has no more before waiting again.

Linux only (`current` gives None elsewhere). This file knows nothing of what is read.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Callable

import trio

_AT_ONCE = 64  # events that are taken from the set at a time
_TURNS = 4  # how often the set is asked anew, when there was something, before trio's other tasks have their turn

_log = logging.getLogger("tproxy.wire")


class Watch:
    """One socket in the set.

    Attributes:
        fd: its descriptor.
        gone: the peer has shut down its sending side, or the connection has broken.
        on_gone: called when that is seen, once; or not at all if it had been seen before this was set.
        on_readable: if set, called in place of waking a task.
    """

    __slots__ = ("_poller", "_ready", "_task", "fd", "gone", "on_gone", "on_readable")

    def __init__(self, poller: Poller, fd: int) -> None:
        self.fd = fd
        self.gone = False
        self.on_gone: Callable[[], None] | None = None
        self.on_readable: Callable[[], None] | None = None
        self._poller: Poller | None = poller
        self._ready = False
        self._task: trio.lowlevel.Task | None = None

    async def readable(self) -> None:
        """Wait until something came since the last wait. To be called after a read found nothing; one task at a time.

        Raises:
            trio.ClosedResourceError: the watch was closed, now or before.
            trio.BusyResourceError: another task waits.
        """
        if self._ready or self._poller is None:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_open()
            self._ready = False
            return
        if self._task is not None:
            raise trio.BusyResourceError("another task waits for this socket")
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._check_open()
        self._ready = False

    def close(self) -> None:
        """Take the socket out of the set, and wake who waits for it. To be called before the socket is closed."""
        if self._poller is not None:
            self._poller._forget(self)
            self._poller = None
            self.on_gone = self.on_readable = None
            self._wake()

    def _check_open(self) -> None:
        if self._poller is None:
            raise trio.ClosedResourceError("the socket was closed")

    def _abort(self, _: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    def _event(self, gone: int) -> None:
        if gone and not self.gone:
            self.gone = True
            if self.on_gone is not None:
                self.on_gone()
        if self.on_readable is not None:
            self.on_readable()
        else:
            self._ready = True
            self._wake()


class Poller:
    """The set of one run of trio. See `current`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watches: dict[int, Watch] = {}

    def watch(self, fd: int) -> Watch:
        """Register a non-blocking socket.

        Raises:
            OSError: the kernel refuses.
        """
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        watch = self._watches[fd] = Watch(self, fd)
        return watch

    async def run(self) -> None:
        """Wait for the set and tell what is ready, until cancelled."""
        epoll, watches = self._epoll, self._watches
        gone = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
        try:
            while True:
                await trio.lowlevel.wait_readable(epoll.fileno())
                for _ in range(_TURNS):
                    events = epoll.poll(0, _AT_ONCE)
                    if not events:
                        break
                    for fd, flags in events:
                        watch = watches.get(fd)
                        if watch is None:  # an event before it has closed it
                            continue
                        try:
                            watch._event(flags & gone)
                        except Exception:  # one connection's trouble; the others go on
                            _log.exception("a socket's event could not be handled")
        finally:
            epoll.close()

    def _forget(self, watch: Watch) -> None:
        del self._watches[watch.fd]
        if not self._epoll.closed:
            self._epoll.unregister(watch.fd)


_current: trio.lowlevel.RunVar[Poller] = trio.lowlevel.RunVar("tproxy_poller")


def current() -> Poller | None:
    """The poller of this run of trio, which begins with the first call; None where there is no epoll."""
    try:
        return _current.get()
    except LookupError:
        if not hasattr(select, "epoll"):
            return None
        poller = Poller()
        _current.set(poller)
        trio.lowlevel.spawn_system_task(poller.run, context=None)
        return poller
