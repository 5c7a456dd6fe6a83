"""Connections: what is read, what goes on, and what ends."""

from __future__ import annotations

import hashlib
import ssl
from contextlib import suppress
from functools import partial

import pytest
import trio
import trustme

from tests.cuts import every_cut
from tests.sandbox.raw import PATIENCE, Answer, ask, connect, exchange, parsed, read_all, request, until
from tproxy.sandbox.books import CLIENT_LEFT, COMPLETE
from tproxy.sandbox.server import Sandbox, serve_sandbox


async def one(stream: trio.abc.Stream) -> Answer:
    """One answer with a Content-Length, off a connection that stays."""
    wire = await until(stream, b"\r\n\r\n")
    head, _, body = wire.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    with trio.fail_after(PATIENCE):
        await trio.lowlevel.checkpoint()
        while len(body) < size:
            body += await stream.receive_some()
    return parsed(head + b"\r\n\r\n" + body)


async def test_a_connection_is_used_again(sandbox: Sandbox) -> None:
    async with await connect(sandbox) as stream:
        for number in range(3):
            await stream.send_all(request(body=ask(text=f"Hello {number}"), close=False))
            answer = await one(stream)
            assert (answer.status, answer.headers["connection"]) == (200, "keep-alive")
        await stream.send_all(request("/v1/models"))
        assert parsed((await read_all(stream))[0], method="GET").headers["connection"] == "close"
    assert (sandbox.accepted, {got.connection for got in sandbox.requests}) == (1, {1})


async def test_what_was_received_is_kept_as_it_came(sandbox: Sandbox) -> None:
    body = b'{"model" : "claude-opus-5-5","max_tokens":5, "messages":[{"role":"user","content":"\\u00e9"}]}'
    headers = ("X-API-key:  spaced  ", "anthropic-Beta: a", "ANTHROPIC-BETA: b")
    await exchange(sandbox, request("/v1/messages?beta=true&a=%2F", body, headers=headers))
    (got,) = sandbox.requests
    assert (got.method, got.target, got.version) == ("POST", b"/v1/messages?beta=true&a=%2F", b"1.1")
    assert got.headers == (
        (b"Host", b"sandbox"),
        (b"X-API-key", b"spaced"),
        (b"anthropic-Beta", b"a"),
        (b"ANTHROPIC-BETA", b"b"),
        (b"Connection", b"close"),
        (b"Content-Length", str(len(body)).encode()),
    )
    assert (got.body, got.size, got.complete) == (body, len(body), True)
    assert got.sha256 == hashlib.sha256(body).hexdigest()
    assert got.get(b"anthropic-beta") == b"a"
    assert got.get(b"gone") is None


async def test_a_request_may_come_in_any_pieces(sandbox: Sandbox) -> None:
    data = request(body=ask(), close=False)
    async with await connect(sandbox) as stream:
        for pieces in every_cut(data, random_cuts=5):
            for piece in pieces:
                if piece:
                    await stream.send_all(piece)
            assert (await one(stream)).status == 200
    assert len({got.body for got in sandbox.requests}) == 1


async def test_a_chunked_body_with_trailers(sandbox: Sandbox) -> None:
    head = request(method="POST").replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    answer = await exchange(sandbox, head + b"3\r\n{}x\r\n2;ext=1\r\nyz\r\n0\r\nX-Trailer: t\r\n\r\n")
    assert answer.status == 400
    (got,) = sandbox.requests
    assert (got.body, got.trailers) == (b"{}xyz", ((b"X-Trailer", b"t"),))


