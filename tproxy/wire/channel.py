"""One client's socket: every write has a deadline, and whether the client is still there is always known.

What a trio stream leaves open is closed here, once, for plain and TLS connections alike:

- A write raises `ClientDisconnected` when the client left or took nothing for too long; the connection is then gone.
- A read gives b"" for every way in which a client can leave: FIN, RST, a broken TLS record.
- A client that shuts down its sending side alone (SHUT_WR) counts as one that left. RFC 9112 section 9.6 permits
  more; a proxy that waits minutes for a first byte cannot tell the two apart, and the tokens are paid for.
- `close` is orderly for the kernel, `reset` is an abort that no client takes for an end, `finish` closes so that
  the client can still read the answer though it has not stopped sending.

This file knows nothing of HTTP, and not how bytes are moved: `channel_kinds.py` does.
"""

from __future__ import annotations

import abc
import select
import socket
import struct
from collections.abc import Callable

import trio

READ_BYTES = 65536
LINGER_BYTES = 33554432
LINGER_SECONDS = 2

_ABORT = struct.pack("ii", 1, 0)  # struct linger: on, for 0 seconds
_HANGUP = getattr(select, "POLLRDHUP", 0)  # Linux has it; elsewhere only a reset shows, the rest at the next write
_AT_ONCE = 16  # reads and writes without waiting, before everybody else has a turn

Data = bytes | bytearray | memoryview


class ClientDisconnected(OSError):
    """The client left, or took nothing for too long. What ASGI 2.4 asks `send` to raise: an OSError."""


class Channel(abc.ABC):
    """The client's side of one connection, and the bytes that were read but not used yet.

    Args:
        raw: the connection's socket.
        write_seconds: how long a write may make no progress. A TLS write is all or nothing, so there it is the
            time for the whole of it.

    Attributes:
        pending: bytes that came before they were wanted, in order.
        gone: nothing more can be read or written.
        aborted: it is because a write was cancelled, and not because of the client.
    """

    __slots__ = ("_on_gone", "_scope", "_turns", "_write_seconds", "aborted", "gone", "pending", "socket")

    def __init__(self, raw: trio.socket.SocketType, write_seconds: float) -> None:
        self.socket = raw
        self.pending = bytearray()
        self.gone = False
        self.aborted = False
        self._write_seconds = write_seconds
        self._scope: trio.CancelScope | None = None  # of a write that waits
        self._on_gone: Callable[[], None] | None = None
        self._turns = 0

    @abc.abstractmethod
    def take(self, max_bytes: int = READ_BYTES) -> bytes | None:
        """What can be read without waiting; None if that is not known, b"" when the client has left."""

    @abc.abstractmethod
    async def read(self, max_bytes: int = READ_BYTES) -> bytes:
        """The next bytes, at most `max_bytes`; b"" when the client has left. One task at a time."""

    async def write(self, data: Data) -> None:
        """Send all of `data`; on a plain socket that takes it at once, in one system call. One task at a time.

        A cancelled write leaves half a message behind, so it aborts the connection.

        Raises:
            ClientDisconnected: the client is gone, now or during this write, or its time was up.
        """
        if self.gone:
            raise ClientDisconnected("the client has left")
        try:
            await self._breathe()
            rest = self._give(data)
            done = not rest or await self._wait_out(rest)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.reset()
            raise ClientDisconnected("the connection to the client broke") from error
        except trio.Cancelled:
            self.aborted = not self.gone
            self.reset()
            raise
        if not done:
            self.reset()
            raise ClientDisconnected("the client took nothing for too long, or left meanwhile")

    def attend(self, on_gone: Callable[[], None] | None) -> bool:
        """Have `on_gone` called, once, as soon as this channel is `gone`, for whatever reason; None: no more.

        Returns:
            False: nobody tells unless somebody reads, or asks `left`.
        """
        self._on_gone = on_gone
        return False

    def descriptor(self) -> int | None:
        """The descriptor, if one may write to it directly, here and now."""
        return None

    @property
    def unread(self) -> bool:
        """Whether the client has sent more than was read, as far as is known."""
        return bool(self.pending)

    def left(self) -> bool:
        """Whether the client's FIN or RST has come, however much lies unread before it.

        It is what poll(2) says of POLLRDHUP: for where reading is not possible. A FIN behind more bytes than the
        kernel has room for has not come yet; such a client is found out by the next write.
        """
        if self.socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self.socket.fileno(), _HANGUP)
        return bool(poll.poll(0))

    def leave(self) -> None:
        """Take note that the client is gone: a write that is under way ends, later ones do not begin."""
        if self.gone:
            return
        self.gone = True
        if self._scope is not None:
            self._scope.cancel()
        if self._on_gone is not None:
            self._on_gone()

    def close(self) -> None:
        """Close the socket. What was written is still delivered, unless the client sent what nobody read."""
        self.leave()
        self.pending.clear()
        self.socket.close()

    def reset(self) -> None:
        """Abort the connection: the client's next read fails, so that a cut cannot look like an end."""
        if self.socket.fileno() >= 0:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        self.close()

    async def finish(self, *, linger: bool) -> None:
        """Close after an answer.

        Args:
            linger: the client may still be sending. Closing over unread bytes makes the kernel send RST, which can
                destroy the answer on its way (RFC 9112 section 9.6), so they are read and dropped first, up to
                LINGER_BYTES and LINGER_SECONDS.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self.socket.shutdown(socket.SHUT_WR)
            if linger:
                with trio.move_on_after(LINGER_SECONDS):
                    await self._drop_input()
        except OSError:
            pass  # the client was quicker
        finally:
            self.close()

    def probe(self) -> None:
        """Have the kernel probe a silent client, so that one whose network vanished is not kept for ever."""
        if self.socket.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_KEEPIDLE"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 60)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)

    @abc.abstractmethod
    def _give(self, data: Data) -> Data:
        """Write what can be written without waiting; return the rest."""

    @abc.abstractmethod
    async def _push(self, data: Data, waiting: trio.CancelScope) -> None:
        """Write all of `data`, and move the deadline of `waiting` with each progress."""

    async def _wait_out(self, data: Data) -> bool:
        """Write all of `data`. False: the time was up, or the client left meanwhile."""
        self._scope = waiting = trio.CancelScope(deadline=trio.current_time() + self._write_seconds)
        try:
            with waiting:
                await self._push(data, waiting)
        finally:
            self._scope = None
        return not waiting.cancelled_caught

    async def _breathe(self) -> None:
        """A checkpoint for what need not wait: cancellation is seen at once, and others have their turn at times."""
        self._turns = (self._turns + 1) % _AT_ONCE
        if self._turns:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()

    async def _drop_input(self) -> None:
        dropped = 0
        while True:
            data = await self.socket.recv(READ_BYTES)
            dropped += len(data)
            if not data or dropped >= LINGER_BYTES:
                return
