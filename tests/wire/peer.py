"""A scripted peer: a real socket on loopback that plays the upstream, byte for byte as the test says.

A script is an async function that is given the peer's end of one connection. The first connection gets the first
script, the second the second, and all further ones the last:

    async def cut(line: Line) -> None:
        await line.request()
        await line.send(b"HTTP/1.1 200 OK\\r\\ncontent-length: 10\\r\\n\\r\\n", b"12345")

    async with peer(cut, answers(OK)) as upstream:
        pool = Pool(upstream.origin, Bounds(), None)
        ...
        assert upstream.lines[0].requests[0].body == b"hello"

When its script returns, a connection is closed. Pieces given to one `send` reach the client in reads of their own.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import h11
import trio
import trio.testing
import trustme

from tproxy.errors import Header
from tproxy.wire.pool import Origin

CA = trustme.CA()
OTHER_CA = trustme.CA()

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@dataclass(frozen=True)
class Request:
    """A request as the peer got it: names in the client's spelling."""

    method: bytes
    target: bytes
    headers: list[Header]
    body: bytes


@dataclass
class Line:
    """The peer's end of one connection.

    Attributes:
        received: all bytes that the client sent, of TLS the plain ones.
        requests: those that were read whole.
        done: set when a script made by `answers` has said its last; or by the test, to wake one that is `deaf`.
        ending: what was last seen of the client: "open", "end" (of TLS: with a close_notify) or "cut".
        gone: set when the client was seen to leave, which only a script that reads can see, or the script is done.
    """

    stream: trio.abc.Stream
    socket: trio.SocketStream
    received: bytearray = field(default_factory=bytearray)
    requests: list[Request] = field(default_factory=list)
    ending: str = "open"
    done: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)
    _unread: bytes = b""

    async def receive(self) -> bytes:
        """Some bytes; b"" when the client has left, however it did."""
        await trio.lowlevel.checkpoint()
        try:
            data = bytes(await self.stream.receive_some(65536))
            self.ending = "open" if data else "end"
        except trio.BrokenResourceError:
            data, self.ending = b"", "cut"
        if not data:
            self.gone.set()
        self.received += data
        return data

    async def request(self) -> Request | None:
        """The next request, whole; None when the client left instead."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        http.receive_data(self._unread) if self._unread else None
        head: h11.Request | None = None
        body = bytearray()
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            event = http.next_event()
            if event is h11.NEED_DATA:
                if not (data := await self.receive()):
                    return None
                http.receive_data(data)
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                assert isinstance(event, h11.EndOfMessage)
                assert head is not None
                self._unread = http.trailing_data[0]
                found = Request(head.method, head.target, head.headers.raw_items(), bytes(body))
                self.requests.append(found)
                return found

    async def send(self, *pieces: bytes) -> None:
        """Send pieces, each when the client has taken in the one before."""
        await trio.lowlevel.checkpoint_if_cancelled()
        for i, piece in enumerate(pieces):
            if i:
                await trio.testing.wait_all_tasks_blocked()
            if piece:
                await self.stream.send_all(piece)

    async def wait_gone(self) -> None:
        """Read, and forget, until the client leaves."""
        while await self.receive():
            pass

    def cut(self) -> None:
        """End the TCP connection now, without a close_notify."""
        self.socket.socket.close()

    def reset(self) -> None:
        """End the TCP connection with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.socket.close()


Script = Callable[[Line], Awaitable[None]]


def answers(*responses: bytes | Sequence[bytes], then: Callable[[Line], None] | None = None) -> Script:
    """A script that answers the first request with the first response, and so on.

    After the last it stays until the client leaves; with `then` (`Line.cut`, `Line.reset`), it does that instead.
    """

    async def script(line: Line) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        for response in responses:
            if await line.request() is None:
                return
            await line.send(*([response] if isinstance(response, bytes) else response))
        if then is not None:
            await trio.testing.wait_all_tasks_blocked()
            then(line)
        line.done.set()
        if then is None:
            await line.wait_gone()

    return script


def answers_early(*pieces: bytes) -> Script:
    """A script that answers as soon as anything of a request has come, and reads on until the client leaves."""

    async def script(line: Line) -> None:
        if await line.receive():
            await line.send(*pieces)
            await line.wait_gone()

    return script


async def close(line: Line) -> None:
    """A script that reads one request and closes without an answer."""
    await line.request()


async def silence(line: Line) -> None:
    """A script that reads and never answers."""
    await line.wait_gone()


async def hang_up(line: Line) -> None:
    """A script that closes, without a word, as soon as the client has said anything."""
    await line.receive()
    line.cut()


async def deaf(line: Line) -> None:
    """A script that neither reads nor answers; it looks up when the test says so."""
    await line.done.wait()
    await line.wait_gone()


@dataclass
class Peer:
    """`lines` are the connections in the order of their arrival."""

    origin: Origin
    lines: list[Line] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many requests arrived whole, on all connections."""
        return sum(len(line.requests) for line in self.lines)


@asynccontextmanager
async def peer(*scripts: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    """Serve the scripts on a loopback port until the context ends."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listener.socket.getsockname()[1]
    found = Peer(Origin("http" if tls is None else "https", "127.0.0.1", port))

    async def serve(sock: trio.SocketStream) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        script = scripts[min(len(found.lines), len(scripts) - 1)]
        line = Line(sock if tls is None else trio.SSLStream(sock, tls, server_side=True), sock)
        found.lines.append(line)
        try:
            if isinstance(line.stream, trio.SSLStream):
                await line.stream.do_handshake()
            await script(line)
            await line.stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client left, or the script itself cut the line
        finally:
            line.gone.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, [listener])
        yield found
        nursery.cancel_scope.cancel()


def server_context(
    name: str = "127.0.0.1",
    *,
    ca: trustme.CA = CA,
    not_after: datetime | None = None,
    version: ssl.TLSVersion | None = None,
    self_signed: bool = False,
) -> ssl.SSLContext:
    """For `peer(tls=...)`: a certificate for `name`, signed by `ca`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if self_signed:
        with trustme.Blob(OTHER_CA.private_key_pem.bytes() + OTHER_CA.cert_pem.bytes()).tempfile() as pem:
            context.load_cert_chain(pem)
    else:
        ca.issue_cert(name, not_after=not_after).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


class Names(trio.abc.HostnameResolver):
    """A resolver that knows what the test tells it; a name without addresses is never answered."""

    def __init__(self, addresses: dict[str, list[tuple[str, int]]]) -> None:
        self.addresses = addresses

    async def getaddrinfo(self, host: Any, *_: Any, **__: Any) -> list[Any]:
        await trio.lowlevel.checkpoint()
        name = host.decode() if isinstance(host, bytes) else host
        if name not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if not self.addresses[name]:
            await trio.sleep_forever()
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in self.addresses[name]]

    async def getnameinfo(self, *_: Any, **__: Any) -> tuple[str, str]:
        raise NotImplementedError


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port that answers no SYN: its queue is full, and nobody accepts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        waiting = []
        for _ in range(3):
            waiting.append(sock := socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        yield port
        for sock in waiting:
            sock.close()


def resolve(**names: list[tuple[str, int]]) -> None:
    """For the rest of the test, let `api.test` have the addresses given as `api`. With none, it is never answered."""
    trio.socket.set_custom_hostname_resolver(Names({f"{name}.test": found for name, found in names.items()}))
