"""The fast path between two real sockets: what it takes on, and how it gives back what it does not."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from tests.cuts import every_cut
from tproxy.protocol.chunked import ChunkReader
from tproxy.wire.poller import Watch, current
from tproxy.wire.relay import READ_BYTES, Relay


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# Whole chunks that come in one read, and are more than a tight connection takes at once.
LARGE = b"".join(chunk(b"%04d" % number * 250) for number in range(30))


def decoded(data: bytes) -> bytes:
    return ChunkReader().feed(data)


def linked(*, tight: bool = False) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection; a tight one has room for some 10 kB from the first to the second."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as fresh:
        if tight:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            fresh.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        fresh.connect(listener.getsockname())
        far, _ = listener.accept()
        near = socket.socket(fileno=fresh.detach())
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)  # or the kernel holds back what is short
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


@pytest.fixture
def tight_line() -> Iterator[Line]:
    """A line whose client's end takes little at once."""
    near, upstream = linked()
    sink, client = linked(tight=True)
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
    """What one read brought is given back as it came."""
    relay = line.relay()
    filled = await fill(line.sink)
    line.upstream.send(chunk(b"x"))
    await until_blocked()
    with trio.fail_after(1):
        await relay.run()
    assert (line.source.back, line.pieces) == ([chunk(b"x")], [])
    assert (relay.piece, relay.unsent, line.source.watch.on_readable) == (b"", b"", None)
    assert await received(line, filled) == b"f" * filled
    line.source.watch.close()


async def test_a_client_that_takes_a_part(tight_line: Line) -> None:
    """It leaves the fast path with what one read brought, of which the rest is still to be written as it is."""
    relay = tight_line.relay()
    began = trio.current_time()
    tight_line.upstream.send(LARGE)
    await until_blocked()
    with trio.fail_after(1):
        await relay.run()
    assert 0 < len(relay.unsent) < len(LARGE)
    assert relay.piece == decoded(LARGE)
    assert relay.last > began
    assert (tight_line.source.back, tight_line.pieces, tight_line.source.watch.on_readable) == ([], [], None)
    assert await received(tight_line, len(LARGE) - len(relay.unsent)) + relay.unsent == LARGE
    tight_line.source.watch.close()


async def fill(sink: socket.socket) -> int:
    """Write until the socket takes nothing more, whatever the kernel has moved on meanwhile; returns how much."""
    filled = moved = 0
    while True:
        try:
            moved += sink.send(b"f" * 65536)
        except BlockingIOError:
            if not moved:
                return filled
            filled, moved = filled + moved, 0
            await until_blocked()


async def received(line: Line, count: int) -> bytes:
    """What the client has been sent, of which so many bytes are known to be on their way."""
    data = b""
    with trio.fail_after(5):
        while len(data) < count:
            await trio.lowlevel.wait_readable(line.client)
            data += line.received()
    return data


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


STOPS: dict[str, Callable[[Line, Relay], object]] = {
    "a part was taken": lambda line, _: line.source.watch.on_readable and line.source.watch.on_readable(),
    "by hand": lambda _, relay: relay.stop(),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
async def test_what_has_stopped_takes_nothing_on_when_run_again(
    stop: Callable[[Line, Relay], object], tight_line: Line
) -> None:
    """It may stop in the turn in which it is cancelled, and nothing may come between a chunk's part and its rest."""
    relay = tight_line.relay()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        await until_blocked()
        tight_line.upstream.send(LARGE)
        nursery.cancel_scope.cancel()
        stop(tight_line, relay)  # as the poller does, before the task has its turn
    assert nursery.cancel_scope.cancelled_caught
    unsent = relay.unsent
    begun = await received(tight_line, len(LARGE) - len(unsent)) if unsent else b""
    tight_line.upstream.send(chunk(b"later"))
    await until_blocked()
    with trio.fail_after(1):
        await relay.run()
    assert (tight_line.received(), tight_line.pieces, relay.unsent) == (b"", [], unsent)
    assert begun + unsent + (tight_line.source.pull() or b"") == LARGE + chunk(b"later")
    tight_line.source.watch.close()


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
