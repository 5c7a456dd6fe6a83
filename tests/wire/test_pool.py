"""How exchanges share connections, what is sent again, how long is waited, and that nothing is ever left behind."""

from __future__ import annotations

import ssl
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from tests.wire.client import BOUNDS, ask, counts, fetch, pieces, pool_to, read
from tests.wire.peer import (
    OK,
    Line,
    answers,
    peer,
    server_context,
)
from tproxy.errors import UpstreamBroken
from tproxy.wire.dial import tls_context
from tproxy.wire.outbound import Connection
from tproxy.wire.pool import Body, Origin, Pool

pytestmark = pytest.mark.usefixtures("either_channel")


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps when nothing happens for a moment: loopback sockets may need one."""
    return trio.testing.MockClock(autojump_threshold=0.02)


# url: (scheme, host, port, the value of Host, the name in messages)
ORIGINS = {
    "https://api.anthropic.com": ("https", "api.anthropic.com", 443, b"api.anthropic.com", "api.anthropic.com:443"),
    "https://API.test:443/": ("https", "api.test", 443, b"api.test", "api.test:443"),
    "http://localhost:8080": ("http", "localhost", 8080, b"localhost:8080", "localhost:8080"),
    "http://a:443": ("http", "a", 443, b"a:443", "a:443"),
    "http://[::1]": ("http", "::1", 80, b"[::1]", "[::1]:80"),
    "https://[::1]:8443/": ("https", "::1", 8443, b"[::1]:8443", "[::1]:8443"),
}
NO_ORIGINS = "a ftp://a //a https:// https://a/v1 https://a?b https://a#b https://u:p@a https://@a https://a:x"


@pytest.mark.parametrize("url", ORIGINS)
def test_origin(url: str) -> None:
    origin = Origin.parse(url)
    assert (origin.scheme, origin.host, origin.port, origin.host_header, str(origin)) == ORIGINS[url]


@pytest.mark.parametrize(
    "url", ["", *NO_ORIGINS.split(), "https://a:99999", "https://a:0", "https://b\u00fccher.example"]
)
def test_origin_is_nothing_else(url: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Origin.parse(url)
    assert "u:p" not in str(caught.value)


def test_https_is_never_without_tls() -> None:
    with pytest.raises(ValueError, match="needs a TLS context"):
        Pool(Origin.parse("https://a"), BOUNDS, None)
    with pytest.raises(ValueError, match="needs a TLS context"):
        Pool(Origin.parse("http://a"), BOUNDS, tls_context(None))


@pytest.mark.parametrize("tls", [None, server_context()], ids=["plain", "tls"])
async def test_reuse(tls: ssl.SSLContext | None) -> None:
    async with peer(answers(OK, OK, OK), tls=tls) as upstream, pool_to(upstream) as pool:
        assert counts(pool) == (0, 0, 0)
        for i in range(3):
            async with ask(pool, b"body") as response:
                assert counts(pool) == (0, 1, 0)
                assert response.head.status == 200
                assert response.reused is (i > 0)
                assert await read(response) == b"ok"
            assert counts(pool) == (1, 0, 0)
        assert [r.body for r in upstream.lines[0].requests] == [b"body"] * 3
        assert len(upstream.lines) == 1


async def test_youngest_first() -> None:
    async with peer(answers(OK, OK)) as upstream, pool_to(upstream) as pool:
        async with ask(pool) as first:
            await fetch(pool)
            await read(first)
        assert counts(pool) == (2, 0, 0)
        assert await fetch(pool) == (b"ok", True)
        assert [len(line.requests) for line in upstream.lines] == [2, 1]


@pytest.mark.parametrize("raw", [OK + b"!", OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")])
async def test_connection_is_not_kept(raw: bytes) -> None:
    async with peer(answers(raw)) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        assert counts(pool) == (0, 0, 0)


@pytest.mark.parametrize("tls", [None, server_context()], ids=["plain", "tls"])
async def test_retired_by_idle_age(tls: ssl.SSLContext | None, clock: trio.testing.MockClock) -> None:
    resumed = tls.session_stats()["hits"] if tls is not None else 0
    async with peer(answers(OK, OK, OK), tls=tls) as upstream, pool_to(upstream) as pool:
        async with ask(pool) as first:
            await fetch(pool)
            await read(first)
        await trio.sleep(29)
        assert await fetch(pool) == (b"ok", True)
        await trio.sleep(29)
        assert await fetch(pool) == (b"ok", True)
        assert counts(pool) == (1, 0, 0), "the other one has rested for too long"
        await upstream.lines[1].gone.wait()
        assert upstream.lines[1].ending == "end", "politely, of TLS too"
        await trio.sleep(31)
        assert await fetch(pool) == (b"ok", False)
        await upstream.lines[0].gone.wait()
        if tls is not None:
            assert tls.session_stats()["hits"] - resumed == 2, "all but the first connection resumed its session"


async def test_retired_by_total_age(clock: trio.testing.MockClock) -> None:
    async with peer(answers(*[OK] * 9)) as upstream, pool_to(upstream) as pool:
        reused = []
        for _ in range(7):
            reused.append((await fetch(pool))[1])
            await trio.sleep(19)
        assert reused == [False, True, True, True, True, True, False]


async def test_youngest_in_rest_may_be_the_oldest(clock: trio.testing.MockClock) -> None:
    async with peer(answers(*[OK] * 9)) as upstream, pool_to(upstream) as pool:
        for _ in range(4):
            await fetch(pool)
            await trio.sleep(24)
        async with ask(pool) as old:
            await fetch(pool)
            await read(old)
        await trio.sleep(5)
        await fetch(pool)
        assert [len(line.requests) for line in upstream.lines] == [5, 2], "the first is 101 s old"


@pytest.mark.parametrize("what", [Line.cut, Line.reset, "bytes", "polite"])
@pytest.mark.parametrize("tls", [None, server_context()], ids=["plain", "tls"])
async def test_idle_connection_found_dead(what: Any, tls: ssl.SSLContext | None) -> None:
    go, gone = trio.Event(), trio.Event()

    async def dies(line: Line) -> None:
        await line.request()
        await line.send(OK)
        await go.wait()
        if what == "bytes":
            await line.send(OK)
        elif what == "polite":
            await line.stream.aclose()
        else:
            what(line)
        gone.set()
        await line.wait_gone()

    async with peer(dies, answers(OK.replace(b"ok", b"no")), tls=tls) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        go.set()
        await gone.wait()
        assert await fetch(pool) == (b"no", False)
        assert upstream.requests == 2


@pytest.mark.parametrize("tls", [None, server_context()], ids=["plain", "tls"])
@pytest.mark.parametrize("whole", [True, False])
async def test_sent_again_when_nothing_was_sent(
    tls: ssl.SSLContext | None, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is reset between the probe and the write."""
    monkeypatch.setattr(Connection, "usable", lambda _: True)
    async with peer(answers(OK, then=Line.reset), answers(OK), tls=tls) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        await upstream.lines[0].done.wait()
        body: Body = b"once" if whole else pieces(b"on", b"ce")
        assert await fetch(pool, body) == (b"ok", False)
        assert [request.body for request in upstream.lines[1].requests] == [b"once"]