async def test_pipelined_requests_are_answered_in_order(sandbox: Sandbox) -> None:
    """Also those that come while a stream is running."""
    async with await connect(sandbox) as stream:
        await stream.send_all(request(body=ask(stream=True), close=False, script="tps=200"))
        wire = await until(stream, b"message_start")
        await stream.send_all(request("/v1/models/claude-opus-5", close=False) + request("/v1/models/claude-opus-5-5"))
        wire += (await read_all(stream))[0]
    stream_answer, _, rest = wire.partition(b"\r\n0\r\n\r\n")
    assert stream_answer.endswith(b'data: {"type":"message_stop"}\n\n')
    first, second = rest.partition(b'{"type":"model","id":"claude-opus-5",')[::2]
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"id":"claude-opus-5-5"' in second
    assert sandbox.books.ended == {COMPLETE: 3}


async def test_a_client_that_sends_too_much_ahead_is_let_go(sandbox: Sandbox) -> None:
    async with await connect(sandbox) as stream:
        await stream.send_all(request(body=ask(stream=True), close=False, script="stall_after=2"))
        await until(stream, b"content_block_start")
        with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(request("/v1/models", close=False) * 100)
    assert sandbox.books.ended == {CLIENT_LEFT: 1}


@pytest.mark.parametrize("script", ["", "tps=5000", "chunk=500", "line=500000"])
async def test_who_has_the_answer_finds_it_in_the_books(script: str, sandbox: Sandbox) -> None:
    async with await connect(sandbox) as stream:
        for number in range(1, 21):
            await stream.send_all(request(body=ask(stream=True), script=script, close=False))
            await until(stream, b"\r\n0\r\n\r\n")
            assert sandbox.books.ended == {COMPLETE: number}


async def test_expect_100_is_answered_with_100(sandbox: Sandbox) -> None:
    data = request(body=ask(), headers=("x-api-key: key", "Expect: 100-continue"))
    head, _, body = data.partition(b"\r\n\r\n")
    async with await connect(sandbox) as stream:
        await stream.send_all(head + b"\r\n\r\n")
        assert await until(stream, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(body)
        wire, _ = await read_all(stream)
    assert parsed(wire).status == 200


async def test_a_refusal_before_the_body_comes_instead_of_100(sandbox: Sandbox) -> None:
    headers = ("x-api-key: key", "Expect: 100-continue")
    head = request(body=ask(), headers=headers, script="early_answer=401").partition(b"\r\n\r\n")[0]
    async with await connect(sandbox) as stream:
        await stream.send_all(head + b"\r\n\r\n")
        assert (await until(stream, b"}")).startswith(b"HTTP/1.1 401 ")


async def test_a_body_that_is_too_large_is_refused_before_it_has_come(sandbox: Sandbox) -> None:
    size = 33 * 1024 * 1024
    head = request(method="POST").replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % (2 * size))
    async with await connect(sandbox) as stream:
        await stream.send_all(head)

        async def send() -> None:
            await trio.lowlevel.checkpoint()
            with suppress(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b" " * 65536)

        async with trio.open_nursery() as sender:
            sender.start_soon(send)
            wire = await until(stream, b"</html>")
            sender.cancel_scope.cancel()
    assert parsed(wire).status == 413
    assert sandbox.requests[-1].body == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 300_000,
    ],
    ids=["tls", "no host", "two hosts", "bad length", "bad chunk", "long head"],
)
async def test_what_is_no_request_ends_its_connection_alone(data: bytes, sandbox: Sandbox) -> None:
    async with await connect(sandbox) as bystander:
        await bystander.send_all(request(body=ask(), close=False)[:50])
        answer = await exchange(sandbox, data)
        assert answer.wire.startswith(b"HTTP/1.1 400 ") or answer.reset
        await bystander.send_all(request(body=ask(), close=False)[50:])
        assert (await one(bystander)).status == 200


@pytest.mark.parametrize("sent", [0, 20, -5], ids=["nothing", "half a head", "half a body"])
async def test_a_client_that_goes_before_it_has_asked(sent: int, sandbox: Sandbox) -> None:
    data = request(body=ask())
    async with await connect(sandbox) as stream:
        if sent:
            await stream.send_all(data[:sent])
    with trio.fail_after(PATIENCE):
        await trio.lowlevel.checkpoint()
        while sandbox.open or not sandbox.accepted:
            await trio.lowlevel.checkpoint()
    assert len(sandbox.books) == 0
    assert [got.complete for got in sandbox.requests] == ([False] if sent < 0 else [])
    assert (await exchange(sandbox, data)).status == 200


