"""The client on the fast path: how long it stays there, what makes it leave, and whether it is between two events.

The sockets are real, and time is trio's own. What the plain path does before and after is seen in `test_exchange.py`.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import pytest
import trio
import trio.testing

from tproxy.errors import BudgetExceeded, UpstreamTimeout
from tproxy.flow.forward import Client
from tproxy.protocol.chunked import ChunkReader
from tproxy.wire.channel import ClientDisconnected
from tproxy.wire.poller import Watch, current
from tproxy.wire.pool import Response
from tproxy.wire.relay import READ_BYTES
from tproxy.wire.transport import Transport

IDLE = 3
EVENT = b"event: ping\ndata: {}\n\n"
HALF, OTHER_HALF = EVENT[:12], EVENT[12:]

Last = tuple[bytes, bool] | None


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# Whole chunks that come in one read, and are more than a tight connection takes at once.
LARGE = b"".join(chunk(b"data: %04d\n\n" % number * 80) for number in range(30))


def decoded(data: bytes) -> bytes:
    return ChunkReader().feed(data)


class Upstream:
    """The upstream's side of an answer: a source, and what `Client.relay` asks of the response."""

    idle = IDLE

    def __init__(self, sock: socket.socket) -> None:
        poller = current()
        assert poller is not None
        self.watch: Watch = poller.watch(sock.fileno())
        self._sock = sock

    def source(self) -> Upstream:
        return self

    def pull(self) -> bytes | None:
        try:
            return self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return None

    def unread(self, data: bytes) -> None:
        raise AssertionError("nothing here has to be given back")

    def timed_out(self) -> UpstreamTimeout:
        return UpstreamTimeout("silence")


class Direct:
    """What the transport goes to: the client's socket. What remains of a write waits for `may_go_on`."""

    ready = False

    def __init__(self, sock: socket.socket) -> None:
        self.may_go_on = trio.Event()
        self.broken = False
        self._sock = sock

    def sink(self) -> int:
        return self._sock.fileno()

    async def rest(self, data: bytes) -> None:
        await self.may_go_on.wait()
        if self.broken:
            raise ClientDisconnected("planted")
        while data:
            await trio.lowlevel.wait_writable(self._sock)
            data = data[self._sock.send(data) :]


@dataclass
class Stage:
    """upstream ► near | client | sink ► reader

    Attributes:
        relayed: what the books were told of.
        left: how often `on_gone` was called.
    """

    upstream: socket.socket
    near: socket.socket
    sink: socket.socket
    reader: socket.socket
    relayed: list[bytes] = field(default_factory=list)
    left: int = 0
    client: Client = field(init=False)
    direct: Direct = field(init=False)
    source: Upstream = field(init=False)

    async def begin(self, sent: bytes) -> None:
        """The plain path has sent the head of a stream and this much of its body."""
        self.source = Upstream(self.near)
        self.direct = Direct(self.sink)
        transport = Transport(b"/", [], "1.1")
        transport.attach(self.direct)

        async def send(message: dict[str, object]) -> None:
            await trio.lowlevel.checkpoint()

        self.client = Client(send, self._on_gone, ids=(), pseudonym=b"p", bases=None, transport=transport)
        await self.client.head(200, None, [], held=True, open_stream=True)
        await self.client.body(sent, more=True)

    async def relay(self) -> Last:
        """Have the client relay for as long as it does."""
        with trio.fail_after(100):
            return await self.client.relay(cast(Response, self.source), self.relayed.append)

    def step(self) -> None:
        """Take on what has come, as the poller does, before any other task has its turn."""
        assert self.source.watch.on_readable is not None
        self.source.watch.on_readable()

    def received(self) -> bytes:
        """What the client's reader has now."""
        try:
            return self.reader.recv(1_000_000)
        except BlockingIOError:
            return b""

    async def receive(self, count: int) -> bytes:
        """So many bytes of it, at least."""
        data = b""
        with trio.fail_after(5):
            while len(data) < count:
                await trio.lowlevel.wait_readable(self.reader)
                data += self.received()
        return data

    def _on_gone(self) -> None:
        self.left += 1


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


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A stage whose reader has little room."""
    near, upstream = linked()
    sink, reader = linked(tight=True)
    with near, upstream, sink, reader:
        yield Stage(upstream, near, sink, reader)


settled = trio.testing.wait_all_tasks_blocked


@dataclass
class Outcome:
    """What `Client.relay` returned, once it has."""

    last: list[Last] = field(default_factory=list)

    async def of(self, stage: Stage) -> None:
        self.last.append(await stage.relay())


async def test_only_silence_is_waited_for(stage: Stage, autojump_clock: object) -> None:
    """An event every two seconds goes on for as long as it likes, where three are waited."""
    await stage.begin(EVENT)

    async def speak() -> None:
        for _ in range(5):
            await trio.sleep(2)
            stage.upstream.send(chunk(EVENT))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        with pytest.raises(UpstreamTimeout, match="silence"):
            await stage.relay()
    assert trio.current_time() == pytest.approx(10 + IDLE)
    assert stage.relayed == [EVENT] * 5
    assert stage.received() == chunk(EVENT) * 5
    assert stage.client.between_events


PLACES = {"between two events": (HALF, OTHER_HALF, True), "within an event": (EVENT, HALF, False)}


@pytest.mark.parametrize(("before", "piece", "between"), PLACES.values(), ids=PLACES)
async def test_it_ends_at_once_when_it_is_told_to(
    before: bytes, piece: bytes, between: bool, stage: Stage, autojump_clock: object
) -> None:
    """And it knows where it was left: the plain path goes on to the end of the event, and no further."""
    await stage.begin(before)
    assert stage.client.between_events is not between
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.of, stage)
        await settled()
        stage.upstream.send(chunk(piece))
        await settled()
        assert stage.client.between_events is between
        fault = BudgetExceeded("planted")
        stage.client.end_with(fault)
        stage.upstream.send(chunk(b"later"))
        began = trio.current_time()
    assert trio.current_time() == began
    assert outcome.last == [None]
    assert stage.client.between_events is between
    assert stage.client.ending is fault
    assert (stage.relayed, stage.received()) == ([piece], chunk(piece))
    assert await stage.relay() is None, "nor does it begin again"
    assert stage.source.pull() == chunk(b"later")


async def test_it_ends_at_once_when_the_client_leaves(stage: Stage, autojump_clock: object) -> None:
    """What comes then is for the plain path, which reads it for the books alone."""
    await stage.begin(EVENT)
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome.of, stage)
        await settled()
        stage.client.leave()
        stage.upstream.send(chunk(EVENT))
        began = trio.current_time()
    assert trio.current_time() == began
    assert (outcome.last, stage.left, stage.client.gone) == ([None], 1, True)
    assert (stage.relayed, stage.received()) == ([], b"")
    assert await stage.relay() is None, "nor does it begin again"
    assert stage.source.pull() == chunk(EVENT)


async def begun_in_part(stage: Stage, outcome: Outcome, nursery: trio.Nursery) -> None:
    """Come to where the client's socket has taken a part of LARGE, and no task has had its turn since."""
    await stage.begin(EVENT)
    nursery.start_soon(outcome.of, stage)
    await settled()
    stage.upstream.send(LARGE)
    assert stage.client.between_events
    stage.step()