async def test_not_sent_again_when_anything_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream closed an idle connection, and the kernel took the request all the same."""
    monkeypatch.setattr(Connection, "usable", lambda _: True)
    async with peer(answers(OK, then=Line.cut), answers(OK)) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        await upstream.lines[0].done.wait()
        with pytest.raises(UpstreamBroken):
            await fetch(pool)
        assert len(upstream.lines) == 1


@pytest.mark.parametrize("served", [0, 1])
async def test_not_sent_again_when_it_arrived(served: int) -> None:
    async with peer(answers(*[OK] * served, b"", then=Line.cut), answers(OK)) as upstream, pool_to(upstream) as pool:
        for _ in range(served):
            await fetch(pool)
        with pytest.raises(UpstreamBroken):
            await fetch(pool)
        assert len(upstream.lines) == 1
        assert upstream.requests == served + 1


async def test_not_sent_again_on_a_new_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found dead, dialled anew, and dead again: once is enough."""
    monkeypatch.setattr(Connection, "usable", lambda _: True)
    scripts = answers(OK, then=Line.reset), answers(b"", then=Line.reset), answers(OK)
    async with peer(*scripts) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        await upstream.lines[0].done.wait()
        with pytest.raises(UpstreamBroken):
            await fetch(pool)
        assert len(upstream.lines) == 2


