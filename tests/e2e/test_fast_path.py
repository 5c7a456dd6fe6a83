"""The fast path under a whole house: that streams take it, what takes them off it, and that nothing is lost thereby."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.e2e.house import open_house_before
from tests.e2e.raw import post, read_answer
from tests.wire.peer import Line
from tproxy.protocol.chunked import ChunkReader
from tproxy.wire.relay import Relay

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(number: int, size: int = 20) -> bytes:
    return b"event: ping\ndata: %b\n\n" % (b"%d" % number).ljust(size, b".")


@dataclass
class Counted:
    """How many reads the fast path has taken on."""

    taken: int = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counts, take_on = Counted(), Relay._take_on

    def spy(relay: Relay) -> bool:
        before = relay.last
        goes_on = take_on(relay)
        counts.taken += relay.last > before
        return goes_on

    monkeypatch.setattr(Relay, "_take_on", spy)
    return counts


class InStep:
    """An upstream that goes on when the client has had what was said before, so that it comes in reads of its own.

    Args:
        said: pieces that go out one after the other, and the part of the body that they stand for.
    """

    def __init__(self, said: Sequence[tuple[Sequence[bytes], bytes]]) -> None:
        self.body = b"".join(part for _, part in said)
        self._said = said
        self._had = 0
        self._news = trio.Event()

    async def script(self, line: Line) -> None:
        """Play the upstream."""
        await line.request()
        await line.send(HEAD)
        length = 0
        for pieces, part in self._said:
            await line.send(*pieces)
            length += len(part)
            while self._had < length:
                await self._news.wait()
        await line.send(END)

    async def ask(self, address: tuple[str, int]) -> bytes:
        """Play the client. Returns all that came, framing included."""
        received = bytearray()
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(post("/v1/messages", b"{}"))
            while not received.endswith(END):
                received += await stream.receive_some()
                self._had = len(decoded(received))
                self._news.set()
                self._news = trio.Event()
        return bytes(received)


def decoded(received: bytes | bytearray) -> bytes:
    """The body in an answer, as far as it has come."""
    reader = ChunkReader()
    body = bytes(received).partition(b"\r\n\r\n")[2]
    whole = reader.feed(body)
    while reader.behind:
        whole += reader.feed(b"")
    return whole


async def test_a_stream_takes_it(counted: Counted, tmp_path: Path) -> None:
    line = InStep([([chunk(event(number))], event(number)) for number in range(20)])
    async with open_house_before(tmp_path, line.script) as (house, _):
        answer = await line.ask(house.address)
        [row] = await house.rows(1)
    assert decoded(answer) == line.body
    assert counted.taken >= 15
    assert (row["bytes_out"], row["ended"]) == (len(line.body), "finished")


ONE, BIG = event(1), event(2, 150_000)
ODD = {
    "a chunk and a half": ([chunk(ONE) + chunk(ONE)[:9], chunk(ONE)[9:]], ONE + ONE),
    "all but the end": ([chunk(ONE)[:-1], b"\n"], ONE),
    "large": ([chunk(BIG)], BIG),
    "an extension": ([b"%x;name=value\r\n%b\r\n" % (len(ONE), ONE)], ONE),
    "tiny ones": ([b"".join(chunk(ONE[at : at + 1]) for at in range(len(ONE)))], ONE),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_what_is_not_whole_chunks_passes_all_the_same(
    odd: tuple[Sequence[bytes], bytes], counted: Counted, tmp_path: Path
) -> None:
    plain = [([chunk(event(number))], event(number)) for number in range(4)]
    line = InStep([*plain, odd, *plain, odd, odd, *plain])
    async with open_house_before(tmp_path, line.script) as (house, _):
        answer = await line.ask(house.address)
        [row] = await house.rows(1)
    assert decoded(answer) == line.body
    assert counted.taken >= 3  # of the first four; what follows an extension is read by h11
    assert row["bytes_out"] == len(line.body)


async def test_a_slow_reader_leaves_it_and_holds_up_nobody(counted: Counted, tmp_path: Path) -> None:
    """While one client takes nothing, its stream waits with what one read brought; the other goes on."""
    slow_events = [event(number, 30_000) for number in range(400)]

    async def flood(line: Line) -> None:
        await line.request()
        await line.send(HEAD)
        for each in slow_events:
            await line.send(chunk(each))
        await line.send(END)

    async def stream_of_small_ones(line: Line) -> None:
        await line.request()
        await line.send(HEAD, *(chunk(event(number)) for number in range(20)), END)

    async with open_house_before(tmp_path, flood, stream_of_small_ones) as (house, upstream):
        slow = trio.socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await slow.connect(house.address)
        stream = trio.SocketStream(slow)
        await stream.send_all(post("/v1/messages", b"{}"))
        await trio.testing.wait_all_tasks_blocked(0.05)  # until nothing moves: the client's window is full
        async with await trio.open_tcp_stream(*house.address) as fast:
            await fast.send_all(post("/v1/messages", b"{}"))
            assert (await read_answer(fast)).body == b"".join(event(number) for number in range(20))
        answer = await read_answer(stream)
        await stream.aclose()
        row = await house.row(answer.id)
    assert answer.body == b"".join(slow_events)
    assert (row["bytes_out"], row["ended"]) == (len(answer.body), "finished")
    assert upstream.requests == 2


async def test_cancelled_on_it_the_exchange_lets_go_of_both_sides(counted: Counted, tmp_path: Path) -> None:
    had, over = trio.Event(), trio.Event()

    async def script(line: Line) -> None:
        await line.request()
        await line.send(HEAD, chunk(event(1)))
        await had.wait()
        await line.send(chunk(event(2)))
        await line.wait_gone()
        over.set()

    async with open_house_before(tmp_path, script) as (house, _):
        async with await trio.open_tcp_stream(*house.address) as stream:
            await stream.send_all(post("/v1/messages", b"{}"))
            received = b""
            while event(2) not in received:
                received += bytes(await stream.receive_some())
                if event(1) in received:
                    had.set()
            assert counted.taken > 0
        with trio.fail_after(1):
            await over.wait()
        [row] = await house.rows(1)
    assert row["ended"] == "client_gone"
