"""A connected socket, plain or under TLS, that is read and written without waiting wherever that can be.

A link is waited on through one `Watch` for its whole life (`poller.py`); where there is no epoll, trio waits. To read
is to ask the socket first, and to wait only when it has nothing.

What it tells beside the bytes:

- How much has the kernel taken (`sent`)? A request may be sent again only if the answer is: nothing.
- Does the peer still take anything (`deaf`)? A write that fails is not raised: the peer may have left an answer before
  it stopped reading.
- Is it `quiet`? An idle connection on which anything at all can be read (an end, a reset, bytes that nobody asked for,
  a TLS alert) must not carry another request.

TLS is OpenSSL on the socket itself. It gives out one record a read: an upstream that writes each event as a record of
its own would cost us a write for each event, however many came together. So all records that have arrived are joined.
An end without close_notify is an error and never looks like a clean end (RFC 8446 section 6.1).
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import Literal

import trio

from tproxy.wire import poller

READ_BYTES = 65536
_RECORD_BYTES = 16384  # what one TLS record holds at most


class Link:
    """A plain connection.

    Args:
        sock: connected and non-blocking; the link closes it.
        write: seconds within which a write must make progress. A slow peer may take as long as it likes for a large
            piece; one that takes nothing for so long is done with.

    Attributes:
        watch: the socket in the poller; None where there is none.
        sent: bytes that the kernel may have taken, of TLS the plain ones. A record that is stuck halfway counts.
        deaf: why nothing more can be sent.
    """

    __slots__ = ("_broken", "_ended", "_fd", "_unread", "_write", "deaf", "sent", "socket", "watch")

    def __init__(self, sock: socket.socket, write: float) -> None:
        self.socket = sock
        self.sent = 0
        self.deaf: Literal["", "broken", "stalled"] = ""
        self._fd = sock.fileno()
        self._write = write
        self._unread = b""
        self._broken = False
        self._ended = False
        self.watch: poller.Watch | None = None
        with suppress(OSError):  # the kernel has no room for one more; trio asks for less
            epoll = poller.current()
            self.watch = None if epoll is None else epoll.watch(self._fd)

    def pull(self) -> bytes | None:
        """What has arrived, READ_BYTES at most; None if that is nothing, b"" at the end.

        If it is less than READ_BYTES, that was all there is now.

        Raises:
            OSError: the connection has broken. It is raised again by each later call.
        """
        if self._unread or self._broken:
            return self._set_aside()
        try:
            return self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            self._broken = True  # the kernel tells it once, and then speaks of an end
            raise

    def unread(self, data: bytes) -> None:
        """Let the next `pull` give these bytes, which the last one gave."""
        self._unread = data

    async def readable(self) -> None:
        """Wait until `pull` may give something. To be called when it gave nothing.

        Raises:
            trio.ClosedResourceError: the link was closed.
        """
        if self.watch is not None:
            await self.watch.readable()
        else:
            await trio.lowlevel.wait_readable(self._fd)

    def push(self, data: bytes | memoryview) -> int:
        """Give the kernel what it takes at once, and say how much that was: 0 also if the link is deaf by now."""
        if self.deaf:
            return 0
        try:
            taken = self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.deaf = "broken"
            return 0
        self.sent += taken
        return taken

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of `data`, or as much as can be until the link is `deaf`. Always lets others have their turn."""
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest and not self.deaf:
            taken = self.push(rest)
            rest = rest[taken:]
            if not taken and not self.deaf:
                with trio.move_on_after(self._write) as patience:
                    await trio.lowlevel.wait_writable(self._fd)
                if patience.cancelled_caught:
                    self.deaf = "stalled"

    def quiet(self) -> bool:
        """Whether nothing can be read: the state in which a sane idle connection is. Never waits."""
        if self._unread or self._ended or self._broken:
            return False
        try:
            # As of any socket: a TLS one would not peek.
            socket.socket.recv(self.socket, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def session(self) -> ssl.SSLSession | None:
        """The TLS session that a later connection may resume. TLS 1.3 has one only after the first answer was read."""
        return None

    def close(self, *, politely: bool = False) -> None:
        """Close the socket at once: the peer sees it now, whatever was under way. Safe more than once.

        Args:
            politely: of TLS, say so with a close_notify, if the socket takes it at once.
        """
        if self.watch is not None:
            self.watch.close()
        if self.socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._fd)
            self.socket.close()
            self._broken = True

    def _set_aside(self) -> bytes:
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        raise ConnectionResetError("the connection has broken or was closed")


class TlsLink(Link):
    """A connection under TLS, after its handshake."""

    __slots__ = ("_stuck", "tls")

    def __init__(self, sock: ssl.SSLSocket, write: float) -> None:
        super().__init__(sock, write)
        self.tls = sock
        self._stuck = 0  # bytes of the record that the kernel has taken in part, or not at all

    def pull(self) -> bytes | None:
        if self._unread or self._broken:
            return self._set_aside()
        if self._ended:
            return b""
        read = self.tls.read
        parts: list[bytes] = []
        left = READ_BYTES
        try:
            while left > 0:
                part = read(min(left, _RECORD_BYTES))
                if not part:
                    self._ended = True
                    break
                parts.append(part)
                left -= len(part)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not parts:
                return None
        except OSError:
            self._broken = True  # what came before it is good, and goes out first
            if not parts:
                raise
        if self.watch is not None and (self._ended or self._broken):
            self.watch.gone = True  # of what TLS has read already, the socket tells nobody
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def push(self, data: bytes | memoryview) -> int:
        if self._broken:
            self.deaf = "broken"
        if self.deaf:
            return 0
        record = data[:_RECORD_BYTES]
        try:
            taken = self.tls.write(record)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            self.sent += len(record) - self._stuck
            self._stuck = len(record)
            return 0
        except OSError:
            self.deaf = "broken"
            return 0
        self.sent += taken - self._stuck
        self._stuck = 0
        return taken

    def quiet(self) -> bool:
        return not self.tls.pending() and super().quiet()

    def session(self) -> ssl.SSLSession | None:
        session = self.tls.session
        return session if session is not None and (session.has_ticket or session.id) else None

    def close(self, *, politely: bool = False) -> None:
        if politely and not self.deaf and not self._broken and self.socket.fileno() != -1:
            with suppress(OSError):  # SSLWantReadError, too: it went out, and its answer is not waited for
                self.tls.unwrap()
        super().close()
