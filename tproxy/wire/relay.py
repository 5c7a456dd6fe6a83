"""The fast path: a running answer from the upstream's socket to the client's, without a task.

In the steady state of a stream an event is one read from the one socket and one write to the other. `relay` takes both
from the exchange and does just that whenever the poller says that something has come. As soon as anything else is the
case, it gives them back, and the exchange goes on with the plain path, which knows how to wait:

- the bytes that came are not whole chunks of a chunked body, or are its end,
- the upstream has closed, or its connection broke,
- the client's socket does not take all at once, or its connection broke.

Nothing is decided here. What cannot be taken on is handed back as it came (`Source.unread`), or is told as what
remains to be written, so that both paths give the same bytes. A slow client is thus off the fast path, and holds what
one read brought.

The caller owns both ends throughout, and waits meanwhile: `relay` is cancelled as any wait is, and then has let go.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import trio

from tproxy.protocol.chunked import whole_chunks
from tproxy.wire.link import READ_BYTES
from tproxy.wire.poller import Watch

__all__ = ["READ_BYTES", "Relay", "Source"]


class Source(Protocol):
    """The upstream's side: between two chunks of a chunked body, with nothing read ahead.

    Attributes:
        watch: its socket in the poller.
    """

    watch: Watch

    def pull(self) -> bytes | None:
        """What the socket has now; None if that is nothing, b"" at its end. Less than READ_BYTES: that was all.

        Raises:
            OSError: the connection has broken. The next plain read says so, too.
        """

    def unread(self, data: bytes) -> None:
        """Let the next plain read begin with these bytes, which `pull` gave."""


class Relay:
    """One answer on the fast path.

    Args:
        source: where it comes from.
        sink: the descriptor of the client's socket, non-blocking, in the midst of a chunked answer.
        on_piece: called with the body bytes of each read, when all of them are on their way.

    Attributes:
        last: when something was last taken on, in seconds of trio's clock.
        piece, unsent: what was read last, if the client's socket took only part of it: its body bytes, and the rest
            that is still to be written as it is.
    """

    __slots__ = ("_fault", "_on_piece", "_sink", "_source", "_stopped", "_task", "last", "piece", "unsent")

    def __init__(self, source: Source, sink: int, on_piece: Callable[[bytes], None]) -> None:
        self._source = source
        self._sink = sink
        self._on_piece = on_piece
        self._task: trio.lowlevel.Task | None = None
        self._stopped = False
        self._fault: Exception | None = None
        self.last = trio.current_time()
        self.piece = self.unsent = b""

    async def run(self) -> None:
        """Relay until the plain path has to go on, or `stop` is called.

        After a cancellation it may be run again, which takes nothing on if it had come to a stop meanwhile.
        """
        watch = self._source.watch
        try:
            if not self._stopped:
                watch.on_readable = self._step
                self._step()  # of what has come before, no event tells
            if self._stopped:
                await trio.lowlevel.checkpoint()
            else:
                self._task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort)
        finally:
            watch.on_readable = None
        if self._fault is not None:
            raise self._fault

    def stop(self) -> None:
        """Let the plain path go on."""
        self._stopped = True
        self._source.watch.on_readable = None
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    def _abort(self, _: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _step(self) -> None:
        try:
            if not self._take_on():
                self.stop()
        except OSError:  # the plain path will meet it
            self.stop()
        except Exception as exc:  # nobody but the exchange may have the trouble
            self._fault = exc
            self.stop()

    def _take_on(self) -> bool:
        """Take on what has come. False: the plain path has to."""
        data = self._source.pull()
        if data is None:
            return True
        piece = whole_chunks(data)
        if piece is None:
            if data:
                self._source.unread(data)
            return False
        self.last = trio.current_time()
        try:
            sent = os.write(self._sink, data)
        except OSError:  # it takes nothing now, or never again
            self._source.unread(data)
            return False
        if sent < len(data):
            self.piece, self.unsent = piece, data[sent:]
            return False
        self._on_piece(piece)
        # Of a full read, and of an end that came with it, no further event tells.
        return len(data) < READ_BYTES and not self._source.watch.gone