async def test_between_events_again_when_the_rest_is_out(stage: Stage) -> None:
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        await begun_in_part(stage, outcome, nursery)
        assert not stage.client.between_events, "in the same turn"
        await settled()
        assert not stage.client.between_events, "while the rest waits"
        stage.direct.may_go_on.set()
        assert await stage.receive(len(LARGE)) == LARGE
    assert outcome.last == [(decoded(LARGE), True)]
    assert stage.client.between_events
    assert stage.relayed == [], "the piece is returned instead"


async def test_a_client_that_leaves_before_the_rest(stage: Stage) -> None:
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        await begun_in_part(stage, outcome, nursery)
        stage.direct.broken = True
        stage.direct.may_go_on.set()
    assert outcome.last == [(decoded(LARGE), False)]
    assert (stage.left, stage.client.gone, stage.client.between_events) == (1, True, False)


async def test_told_to_end_while_the_rest_waits(stage: Stage) -> None:
    """The rest goes out first: nothing may come between the parts of a chunk."""
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        await begun_in_part(stage, outcome, nursery)
        stage.client.end_with(BudgetExceeded("planted"))
        await settled()
        assert (outcome.last, stage.client.between_events) == ([], False)
        stage.direct.may_go_on.set()
        assert await stage.receive(len(LARGE)) == LARGE
    assert outcome.last == [(decoded(LARGE), True)]
    assert stage.client.between_events


async def cancelled_before_it_begins(stage: Stage) -> None:
    stage.upstream.send(LARGE)
    with trio.CancelScope() as scope:
        scope.cancel()
        await stage.relay()
    assert scope.cancelled_caught


async def cancelled_with_the_write(stage: Stage, *, first: bool) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.relay)
        await settled()
        stage.upstream.send(LARGE)
        if first:
            nursery.cancel_scope.cancel()
        stage.step()
        nursery.cancel_scope.cancel()
    assert nursery.cancel_scope.cancelled_caught


async def cancelled_while_the_rest_waits(stage: Stage) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.relay)
        await settled()
        stage.upstream.send(LARGE)
        await settled()
        nursery.cancel_scope.cancel()


CANCELLED = {
    "before it begins": cancelled_before_it_begins,
    "in the turn of the write, before it": partial(cancelled_with_the_write, first=True),
    "in the turn of the write, after it": partial(cancelled_with_the_write, first=False),
    "while the rest waits": cancelled_while_the_rest_waits,
}


@pytest.mark.parametrize("cancel", CANCELLED.values(), ids=CANCELLED)
async def test_cancelled_with_a_part_written_it_is_within_an_event(
    cancel: Callable[[Stage], Awaitable[None]], stage: Stage
) -> None:
    """An event of ours would come between the parts of a chunk."""
    await stage.begin(EVENT)
    assert stage.client.between_events
    await cancel(stage)
    assert not stage.client.between_events
    assert len(await stage.receive(1)) < len(LARGE)
    assert stage.relayed == []