async def test_many_share_few() -> None:
    async with peer(answers(*[OK] * 20)) as upstream, pool_to(upstream) as pool:
        async with trio.open_nursery() as nursery:
            for i in range(20):
                nursery.start_soon(fetch, pool, b"%d" % i)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert upstream.requests == 20
        assert len(upstream.lines) == 2
        assert counts(pool) == (2, 0, 0)


async def test_waiting_in_turn() -> None:
    async with peer(answers(OK, OK, OK, OK)) as upstream, pool_to(upstream, replace(BOUNDS, max_connections=1)) as pool:
        order: list[int] = []

        async def turn(i: int) -> None:
            async with ask(pool) as response:
                order.append(i)
                assert response.reused
                await read(response)

        async with trio.open_nursery() as nursery, ask(pool) as first:
            for i in range(3):
                nursery.start_soon(turn, i)
                await trio.testing.wait_all_tasks_blocked()
                assert counts(pool) == (0, 1, i + 1)
            await read(first)
        assert order == [0, 1, 2]
        assert len(upstream.lines) == 1


async def test_an_answer_keeps_to_itself() -> None:
    """One that has come whole sees no byte of the next exchange on the connection, however often it is asked."""
    async with peer(answers(OK, OK, OK)) as upstream, pool_to(upstream) as pool:
        async with ask(pool) as read_whole:
            await read(read_whole)
        async with ask(pool) as left:
            assert left.reused
            assert await read_whole.receive() == b""
            assert await left.receive() == b"ok"
            assert left.complete, "its end came with its last bytes"
        async with ask(pool) as third:
            assert third.reused
            assert await left.receive() == b""
            assert await read(third) == b"ok"


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
# what one read brings with the head: (what is at hand, whether that is all)
AT_HAND = {
    "a whole answer": (OK, b"ok", True),
    "nothing, of nothing": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"", True),
    "the head alone": (CHUNKED, b"", False),
    "some of the body": (CHUNKED + b"1\r\na\r\n1\r\nb\r\n2\r\nc", b"abc", False),
    "the whole body": (CHUNKED + b"1\r\na\r\n0\r\n\r\n", b"a", True),
    "not HTTP": (CHUNKED + b"zz\r\n", b"", False),
    "some, and not HTTP": (CHUNKED + b"1\r\na\r\nzz\r\n", b"a", False),
}


@pytest.mark.parametrize("name", AT_HAND)
async def test_at_hand(name: str) -> None:
    raw, data, whole = AT_HAND[name]
    async with peer(answers(raw)) as upstream, pool_to(upstream) as pool, ask(pool) as response:
        assert (response.at_hand(), response.complete) == (data, whole)
        assert response.at_hand() == b""
        if whole:
            assert await response.receive() == b""
        if "not HTTP" in name:
            with pytest.raises(UpstreamBroken, match="not valid HTTP"):
                await response.receive()


async def test_tiny_chunks_are_joined_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is given without a read, and its end is not missed."""
    monkeypatch.setattr("tproxy.protocol.chunked.MAX_PARTS", 3)
    raw = CHUNKED + b"1\r\nx\r\n" * 6 + b"0\r\n\r\n"
    async with peer(answers(raw)) as upstream, pool_to(upstream) as pool:
        async with ask(pool) as response:
            given = [(response.at_hand(), response.complete)]
            given += [(await response.receive(), response.complete) for _ in range(2)]
        assert given == [(b"xxx", False), (b"xxx", False), (b"", True)]
        assert counts(pool) == (1, 0, 0)


async def test_leaving_early_closes_at_once() -> None:
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
    async with peer(answers(raw), answers(OK)) as upstream, pool_to(upstream) as pool:
        async with ask(pool) as response:
            assert await response.receive() == b"hello"
        assert counts(pool) == (0, 0, 0)
        await upstream.lines[0].gone.wait()
        with pytest.raises(UpstreamBroken):
            await response.receive()
        assert await fetch(pool) == (b"ok", False)


async def test_closed_pool() -> None:
    async with peer(answers(OK)) as upstream, pool_to(upstream) as pool:
        async with ask(pool) as response:
            await fetch(pool)
            await pool.aclose()
            assert counts(pool) == (0, 1, 0), "the idle one is closed, the one in use is not"
            assert await read(response) == b"ok"
        assert counts(pool) == (0, 0, 0)
        assert await fetch(pool) == (b"ok", False), "who still comes is served, by a connection of its own"
        assert counts(pool) == (0, 0, 0)