async def test_http_1_0_is_answered_up_to_the_end_of_the_connection(sandbox: Sandbox) -> None:
    data = request(body=ask(stream=True)).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n")
    answer = await exchange(sandbox, data)
    assert "transfer-encoding" not in answer.headers
    assert answer.body.endswith(b'data: {"type":"message_stop"}\n\n')


async def test_an_idle_connection_is_closed(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    sandbox: Sandbox = await nursery.start(partial(serve_sandbox, idle_seconds=30))
    async with await connect(sandbox) as stream:
        await stream.send_all(request(body=ask(), close=False))
        await one(stream)
        before = trio.current_time()
        assert await stream.receive_some() == b""
        assert trio.current_time() - before == pytest.approx(30, abs=1)


async def test_a_client_that_reads_nothing_is_let_go(sandbox: Sandbox, autojump_clock: trio.testing.MockClock) -> None:
    async with await connect(sandbox) as stream:
        await stream.send_all(request(body=ask(stream=True), script="line=60000000"))
        await until(stream, b"message_start")
        await trio.sleep(300)
    assert sandbox.books.ended == {CLIENT_LEFT: 1}
    assert sandbox.open == 0


async def test_a_large_answer_arrives_whole(sandbox: Sandbox) -> None:
    answer = await exchange(sandbox, request(body=ask(stream=True), script="line=5000000"))
    assert answer.complete
    assert b"a" * 5_000_000 in answer.body
    assert sandbox.books.total()["bytes_sent"] == len(answer.body)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def secure(nursery: trio.Nursery, authority: trustme.CA) -> Sandbox:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    running: Sandbox = await nursery.start(partial(serve_sandbox, tls=context))
    return running


async def connect_tls(secure: Sandbox, authority: trustme.CA) -> trio.SSLStream[trio.SocketStream]:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return await trio.open_ssl_over_tcp_stream("127.0.0.1", secure.port, ssl_context=context)


async def test_tls(secure: Sandbox, authority: trustme.CA) -> None:
    assert secure.url == f"https://127.0.0.1:{secure.port}"
    async with await connect_tls(secure, authority) as stream:
        for _ in range(2):
            await stream.send_all(request(body=ask(stream=True), script="tps=2000;ttft=0.01", close=False))
            assert b"message_start" in await until(stream, b"\r\n0\r\n\r\n")
        await stream.send_all(request(body=ask(stream=True), script="framing=close"))
        wire, reset = await read_all(stream)
    assert (parsed(wire).complete, reset) == (True, False), "a clean end has its close_notify"


@pytest.mark.parametrize("script", ["cut_after=4;framing=close", "cut_after=4", "reset_after=4"])
async def test_a_cut_over_tls_has_no_close_notify(script: str, secure: Sandbox, authority: trustme.CA) -> None:
    async with await connect_tls(secure, authority) as stream:
        await stream.send_all(request(body=ask(stream=True), script=script))
        _, broken = await read_all(stream)
        assert broken


async def test_a_client_that_leaves_over_tls_is_noticed(secure: Sandbox, authority: trustme.CA) -> None:
    async with await connect_tls(secure, authority) as stream:
        await stream.send_all(request(body=ask(stream=True), script="stall_after=2"))
        await until(stream, b"content_block_start")
    with trio.fail_after(PATIENCE):
        await secure.books.settled()
    assert secure.books.ended == {CLIENT_LEFT: 1}


async def test_plain_bytes_to_tls_end_their_connection_alone(secure: Sandbox, authority: trustme.CA) -> None:
    async with await connect(secure) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        await read_all(stream)
    async with await connect_tls(secure, authority) as good:
        await good.send_all(request(body=ask()))
        assert b"200 OK" in (await read_all(good))[0]
