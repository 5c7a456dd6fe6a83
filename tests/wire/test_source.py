"""The answer as a source for the relay: when there is one, what it gives, and that the plain path goes on after it."""

from __future__ import annotations

import gc
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from tests.wire.client import BOUNDS, HOST, ask, endless, pieces, pool_to
from tests.wire.peer import Line, Script, answers, answers_early, peer, server_context
from tproxy.errors import UpstreamBroken, UpstreamTimeout
from tproxy.wire import poller
from tproxy.wire.pool import Body, Pool, Response
from tproxy.wire.relay import Relay, Source

KINDS = pytest.mark.parametrize("tls", [None, server_context()], ids=["plain", "tls"])
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"6\r\nevent\n\r\n"


def scripted(*steps: bytes | Callable[[Line], None]) -> tuple[Script, Callable[[], None]]:
    """A script that answers with the first step, and takes the next one each time that the test says so."""
    turns: trio.MemorySendChannel[None]
    turns, waiting = trio.open_memory_channel(100)

    async def script(line: Line) -> None:
        await line.request()
        for i, step in enumerate(steps):
            if i:
                await waiting.receive()
            if not isinstance(step, bytes):
                step(line)
                return
            await line.send(step)
        await line.wait_gone()

    return script, lambda: turns.send_nowait(None)


@asynccontextmanager
async def asked(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Response, Pool]]:
    async with peer(script, tls=tls) as upstream, pool_to(upstream) as pool, ask(pool) as response:
        yield response, pool


def source_of(response: Response) -> Source:
    source = response.source()
    assert source is not None
    return source


async def pulled(source: Source) -> bytes:
    while (data := source.pull()) is None:
        await source.watch.readable()
    return data


# what has come: whether the rest may be relayed as it comes
COME = {
    "the head alone": (HEAD, True),
    "a chunk": (HEAD + EVENT, True),
    "half a chunk": (HEAD + EVENT + b"6\r\neve", False),
    "a chunk without its end": (HEAD + EVENT[:-2], False),
    "half a size": (HEAD + EVENT + b"6", False),
    "the end": (HEAD + EVENT + b"0\r\n\r\n", False),
    "half the end": (HEAD + EVENT + b"0\r\n", False),
    "an extension": (HEAD + b"1;x\r\na\r\n", False),
    "a fault": (HEAD + EVENT + b"zz\r\n", False),
    "a length": (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", False),
    "to the end": (b"HTTP/1.1 200 OK\r\n\r\nhello", False),
    "no body": (b"HTTP/1.1 204 No\r\n\r\n", False),
}


@KINDS
@pytest.mark.parametrize("name", COME)
async def test_when_there_is_one(name: str, tls: ssl.SSLContext | None) -> None:
    raw, given = COME[name]
    async with asked(answers(raw), tls) as (response, _):
        response.at_hand()
        assert (response.source() is not None) is given


async def test_what_came_with_the_head_is_given_first() -> None:
    async with asked(answers(HEAD + EVENT)) as (response, _):
        assert response.source() is None
        assert response.at_hand() == b"event\n"
        assert response.source() is not None


async def test_none_without_a_poller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "current", lambda: None)
    async with asked(answers(HEAD)) as (response, _):
        assert response.source() is None


async def test_none_while_the_request_is_on_its_way() -> None:
    async with (
        peer(answers_early(HEAD)) as upstream,
        pool_to(upstream) as pool,
        ask(pool, endless) as response,
    ):
        assert response.source() is None


@KINDS
@pytest.mark.parametrize("kind", ["small", "large", "pieces"])
async def test_one_when_the_request_is_sent(kind: str, tls: ssl.SSLContext | None) -> None:
    bodies: dict[str, Body] = {"small": b"x", "large": bytes(3_000_000), "pieces": pieces(b"on", b"ce")}
    async with peer(answers(HEAD), tls=tls) as upstream, pool_to(upstream) as pool, ask(pool, bodies[kind]) as response:
        await trio.testing.wait_all_tasks_blocked()
        assert response.source() is not None


