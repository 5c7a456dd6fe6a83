"""The fast path under a whole house: that streams take it, what takes them off it, and that nothing is lost thereby."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.e2e.api import WITH_MASTER, made
from tests.e2e.house import open_house_before
from tests.e2e.raw import ask, post, read_answer, request
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
    """How many reads the fast path has taken on, and how many writes it could not do whole."""

    taken: int = 0
    given_up: int = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counts, take_on = Counted(), Relay._take_on

    def spy(relay: Relay) -> bool:
        before = relay.last
        goes_on = take_on(relay)
        counts.taken += relay.last > before
        counts.given_up += relay.last > before and not goes_on
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
    slow_events = [event(number, 12_000) for number in range(400)]
    had = trio.Event()

    async def flood(line: Line) -> None:
        await line.request()
        await line.send(HEAD, chunk(event(0)))
        await had.wait()
        await line.send(*map(chunk, slow_events), END)

    async def stream_of_small_ones(line: Line) -> None:
        await line.request()
        await line.send(HEAD, *(chunk(event(number)) for number in range(20)), END)

    slow = trio.socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    async with (
        open_house_before(tmp_path, flood, stream_of_small_ones) as (house, upstream),
        trio.SocketStream(slow) as stream,
    ):
        await slow.connect(house.address)
        await stream.send_all(post("/v1/messages", b"{}"))
        received = bytearray()
        while event(0) not in received:
            received += await stream.receive_some()
        had.set()
        await trio.testing.wait_all_tasks_blocked(0.05)  # until nothing moves: the client's window is full
        assert counted.given_up > 0
        async with await trio.open_tcp_stream(*house.address) as fast:
            await fast.send_all(post("/v1/messages", b"{}"))
            assert (await read_answer(fast)).body == b"".join(event(number) for number in range(20))
        while not received.endswith(END):
            received += await stream.receive_some()
        rows = await house.rows(2)
    body = event(0) + b"".join(slow_events)
    assert decoded(received) == body
    assert max((row["bytes_out"], row["ended"]) for row in rows) == (len(body), "finished")
    assert upstream.requests == 2


async def test_with_drain_a_half_closed_client_gets_no_more(counted: Counted, tmp_path: Path) -> None:
    """It could still be written to; but who has shut down its side has left, and the rest is read for the books."""
    had, shut = trio.Event(), trio.Event()

    async def script(line: Line) -> None:
        await line.request()
        await line.send(HEAD, chunk(event(1)))
        await had.wait()
        await line.send(chunk(event(2)))
        await shut.wait()
        await line.send(chunk(event(3)), chunk(event(4)), END)

    async with (
        open_house_before(tmp_path, script, upstream='on_disconnect = "drain"') as (house, _),
        await trio.open_tcp_stream(*house.address) as stream,
    ):
        await stream.send_all(post("/v1/messages", b"{}"))
        received = b""
        while event(2) not in received:
            received += bytes(await stream.receive_some())
            if event(1) in received:
                had.set()
        await stream.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.01)
        shut.set()
        [row] = await house.rows(1)
        with suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                received += bytes(data)
    assert received.endswith(chunk(event(2)))
    assert counted.taken == 1
    assert (row["ended"], row["bytes_out"]) == ("client_gone", len(event(1) + event(2)))


def data_event(name: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), json.dumps({"type": name, **fields}).encode())


START = data_event(
    "message_start", message={"id": "m", "model": "claude-sonnet-4-5", "usage": {"input_tokens": 5, "output_tokens": 1}}
)
DELTA = data_event("content_block_delta", index=0, delta={"type": "text_delta", "text": "word " * 200})


@pytest.mark.parametrize("size", [len(DELTA), 225], ids=["events in one read", "events in five"])
async def test_a_budget_cuts_it_between_two_events(size: int, counted: Counted, tmp_path: Path) -> None:
    async def endless(line: Line) -> None:
        await line.request()
        await line.send(HEAD, chunk(START))
        with suppress(trio.BrokenResourceError):
            while True:
                for at in range(0, len(DELTA), size):
                    await line.send(chunk(DELTA[at : at + size]))
                    await trio.sleep(0.001)

    asked = {"model": "claude-sonnet-4-5", "max_tokens": 100, "stream": True, "messages": []}
    async with open_house_before(tmp_path, endless, tproxy=WITH_MASTER) as (house, _):
        key = (await made(house, "/key/generate", max_budget=0.05, budget_mode="soft", cut_at_budget=True))["key"]
        answer = await ask(
            house.address,
            request(
                "POST",
                "/v1/messages",
                [("x-api-key", key), ("content-type", "application/json")],
                json.dumps(asked).encode(),
            ),
        )
        row = await house.row(answer.id)
    stream, _, last = answer.body.rpartition(b"event: error\ndata: ")
    assert json.loads(last)["error"]["details"]["error_code"] == "budget_exceeded"
    deltas = stream.removeprefix(START)
    assert deltas == DELTA * (len(deltas) // len(DELTA))
    assert row["ended"] == "cut_at_budget"
    assert counted.taken > 1


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
