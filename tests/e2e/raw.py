"""A client that says exactly the bytes it is given, and keeps the answer exactly as it came.

    answer = await ask(house.address, get("/v1/models"))
    assert answer.body == b"..."

`parse` is for the other end: a request as an upstream received it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import h11
import trio

Header = tuple[bytes, bytes]


def values(headers: Iterable[Header], name: str) -> list[bytes]:
    """The values of all lines of that name, in any spelling."""
    return [value for given, value in headers if given.lower() == name.lower().encode()]


@dataclass(frozen=True)
class Answer:
    """One final response. `head` is as it was on the wire, `body` is without its framing."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def reason(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0].split(b" ", 2)[2]

    @property
    def headers(self) -> list[Header]:
        return lines(self.head)

    def get(self, name: str) -> bytes:
        """The value of the one line of that name."""
        [value] = values(self.headers, name)
        return value

    @property
    def id(self) -> str:
        """The exchange's id."""
        return self.get("x-tproxy-id").decode()


def lines(head: bytes) -> list[Header]:
    """The header lines of a head, their spelling, order and blanks kept but for one space after the colon."""
    found = []
    for line in head.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        found.append((name, value.removeprefix(b" ")))
    return found


def request(
    method: str, target: str, headers: Sequence[tuple[str, str]] = (), body: bytes = b"", *, host: str = "proxy.test"
) -> bytes:
    """A request. It is framed by its length, if it has a body and its headers do not frame it."""
    fields = [("Host", host), *headers]
    if body and not {"content-length", "transfer-encoding"} & {name.lower() for name, _ in fields}:
        fields.append(("Content-Length", str(len(body))))
    head = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def post(target: str, body: bytes, *headers: tuple[str, str]) -> bytes:
    """A POST of JSON with a key that access mode `open` takes."""
    return request("POST", target, [("x-api-key", "sk-any"), ("content-type", "application/json"), *headers], body)


def get(target: str, *headers: tuple[str, str]) -> bytes:
    """A GET with a key that access mode `open` takes."""
    return request("GET", target, [("x-api-key", "sk-any"), *headers])


def chunked(body: bytes, size: int = 1024, *, trailers: bytes = b"") -> bytes:
    """A body in chunks of `size` bytes (RFC 9112 section 7.1)."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailers + b"\r\n"


async def ask(address: tuple[str, int], *pieces: bytes) -> Answer:
    """Send a request on a connection of its own, in these pieces, and read the answer to its end.

    Raises:
        h11.RemoteProtocolError: it is not HTTP, or was cut.
    """
    found: Answer | h11.RemoteProtocolError
    with trio.fail_after(20):
        async with await trio.open_tcp_stream(*address) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(_send, stream, pieces)
            try:
                found = await read_answer(stream, pieces[0].split(b" ", 1)[0])
            except h11.RemoteProtocolError as cut:  # the nursery would wrap it
                found = cut
            nursery.cancel_scope.cancel()
    if isinstance(found, h11.RemoteProtocolError):
        raise found
    return found


async def _send(stream: trio.SocketStream, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        await stream.send_all(piece)


async def read_answer(stream: trio.abc.ReceiveStream, method: bytes = b"GET") -> Answer:
    """Read one answer."""
    received = bytearray()
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    http.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    http.send(h11.EndOfMessage())
    body: list[bytes] = []
    while True:
        await trio.lowlevel.checkpoint()
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = bytes(await stream.receive_some(1 << 18))
            received += data if not body else b""
            http.receive_data(data)
        elif isinstance(event, h11.Data):
            body.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            assert not http.trailing_data[0], "bytes after the end of the answer"
            return Answer(_head(bytes(received)), b"".join(body))


def _head(received: bytes) -> bytes:
    """The final head, without the interim ones before it."""
    head, end, rest = received.partition(b"\r\n\r\n")
    return _head(rest) if head.split(b" ", 2)[1].startswith(b"1") else head + end


@dataclass(frozen=True)
class Arrived:
    """A request as an upstream got it: `head` as it was on the wire, `body` without its framing."""

    head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def headers(self) -> list[Header]:
        return lines(self.head)


def parse(data: bytes | bytearray) -> Arrived:
    """Read the one request that was received."""
    received = bytes(data)
    head, end, _ = received.partition(b"\r\n\r\n")
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    http.receive_data(received)
    body: list[bytes] = []
    while not isinstance(event := http.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA, "the request is not whole"
        if isinstance(event, h11.Data):
            body.append(bytes(event.data))
    assert not http.trailing_data[0], "bytes after the end of the request"
    return Arrived(head + end, b"".join(body))
