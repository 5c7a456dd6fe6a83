"""One exchange through the pool: bodies on their way, answers that come early, deadlines, and faults of either side."""

from __future__ import annotations

import socket
import ssl
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

import tproxy.wire.pool
from tests.wire.client import BIG, HOST, ask, counts, endless, fetch, pieces, pool_to, read
from tests.wire.peer import OK, Line, answers, answers_early, close, peer, server_context, silence
from tproxy.errors import BadRequest, BodyTooLarge, ClientGone, UpstreamBroken
from tproxy.wire.link import Link
from tproxy.wire.pool import Body, Pool

pytestmark = pytest.mark.usefixtures("either_channel")

PARTIAL = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello"
TOO_LARGE = b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 5\r\n\r\nlarge"
KINDS = pytest.mark.parametrize("tls", [None, server_context()], ids=["plain", "tls"])


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps when nothing happens for a moment: loopback sockets may need one."""
    return trio.testing.MockClock(autojump_threshold=0.02)


@KINDS
@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3_000_001])
async def test_whole_body(size: int, tls: ssl.SSLContext | None) -> None:
    body = bytes(range(251)) * (size // 251 + 1)
    async with peer(answers(OK, OK), tls=tls) as upstream, pool_to(upstream) as pool:
        assert await fetch(pool, body[:size]) == (b"ok", False)
        assert await fetch(pool, body[:size]) == (b"ok", True)
        assert [request.body for request in upstream.lines[0].requests] == [body[:size]] * 2


@KINDS
async def test_body_in_pieces(tls: ssl.SSLContext | None) -> None:
    parts = [b"a", b"bc" * 100_000, b"d"]
    async with peer(answers(OK, OK), tls=tls) as upstream, pool_to(upstream) as pool:
        assert await fetch(pool, pieces(*parts)) == (b"ok", False)
        assert await fetch(pool, pieces()) == (b"ok", True)
        assert [request.body for request in upstream.lines[0].requests] == [b"".join(parts), b""]


async def test_small_body_goes_out_with_its_head() -> None:
    async def note(line: Line) -> None:
        read = await line.receive()
        assert read.endswith(b"\r\n\r\n" + b"x" * 20_000), "one read brings all"
        await line.send(OK)
        await line.wait_gone()

    async with peer(note) as upstream, pool_to(upstream) as pool:
        assert await fetch(pool, b"x" * 20_000) == (b"ok", False)


@KINDS
@pytest.mark.parametrize("kind", ["bytes", "endless", "pieces"])
async def test_early_answer(kind: str, tls: ssl.SSLContext | None) -> None:
    """The upstream has made up its mind, and reads no more. The answer is whole all the same."""
    bodies: dict[str, Body] = {"bytes": BIG, "endless": endless, "pieces": pieces(*[b"x" * 60_000] * 200)}
    answered = trio.Event()

    async def refuses(line: Line) -> None:
        await line.receive()
        await line.send(TOO_LARGE[:-3])
        await trio.testing.wait_all_tasks_blocked()
        await line.send(TOO_LARGE[-3:])
        await answered.wait()
        await line.wait_gone()

    async with peer(refuses, tls=tls) as upstream, pool_to(upstream) as pool:
        async with ask(pool, bodies[kind]) as response:
            assert response.head.status == 413
            assert await read(response) == b"large"
            answered.set()
        assert counts(pool) == (0, 0, 0)


async def test_answer_begun_early_and_ended_after_the_request() -> None:
    async def echo(line: Line) -> None:
        await line.receive()
        await line.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not line.received.endswith(b"0\r\n\r\n"):
            await line.receive()
        await line.send(b"4\r\ndone\r\n0\r\n\r\n")
        await line.wait_gone()

    async with peer(echo) as upstream, pool_to(upstream) as pool:
        go = trio.Event()
        left = iter([b"first", b"last", b""])

        async def body() -> bytes:
            piece = next(left)
            if piece == b"last":
                await go.wait()
            await trio.lowlevel.checkpoint()
            return piece

        async with ask(pool, body) as response:
            assert response.head.status == 200
            go.set()
            assert await read(response) == b"done"
        assert upstream.lines[0].received.endswith(b"5\r\nfirst\r\n4\r\nlast\r\n0\r\n\r\n")
        assert counts(pool) == (1, 0, 0), "all was sent and all was read: the connection can go on"


@KINDS
@pytest.mark.parametrize("how", [Line.cut, Line.reset])
@pytest.mark.parametrize("size", [60_000, 16 << 20])
async def test_answer_left_before_the_line_was_cut(
    size: int, how: Callable[[Line], None], tls: ssl.SSLContext | None
) -> None:
    """The upstream answers, and closes on a client that is still sending: the kernel resets the connection."""

    async def refuses(line: Line) -> None:
        await line.receive()
        await line.send(TOO_LARGE)
        how(line)

    async with peer(refuses, tls=tls) as upstream, pool_to(upstream) as pool, ask(pool, bytes(size)) as response:
        assert response.head.status == 413
        assert await read(response) == b"large"


@pytest.mark.parametrize("body", [b"", b"x" * 60_000, BIG])
async def test_cut_while_sending_without_an_answer(body: bytes) -> None:
    async def cuts(line: Line) -> None:
        await line.receive()
        line.reset()

    async with peer(cuts, answers(OK)) as upstream, pool_to(upstream) as pool:
        with pytest.raises(UpstreamBroken):
            await fetch(pool, body)
        assert len(upstream.lines) == 1, "it may have been acted upon"


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections of which the sending half breaks after 200 bytes, and the other one does not."""

    class Half(Link):
        def push(self, data: bytes | memoryview) -> int:
            taken = super().push(data[: 200 - self.sent])
            if self.sent == 200:
                self.deaf = "broken"
            return taken

    async def dial(host: str, port: int, tls: None, **_: Any) -> Link:
        connected = (await trio.open_tcp_stream(host, port)).socket
        sock = socket.socket(fileno=connected.detach())
        sock.setblocking(False)
        return Half(sock, 5)

    monkeypatch.setattr(tproxy.wire.pool, "dial", dial)