@KINDS
async def test_pull_gives_what_came_and_receive_goes_on(tls: ssl.SSLContext | None) -> None:
    script, go = scripted(HEAD, EVENT, EVENT * 3, EVENT, EVENT[:5], EVENT[5:] + b"0\r\n\r\n")
    async with asked(script, tls) as (response, pool):
        source = source_of(response)
        assert source.pull() is None
        for expected in (EVENT, EVENT * 3):
            go()
            assert await pulled(source) == expected
            assert source.pull() is None
        go()
        assert await response.receive() == b"event\n"
        source = source_of(response)
        go()
        data = await pulled(source)
        source.unread(data)
        assert await response.receive() == b"ev"
        assert response.source() is None, "in the midst of a chunk"
        go()
        assert await response.receive() == b"ent\n"
        assert response.complete
        assert response.source() is None
        assert "active 1" in repr(pool)
    assert response.complete


@KINDS
async def test_relayed(tls: ssl.SSLContext | None) -> None:
    """What the relay takes on goes as it came, and the plain path reads the end; the connection can go on."""
    script, go = scripted(HEAD, EVENT, EVENT * 2, EVENT + b"0\r\n\r\n")
    taken: list[bytes] = []
    sink, client = socket.socketpair()
    with sink, client:
        sink.setblocking(False)
        async with peer(script, tls=tls) as upstream, pool_to(upstream) as pool:
            async with ask(pool) as response:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(Relay(source_of(response), sink.fileno(), taken.append).run)
                    for _ in range(3):
                        await trio.testing.wait_all_tasks_blocked(0.01)
                        go()
                assert taken == [b"event\n", b"event\n" * 2]
                assert client.recv(100) == EVENT * 3
                assert await response.receive() == b"event\n"
                assert response.complete
            assert "idle 1" in repr(pool)


@KINDS
@pytest.mark.parametrize("end", [Line.cut, Line.reset])
async def test_a_break_is_told_by_the_next_receive(end: Callable[[Line], None], tls: ssl.SSLContext | None) -> None:
    script, go = scripted(HEAD, end)
    async with asked(script, tls) as (response, _):
        source = source_of(response)
        go()
        while not source.watch.gone:
            await source.watch.readable()
        try:
            assert source.pull() == b""
        except OSError:
            with pytest.raises(OSError, match="broken"):
                source.pull()
        with pytest.raises(UpstreamBroken):
            await response.receive()


async def test_an_end_within_tls_is_told_by_the_watch() -> None:
    """It came with the last bytes, and the socket has nothing to tell of it: the peer keeps it open."""

    async def script(line: Line) -> None:
        await line.request()
        await line.send(HEAD)
        await line.done.wait()
        await line.stream.send_all(EVENT)
        assert isinstance(line.stream, trio.SSLStream)
        await line.stream.unwrap()

    async with peer(script, tls=server_context()) as upstream, pool_to(upstream) as pool, ask(pool) as response:
        source = source_of(response)
        upstream.lines[0].done.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await pulled(source) == EVENT
        assert source.watch.gone
        assert source.pull() == b""
        with pytest.raises(UpstreamBroken, match="closed the connection"):
            await response.receive()


async def test_the_deadline_is_told() -> None:
    async with peer(answers(HEAD)) as upstream, pool_to(upstream, replace(BOUNDS, idle=7)) as pool, ask(pool) as found:
        assert found.idle == 7
        fault = found.timed_out()
        assert isinstance(fault, UpstreamTimeout)
        assert fault.message == f"{pool.origin} sent nothing of its answer for 7 s"


@pytest.mark.parametrize("size", [100, 100_000, 8_000_000])
@KINDS
async def test_a_running_answer_does_not_hold_its_request(size: int, tls: ssl.SSLContext | None) -> None:
    async with peer(answers(HEAD), tls=tls) as upstream, pool_to(upstream) as pool:
        freed = []

        class Watched(bytes):
            def __del__(self) -> None:
                freed.append(len(self))

        body = Watched(size)
        headers = [HOST, (b"content-length", b"%d" % size)]
        asking = pool.exchange(b"POST", b"/", headers, body)
        del body
        async with asking as response:
            await trio.testing.wait_all_tasks_blocked(0.01)
            gc.collect()
            assert freed == [size]
            assert response.source() is not None
