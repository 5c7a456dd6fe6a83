"""The fast path between two real sockets: what it takes on, and how it gives back what it does not."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from tests.cuts import every_cut
from tproxy.wire.poller import Watch, current
from tproxy.wire.relay import READ_BYTES, Relay


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def linked() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


class Plain:
    """A source on a plain socket."""

    def __init__(self, sock: socket.socket) -> None:
        poller = current()
        assert poller is not None
        self.watch: Watch = poller.watch(sock.fileno())
        self.back: list[bytes] = []
        self._sock = sock

    def pull(self) -> bytes | None:
        try:
            return self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return None

    def unread(self, data: bytes) -> None:
        self.back.append(data)


@dataclass
class Line:
    """upstream ► source | relay | sink ► client"""

    upstream: socket.socket
    near: socket.socket
    sink: socket.socket
    client: socket.socket
    pieces: list[bytes] = field(default_factory=list)
    source: Plain = field(init=False)

    def relay(self, on_piece: Callable[[bytes], None] | None = None) -> Relay:
        self.source = Plain(self.near)
        return Relay(self.source, self.sink.fileno(), on_piece or self.pieces.append)

    def received(self) -> bytes:
        try:
            return self.client.recv(1_000_000)
        except BlockingIOError:
            return b""


@pytest.fixture
def line() -> Iterator[Line]:
    near, upstream = linked()
    sink, client = linked()
    with near, upstream, sink, client:
        yield Line(upstream, near, sink, client)


async def until_blocked() -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)


async def test_takes_on_whole_chunks_as_they_are(line: Line, nursery: trio.Nursery) -> None:
    relay = line.relay()
    line.upstream.send(chunk(b"before"))
    nursery.start_soon(relay.run)
    for data in (chunk(b"one"), b"003\r\ntwo\r\n" + chunk(b"three"), chunk(b"x" * 5000)):
        await until_blocked()
        line.upstream.send(data)
    await until_blocked()
    assert line.received() == chunk(b"before") + chunk(b"one") + b"003\r\ntwo\r\n" + chunk(b"three") + chunk(
        b"x" * 5000
    )
    assert line.pieces == [b"before", b"one", b"twothree", b"x" * 5000]
    assert line.source.back == []
    line.source.watch.close()
    nursery.cancel_scope.cancel()


NOT_WHOLE = {
    "the last chunk": b"0\r\n\r\n",
    "a chunk, and the last": chunk(b"x") + b"0\r\n\r\n",
    "half a chunk": b"5\r\nhel",
    "a chunk and a half": chunk(b"x") + b"5\r\nhel",
    "an extension": b"1;a\r\nx\r\n",
    "not a chunk at all": b"HTTP/1.1",
}


@pytest.mark.parametrize("data", NOT_WHOLE.values(), ids=NOT_WHOLE)
@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "at the start"])
async def test_gives_back_what_is_not_whole_chunks(data: bytes, waits: bool, line: Line) -> None:
    relay = line.relay()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            if not waits:
                line.upstream.send(data)
            nursery.start_soon(relay.run)
            if waits:
                await until_blocked()
                line.upstream.send(data)
    assert (line.source.back, line.pieces, line.received()) == ([data], [], b"")
    assert (relay.unsent, line.source.watch.on_readable) == (b"", None)
    line.source.watch.close()


async def test_every_cut_of_a_body_gives_the_same_bytes(line: Line) -> None:
    """What is not taken on is given back, so that together nothing is lost, doubled or out of order."""
    body = chunk(b"hello") + chunk(b"\r\n0\r\n\r\n") + chunk(b"z" * 40)
    for pieces in every_cut(body):
        relay = line.relay()
        rest = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            for piece in pieces:
                await until_blocked()
                line.upstream.send(piece)
            await until_blocked()
            nursery.cancel_scope.cancel()
        while (more := line.source.pull()) is not None:
            rest += more
        assert line.received() + b"".join(line.source.back) + rest == body
        line.source.watch.close()


async def test_ends_with_the_upstream(line: Line) -> None:
    relay = line.relay()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            await until_blocked()
            line.upstream.send(chunk(b"last words"))
            line.upstream.close()
    assert (line.pieces, line.source.back, line.received()) == ([b"last words"], [], chunk(b"last words"))
    assert line.source.pull() == b""
    line.source.watch.close()


async def test_a_client_that_takes_nothing_more(line: Line) -> None:
    """It leaves the fast path with what one read brought, of which the rest is still to be written as it is."""
    line.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    relay = line.relay()
    sent = 0
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            while line.source.watch.on_readable is not None or not sent:
                sent += line.upstream.send(chunk(b"x" * 10_000))
                await until_blocked()
    if relay.unsent:
        assert chunk(relay.piece).endswith(relay.unsent)
        assert line.source.back == []
    else:
        assert line.source.back == [chunk(b"x" * 10_000)]
    taken = b""
    while data := line.received():
        taken += data
        await until_blocked()
    assert len(taken) + len(relay.unsent) + sum(map(len, line.source.back)) == sent
    line.source.watch.close()


async def test_a_client_that_has_reset(line: Line) -> None:
    relay = line.relay()
    line.client.close()
    line.sink.send(b"the kernel answers with a reset")
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            await until_blocked()
            line.upstream.send(chunk(b"x"))
    assert (line.source.back, line.pieces, relay.unsent) == ([chunk(b"x")], [], b"")
    line.source.watch.close()


async def test_a_full_read_goes_back_to_the_plain_path(line: Line) -> None:
    """Of what a read left in the kernel, no event tells."""
    line.near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 400_000)
    relay = line.relay()
    data = chunk(b"x" * (READ_BYTES // 2 - 8)) * 2
    assert len(data) == READ_BYTES
    line.upstream.send(data)
    await until_blocked()
    with trio.fail_after(1):
        await relay.run()
    line.source.watch.close()


async def test_stopped_by_hand_and_run_again_after_a_cancellation(line: Line) -> None:
    relay = line.relay()
    with trio.move_on_after(0.01) as scope:
        await relay.run()
    assert scope.cancelled_caught
    assert line.source.watch.on_readable is None
    line.upstream.send(chunk(b"meanwhile"))
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            await until_blocked()
            assert line.received() == chunk(b"meanwhile")
            relay.stop()
    assert line.source.watch.on_readable is None
    line.source.watch.close()


async def test_trouble_in_the_books_is_the_exchanges(line: Line) -> None:
    def fail(piece: bytes) -> None:
        raise RuntimeError("planted")

    relay = line.relay(fail)
    line.upstream.send(chunk(b"x"))
    await until_blocked()
    with pytest.raises(RuntimeError, match="planted"):
        await relay.run()
    assert line.received() == chunk(b"x")
    line.source.watch.close()