BODIES = pytest.mark.parametrize("kind", ["small", "big", "pieces"])


def body_of(kind: str) -> Body:
    async def piece() -> bytes:
        await trio.lowlevel.checkpoint()
        return bytes(500) if next(first) else await endless()

    first = iter([True, False])
    bodies: dict[str, Body] = {"small": bytes(500), "big": bytes(100_000), "pieces": piece}
    return bodies[kind]


@BODIES
async def test_last_word_is_waited_for_but_not_long(kind: str, half: None, clock: trio.testing.MockClock) -> None:
    async with peer(silence) as upstream, pool_to(upstream) as pool:
        before = trio.current_time()
        with pytest.raises(UpstreamBroken, match="stopped reading the request and gave no answer"):
            await fetch(pool, body_of(kind))
        assert trio.current_time() - before == 2
        assert len(upstream.lines) == 1


@BODIES
async def test_last_word_is_heard(kind: str, half: None) -> None:
    async with peer(answers_early(OK)) as upstream, pool_to(upstream) as pool:
        assert await fetch(pool, body_of(kind)) == (b"ok", False)
        assert counts(pool) == (0, 0, 0), "a connection that takes nothing is no good"
        assert len(upstream.lines) == 1


FAULTS = [ClientGone(), BodyTooLarge("too large"), RuntimeError("a bug"), UpstreamBroken("not even ours")]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("answered", [False, True])
async def test_fault_of_the_body_comes_out_as_itself(fault: Exception, answered: bool) -> None:
    go = trio.Event()
    left = iter([b"some"])

    async def body() -> bytes:
        await trio.lowlevel.checkpoint()
        if piece := next(left, b""):
            return piece
        if answered:
            await go.wait()
        raise fault

    async def talk(pool: Pool) -> None:
        async with ask(pool, body) as response:
            assert await response.receive() == b"hello"
            go.set()
            await response.receive()

    async with peer(answers_early(PARTIAL) if answered else silence) as upstream, pool_to(upstream) as pool:
        with pytest.raises(type(fault)) as caught:
            await talk(pool)
        assert caught.value is fault
        assert counts(pool) == (0, 0, 0)
        await upstream.lines[0].gone.wait()


