"""How a client's bytes are moved: the two kinds of channel, and which one a connection gets (`channel_of`).

- `SocketChannel` works on the descriptor itself. What the kernel does at once costs a system call and no more, and
  the poller tells when the client leaves, however much lies unread before that.
- `StreamChannel` goes through trio's stream, for TLS and for platforms without epoll. There somebody has to read, or
  to ask now and then, to see the client leave.

This file knows nothing of HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from tproxy.wire import poller
from tproxy.wire.channel import READ_BYTES, Channel, Data
from tproxy.wire.poller import Watch

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class SocketChannel(Channel):
    """A plain connection, on its descriptor.

    Args:
        watch: the socket in the poller; this channel closes it.
    """

    __slots__ = ("_drained", "_fd", "_watch")

    def __init__(self, raw: trio.socket.SocketType, write_seconds: float, watch: Watch) -> None:
        super().__init__(raw, write_seconds)
        self._fd = watch.fd
        self._watch = watch
        self._drained = False  # the kernel had no more than the last read took; the watch tells of what comes after

    def take(self, max_bytes: int = READ_BYTES) -> bytes | None:
        # An end that came together with the last bytes is told once, and may have been told before they were read.
        if self._drained and not self._watch.gone:
            return None
        try:
            data = os.read(self._fd, max_bytes)
        except BlockingIOError:
            self._drained = True
            return None
        except OSError:
            data = b""
        self._drained = len(data) < max_bytes
        if not data:
            self.leave()
        return data

    async def read(self, max_bytes: int = READ_BYTES) -> bytes:
        await self._breathe()
        while (data := self.take(max_bytes)) is None:
            try:
                await self._watch.readable()
            except trio.ClosedResourceError:
                await trio.lowlevel.checkpoint_if_cancelled()
                self.leave()
                return b""
            self._drained = False
        return data

    def attend(self, on_gone: Callable[[], None] | None) -> bool:
        self._on_gone = on_gone
        if on_gone is None:
            self._watch.on_gone = None
        else:
            self._watch.on_gone = self.leave
            if self._watch.gone:
                self.leave()
        return True

    def descriptor(self) -> int | None:
        return None if self.gone or self._scope is not None else self._fd

    @property
    def unread(self) -> bool:
        if not self.pending:
            self._drained = False
            self.pending += self.take() or b""
        return bool(self.pending)

    def close(self) -> None:
        self._watch.close()
        self._fd = -1
        super().close()

    def _give(self, data: Data) -> Data:
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            return data
        return memoryview(data)[sent:] if sent < len(data) else b""

    async def _push(self, data: Data, waiting: trio.CancelScope) -> None:
        rest = memoryview(data)
        while rest:
            await trio.lowlevel.wait_writable(self._fd)
            taken = len(rest)
            rest = memoryview(self._give(rest))
            if len(rest) < taken:
                waiting.deadline = trio.current_time() + self._write_seconds


class StreamChannel(Channel):
    """A connection through trio's stream: TLS, or plain where there is no poller."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream, write_seconds: float) -> None:
        super().__init__(_socket_of(stream), write_seconds)
        self._stream = stream

    def take(self, max_bytes: int = READ_BYTES) -> bytes | None:
        return None

    async def read(self, max_bytes: int = READ_BYTES) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.lowlevel.checkpoint_if_cancelled()
            data = b""
        if not data:
            self.leave()
        return data

    def _give(self, data: Data) -> Data:
        return data

    async def _push(self, data: Data, waiting: trio.CancelScope) -> None:
        if isinstance(self._stream, trio.SSLStream):
            await self._stream.send_all(data)
            return
        rest = memoryview(data)
        while rest:
            rest = rest[await self.socket.send(rest) :]
            waiting.deadline = trio.current_time() + self._write_seconds


def channel_of(stream: Stream, write_seconds: float) -> Channel:
    """The channel for what a listener accepted; a TLS stream may still have its handshake before it.

    Args:
        stream: a plain one is not used beside the channel.
        write_seconds: see `Channel`.
    """
    polling = None if isinstance(stream, trio.SSLStream) else poller.current()
    if polling is not None:
        raw = _socket_of(stream)
        try:
            return SocketChannel(raw, write_seconds, polling.watch(raw.fileno()))
        except OSError:  # the kernel has no room for one more; trio asks for less
            pass
    return StreamChannel(stream, write_seconds)


def _socket_of(stream: Stream) -> trio.socket.SocketType:
    return stream.transport_stream.socket if isinstance(stream, trio.SSLStream) else stream.socket
