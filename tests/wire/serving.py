"""A real server for the inbound tests: hypercorn on loopback with our connection class, and raw clients for it.

    async with serving(app) as server:
        client = await server.connect()
        await client.send(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        answer = await client.answer()

Tests in which time matters take pytest-trio's `mock_clock`: time then stands still until the test moves it on,
while the sockets stay real. `settle` waits until both sides have done all they can.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import h11
import hypercorn.trio
import trio
import trio.testing
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework

from tproxy.wire.inbound import Bounds, ClientDisconnected, install

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
settle = trio.testing.wait_all_tasks_blocked


@dataclass(frozen=True)
class Answer:
    """One response as the client got it."""

    status: int
    head: bytes
    headers: dict[str, str]
    body: bytes


@dataclass
class Client:
    """The client's end of a connection."""

    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    unread: bytes = b""

    @property
    def socket(self) -> trio.socket.SocketType:
        stream = self.stream
        return stream.transport_stream.socket if isinstance(stream, trio.SSLStream) else stream.socket

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive(self) -> bytes:
        """What one read brings; b"" at the end.

        Raises:
            trio.BrokenResourceError: the server reset the connection.
        """
        return bytes(await self.stream.receive_some(1 << 20))

    async def rest(self) -> bytes:
        """Everything up to the end."""
        data, self.unread = self.unread, b""
        while piece := await self.receive():
            data += piece
        return data

    async def answer(self, method: str = "GET") -> Answer:
        """The next response, as h11's client reads it.

        Raises:
            h11.RemoteProtocolError: it was cut.
        """
        await trio.lowlevel.checkpoint()
        http = h11.Connection(h11.CLIENT)
        http.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        http.send(h11.EndOfMessage())
        head = b""
        response: h11.Response | None = None
        body = b""
        http.receive_data(self.unread) if self.unread else None
        received = self.unread
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                data = await self.receive()
                received += data
                http.receive_data(data)
            elif isinstance(event, h11.Response):
                response = event
                head = received.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise AssertionError(f"unexpected {event!r}")
        self.unread = http.trailing_data[0]
        assert response is not None
        headers = {name.decode(): value.decode() for name, value in response.headers}
        return Answer(response.status_code, head, headers, body)

    def close(self) -> None:
        """Leave as a program does that closes its socket: FIN, or RST where it has left bytes unread."""
        self.socket.close()

    def reset(self) -> None:
        """Leave with RST."""
        self.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()


@dataclass
class Server:
    """A running server.

    Attributes:
        address: host and port, or the path of a UNIX socket.
        shutdown: set it to have the server drain.
        stopped: set when `serve` has returned.
    """

    address: tuple[str, int] | str
    shutdown: trio.Event = field(default_factory=trio.Event)
    stopped: trio.Event = field(default_factory=trio.Event)
    clients: list[Client] = field(default_factory=list)

    async def connect(self, tls: ssl.SSLContext | None = None, receive_buffer: int | None = None) -> Client:
        """A new connection; over TLS its handshake is done.

        Args:
            receive_buffer: SO_RCVBUF, for clients that should fill up soon.
        """
        family = trio.socket.AF_UNIX if isinstance(self.address, str) else trio.socket.AF_INET
        socket = trio.socket.socket(family)
        if receive_buffer is not None:
            socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
        try:
            await socket.connect(self.address)
        except OSError:
            socket.close()
            raise
        client = Client(trio.SocketStream(socket))
        if tls is not None:
            stream = trio.SSLStream(
                cast(trio.SocketStream, client.stream), tls, server_hostname="localhost", https_compatible=True
            )
            client = Client(stream)
            await stream.do_handshake()
        self.clients.append(client)
        return client

    async def get(self) -> Answer:
        """One exchange on a connection of its own."""
        client = await self.connect()
        await client.send(GET)
        answer = await client.answer()
        client.close()
        return answer


@asynccontextmanager
async def serving(
    app: App, bounds: Bounds | None = None, *, bind: str = "127.0.0.1:0", **settings: Any
) -> AsyncIterator[Server]:
    """A server with `app` behind it; ended with the block, and with everything that is still connected.

    An assertion that fails in the application fails the test.

    Args:
        settings: hypercorn's.
    """

    async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                await send({"type": (await receive())["type"] + ".complete"})
        await trio.lowlevel.checkpoint()
        try:
            await app(scope, receive, send)
        except* AssertionError as group:
            failed.append(group)
            nursery.cancel_scope.cancel()

    async def serve(task_status: trio.TaskStatus[list[str]]) -> None:
        application = cast(ASGIFramework, wrapped)
        trigger = server.shutdown.wait
        async with trio.open_nursery() as inner:
            task_status.started(
                await inner.start(
                    partial(hypercorn.trio.serve, application, config, shutdown_trigger=trigger, mode="asgi")
                )
            )
        server.stopped.set()

    failed: list[BaseException] = []
    install(bounds or Bounds())
    config = Config()
    config.bind = [bind]
    config.errorlog = None
    for name, value in settings.items():
        setattr(config, name, value)
    server = Server(bind.removeprefix("unix:"))
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(serve)
        if not bind.startswith("unix:"):
            server.address = ("127.0.0.1", int(urls[0].rpartition(":")[2]))
        try:
            yield server
        finally:
            for client in server.clients:
                client.close()
            nursery.cancel_scope.cancel()
    if failed:
        raise failed[0]


async def body_of(receive: Receive) -> bytes:
    """The whole request body, as an application reads it.

    Raises:
        ClientDisconnected: the client left before it had sent it.
    """
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        body += bytes(message["body"])
        if not message["more_body"]:
            return body


async def answer_with(
    send: Send, body: bytes = b"ok", status: int = 200, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """A small answer with Content-Length."""
    given = headers if headers is not None else [(b"Content-Length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": given})
    await send({"type": "http.response.body", "body": body})


async def ok(scope: Message, receive: Receive, send: Send) -> None:
    """The plainest application: reads the body, says ok."""
    await body_of(receive)
    await answer_with(send)