@pytest.mark.parametrize("body", [b"", BIG, endless], ids=["small", "big", "endless"])
async def test_fault_of_the_caller_comes_out_as_itself(body: Any) -> None:
    async with peer(answers_early(PARTIAL)) as upstream, pool_to(upstream) as pool:
        fault = ClientGone()
        with pytest.raises(ClientGone) as caught:
            async with ask(pool, body):
                raise fault
        assert caught.value is fault
        assert counts(pool) == (0, 0, 0)
        await upstream.lines[0].gone.wait()


@pytest.mark.parametrize("complete", [False, True])
async def test_the_end_stops_the_body(complete: bool) -> None:
    started, stopped = trio.Event(), trio.Event()

    async def body() -> bytes:
        started.set()
        try:
            return await endless()
        finally:
            stopped.set()

    async with peer(answers_early(OK if complete else PARTIAL)) as upstream, pool_to(upstream) as pool:
        async with ask(pool, body) as response:
            await started.wait()
            if complete:
                assert await read(response) == b"ok"
                await stopped.wait()
        assert stopped.is_set()
        assert counts(pool) == (0, 0, 0)


@pytest.mark.parametrize("parts", [[b"too long"], [b"too ", b"long"], [b"-"]])
@pytest.mark.parametrize("whole", [True, False])
async def test_body_is_not_as_long_as_promised(parts: list[bytes], whole: bool) -> None:
    body: Body = b"".join(parts) if whole else pieces(*parts)
    async with peer(silence) as upstream, pool_to(upstream) as pool:
        with pytest.raises(BadRequest, match="content-length"):
            async with pool.exchange(b"POST", b"/", [HOST, (b"content-length", b"5")], body):
                raise AssertionError("there is no answer")


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (b"/", [HOST, (b"x-api-key", b"sk-secret\r\nx: y")]),
        (b"/", [HOST, (b"x-api key", b"sk-secret")]),
        (b"/", [HOST, (b"content-length", b"sk-secret")]),
        (b"/", [(b"x-api-key", b"sk-secret")]),
        (b"/ sk-secret", [HOST]),
    ],
)
async def test_what_is_not_http_is_not_sent_nor_told(target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    async with peer(silence) as upstream, pool_to(upstream) as pool:
        with pytest.raises(BadRequest) as caught:
            async with pool.exchange(b"POST", target, headers, b""):
                raise AssertionError("there is no answer")
        assert "sk-secret" not in "".join(traceback.format_exception(caught.value))
        assert upstream.lines == []


@pytest.mark.parametrize("end", ["close", "close_notify alone", "cut"])
async def test_close_delimited_body_over_tls(end: str) -> None:
    """Without a close_notify nobody can say that it is whole."""

    async def script(line: Line) -> None:
        await line.request()
        await line.send(b"HTTP/1.1 200 OK\r\n\r\nwhole?")
        if end == "cut":
            line.cut()
        elif end == "close_notify alone":
            assert isinstance(line.stream, trio.SSLStream)
            await line.stream.unwrap()

    async with peer(script, tls=server_context()) as upstream, pool_to(upstream) as pool:
        async with ask(pool) as response:
            assert await response.receive() == b"whole?"
            if end == "cut":
                with pytest.raises(UpstreamBroken):
                    await response.receive()
            else:
                assert await response.receive() == b""
        assert counts(pool) == (0, 0, 0)


async def test_closed_without_an_answer() -> None:
    async with peer(close) as upstream, pool_to(upstream) as pool:
        with pytest.raises(UpstreamBroken, match=rf"^{pool.origin} closed the connection before its answer was whole$"):
            await fetch(pool)


@pytest.mark.parametrize("what", ["1xx heads", "chunks"])
async def test_an_upstream_that_never_pauses_leaves_others_their_turn(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    hints, chunks = [b"HTTP/1.1 103 Hints\r\n\r\n"] * 50, [b"1\r\nx\r\n"] * 50
    reads = iter([*(hints if what == "1xx heads" else []), head, *chunks, b"0\r\n\r\n"])
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with peer(silence) as upstream, pool_to(upstream) as pool:
        monkeypatch.setattr(Link, "pull", lambda _: next(reads))  # there is always something
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            assert await fetch(pool) == (b"x" * 50, False)
            nursery.cancel_scope.cancel()
    assert turns >= (95 if what == "1xx heads" else 45)
