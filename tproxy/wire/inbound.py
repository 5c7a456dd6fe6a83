"""A client's connection from accept to close, in the place of hypercorn's own (`hypercorn.trio.run.TCPServer`).

hypercorn keeps the configuration, the sockets, TLS and the lifespan; `install` gives it this class for the
connections. The rules:

- A connection that breaks ends alone: no exception of it reaches hypercorn's nursery, only cancellation passes.
- It is HTTP/1.1 (and 1.0), one request at a time; what `opening.py` refuses is answered here, and then it closes.
- Two clocks: a head has `Bounds.head` seconds from its first byte (for the first request from accept, so that a
  silent client counts too); between requests a connection may idle for hypercorn's `keep_alive_timeout`.
- A client that leaves an idle connection is let go at once. When hypercorn shuts down, idle connections close at
  once; running exchanges finish, and then their connections close.
- One task serves a connection, the one that hypercorn starts. Only where nothing tells that a client leaves (see
  `channel_kinds.py`), there is another one beside it while a request is served.
- Memory: an idle connection holds no buffer, a streaming one at most what its client sent ahead (64 KiB).

This file knows nothing of what is served.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import hypercorn.trio.run
import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper
from hypercorn.utils import parse_socket_addr

from tproxy.wire.answer import error_answer
from tproxy.wire.asgi import Cycle, Transport
from tproxy.wire.channel import ClientDisconnected
from tproxy.wire.channel_kinds import Stream, channel_of
from tproxy.wire.idle import idle_waits
from tproxy.wire.opening import Opening, Refused, head_end, open_request
from tproxy.wire.scope import Message, http_scope

__all__ = ["Bounds", "ClientDisconnected", "Connection", "Transport", "install"]

HANDSHAKE_SECONDS = 10

_log = logging.getLogger("tproxy.wire")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one client may take of us.

    Attributes:
        head: seconds for a request's head.
        write: seconds in which a write must make progress.
        max_header_bytes: of a request's head, request line and empty line included.
        max_headers: header fields of a request.
    """

    head: float = 10
    write: float = 60
    max_header_bytes: int = 65536
    max_headers: int = 100


def install(bounds: Bounds) -> None:
    """Have hypercorn's trio worker serve with `Connection`, and offer HTTP/1.1 alone in TLS.

    To be called before `hypercorn.trio.serve`; under hypercorn's command, when the application is imported.
    A configuration that names other `alpn_protocols` itself gets no HTTP/2: such a connection is closed.
    """
    hypercorn.trio.run.TCPServer = functools.partial(Connection, bounds)  # type: ignore[assignment, attr-defined]
    Config.alpn_protocols = ["http/1.1"]


class Connection:
    """One accepted connection; awaiting it serves it until it is closed.

    Args:
        bounds: what it may take.
        app, config, context, state, stream: as hypercorn passes them; the stream is a `trio.SSLStream` whose
            handshake is still to be done, or a `trio.SocketStream`.
    """

    __slots__ = (
        "_app",
        "_bounds",
        "_channel",
        "_config",
        "_context",
        "_facts",
        "_idle",
        "_served",
        "_state",
        "_stream",
    )

    def __init__(
        self,
        bounds: Bounds,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        state: Message,
        stream: Stream,
    ) -> None:
        self._bounds = bounds
        self._app = app
        self._config = config
        self._context = context
        self._state = state
        self._stream = stream
        self._channel = channel_of(stream, bounds.write)
        self._idle = idle_waits(context)
        self._facts: Message = {}
        self._served = 0

    def __await__(self) -> Generator[Any, Any, None]:
        return self.run().__await__()

    async def run(self) -> None:
        """Serve until the connection ends. Nothing but cancellation is raised."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            if await self._begin():
                while await self._serve():
                    pass
        except* Exception as group:
            _log.error("a connection failed; it alone ends", exc_info=group)
        finally:
            self._channel.close()

    async def _begin(self) -> bool:
        """Do the TLS handshake and learn who is at the other end. False where there is nobody to serve."""
        await trio.lowlevel.checkpoint_if_cancelled()
        secure = isinstance(self._stream, trio.SSLStream)
        if isinstance(self._stream, trio.SSLStream):
            try:
                with trio.fail_after(min(self._config.ssl_handshake_timeout, HANDSHAKE_SECONDS)):
                    await self._stream.do_handshake()
            except (trio.BrokenResourceError, trio.TooSlowError):
                return False
            if self._stream.selected_alpn_protocol() not in (None, "http/1.1"):
                return False
        socket = self._channel.socket
        try:
            self._channel.probe()
            self._facts = {
                "scheme": "https" if secure else "http",
                "root_path": self._config.root_path,
                "client": parse_socket_addr(socket.family, socket.getpeername()),
                "server": parse_socket_addr(socket.family, socket.getsockname()),
            }
        except OSError:  # reset before it was looked at
            return False
        return True

    async def _serve(self) -> bool:
        """Serve one request. Whether another may follow."""
        try:
            head = await self._next_head()
            if not head:
                return False
            opening = self._open(head)
            transport = Transport(opening.target, opening.headers, opening.http_version)
            transport.draining = self._context.terminated.is_set
            cycle = Cycle(self._channel, opening, transport, self._closing)
        except Refused as refused:
            await self._refuse(refused)
            return False
        scope = http_scope(opening, transport, self._facts, self._state)
        del head, opening, transport
        self._served += 1
        await self._context.mark_request()
        return await cycle.run(self._app, scope)

    async def _next_head(self) -> bytes:
        """The next request's head; b"" when none will come: the client left, idled too long, or we shut down.

        Raises:
            Refused: it is malformed, too long or too slow.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        pending = self._channel.pending
        limit = self._bounds.max_header_bytes
        first = self._served == 0
        until = trio.current_time() + (self._bounds.head if first else self._config.keep_alive_timeout)
        begun = first
        seen = 0
        while True:
            while pending.startswith(b"\r\n"):  # RFC 9112 section 2.2; it begins no request
                del pending[:2]
                seen = 0
            if pending:
                if end := head_end(pending, seen, limit):
                    head = bytes(pending[:end])
                    del pending[:end]
                    return head
                seen = len(pending)
                if not begun and pending != b"\r":  # which may still become an empty line
                    begun = True
                    until = trio.current_time() + self._bounds.head
            data = self._channel.take(limit + 1 - seen)
            if data is None:
                data = await self._more_of_head(until, limit + 1 - seen)
            if not data:
                return b""
            pending += data

    async def _more_of_head(self, until: float, max_bytes: int) -> bytes:
        """Wait for more; as `_next_head`, b"" when none will come. Shutting down ends the wait before a head alone."""
        begun = bool(self._channel.pending)
        if not begun and self._context.terminated.is_set():
            await trio.lowlevel.checkpoint_if_cancelled()
            return b""
        data = b""
        with trio.CancelScope(deadline=until) as waiting:
            if not begun:
                self._idle.add(waiting)
            try:
                data = await self._channel.read(max_bytes)
            finally:
                self._idle.discard(waiting)
        if waiting.cancelled_caught and begun:
            raise Refused(408, f"The request head took longer than {self._bounds.head:g} seconds.")
        return data

    def _open(self, head: bytes) -> Opening:
        opening = open_request(head, max_bytes=self._bounds.max_header_bytes, max_headers=self._bounds.max_headers)
        names = self._config.server_names
        if names and opening.host.decode("latin-1") not in names:
            raise Refused(421, "This server does not answer to that Host.")
        return opening

    def _closing(self) -> bool:
        return self._context.terminated.is_set() or self._served >= self._config.keep_alive_max_requests

    async def _refuse(self, refused: Refused) -> None:
        with contextlib.suppress(ClientDisconnected):
            await self._channel.write(error_answer(refused.status, refused.fault))
        await self._channel.finish(linger=True)
