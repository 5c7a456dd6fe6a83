"""Everything ends: each wait of an exchange at its deadline, or where it is cancelled; and nothing is left behind."""

from __future__ import annotations

import ssl
from dataclasses import replace

import pytest
import trio
import trio.testing

from tests.wire.client import BIG, BOUNDS, ask, counts, endless, fetch, make_pool, pool_to, read
from tests.wire.peer import (
    OK,
    Line,
    Script,
    answers,
    answers_early,
    deaf,
    full_backlog,
    peer,
    resolve,
    server_context,
    silence,
)
from tproxy.errors import UpstreamTimeout, UpstreamUnreachable
from tproxy.wire.pool import Body, Origin

pytestmark = pytest.mark.usefixtures("either_channel")

KINDS = pytest.mark.parametrize("tls", [None, server_context()], ids=["plain", "tls"])


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps when nothing happens for a moment: loopback sockets may need one."""
    return trio.testing.MockClock(autojump_threshold=0.02)


async def test_no_place_in_time(clock: trio.testing.MockClock) -> None:
    async with peer(answers(OK)) as upstream, pool_to(upstream, replace(BOUNDS, max_connections=1)) as pool:
        async with ask(pool) as first:
            before = trio.current_time()
            with pytest.raises(UpstreamTimeout, match=r"all 1 connections to 127\.0\.0\.1:\d+ were in use for 2 s"):
                await fetch(pool)
            assert trio.current_time() - before == 2
            await read(first)
        assert counts(pool) == (1, 0, 0)


async def test_deadline_of_the_head(clock: trio.testing.MockClock) -> None:
    async with peer(silence) as upstream, pool_to(upstream) as pool:
        before = trio.current_time()
        with pytest.raises(UpstreamTimeout, match=rf"^{pool.origin} gave no answer within 20 s$"):
            await fetch(pool)
        assert trio.current_time() - before == 20


async def test_deadline_of_the_head_counts_from_the_end_of_the_request(clock: trio.testing.MockClock) -> None:
    async def slowly() -> bytes:
        await trio.sleep(15)
        return next(left)

    left = iter([b"a", b"b", b"c", b""])
    async with peer(silence) as upstream, pool_to(upstream) as pool:
        before = trio.current_time()
        with pytest.raises(UpstreamTimeout, match="gave no answer within 20 s"):
            await fetch(pool, slowly)
        assert trio.current_time() - before == 4 * 15 + 20


async def test_deadline_of_each_part_of_the_answer(clock: trio.testing.MockClock) -> None:
    async def dribbles(line: Line) -> None:
        await line.receive()
        await line.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
        for _ in range(5):
            await trio.sleep(6)
            await line.send(b"x")
        await line.wait_gone()

    async with peer(dribbles) as upstream, pool_to(upstream) as pool:
        before = trio.current_time()
        with pytest.raises(UpstreamTimeout, match=rf"^{pool.origin} sent nothing of its answer for 7 s$"):
            await fetch(pool)
        assert trio.current_time() - before == 5 * 6 + 7
        assert counts(pool) == (0, 0, 0)


@KINDS
async def test_deadline_of_writing(tls: ssl.SSLContext | None, clock: trio.testing.MockClock) -> None:
    async with peer(deaf, tls=tls) as upstream, pool_to(upstream) as pool:
        before = trio.current_time()
        with pytest.raises(UpstreamTimeout, match=rf"^{pool.origin} stopped taking the request$"):
            await fetch(pool, BIG)
        assert trio.current_time() - before == 5


@KINDS
async def test_deadline_of_writing_is_nothing_to_an_answer(
    tls: ssl.SSLContext | None, clock: trio.testing.MockClock
) -> None:
    """The upstream takes no more of the request, and is still saying why."""

    async def explains(line: Line) -> None:
        await line.receive()
        await line.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\n")
        for _ in range(3):
            await trio.sleep(4)
            await line.send(b"x")
        await line.done.wait()
        await line.wait_gone()

    async with peer(explains, tls=tls) as upstream, pool_to(upstream) as pool:
        assert await fetch(pool, BIG) == (b"xxx", False)
        assert counts(pool) == (0, 0, 0)


async def test_deadline_of_connecting(clock: trio.testing.MockClock) -> None:
    async with peer(silence) as upstream:
        upstream.origin = type(upstream.origin)("https", "127.0.0.1", upstream.origin.port)
        async with pool_to(upstream) as pool:
            with pytest.raises(UpstreamUnreachable, match="could not be reached within 3 s"):
                await fetch(pool)


PARTIAL = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello"

# where: (what the peer does, the body)
POINTS: dict[str, tuple[Script, Body]] = {
    "name": (silence, b""),
    "tcp": (silence, b""),
    "tls": (silence, b""),
    "write": (deaf, BIG),
    "body": (silence, endless),
    "head": (silence, b""),
    "head, with a body": (silence, BIG),
    "answer": (answers(PARTIAL), b""),
    "answer, with a body": (answers_early(PARTIAL), endless),
}


@pytest.mark.parametrize("point", POINTS)
async def test_cancelled_at(point: str) -> None:
    script, body = POINTS[point]
    resolve(api=[])
    with full_backlog() as full:
        async with peer(script) as upstream:
            origin = {
                "name": Origin("http", "api.test", 80),
                "tcp": Origin("http", "127.0.0.1", full),
                "tls": replace(upstream.origin, scheme="https"),
            }.get(point, upstream.origin)
            pool = make_pool(origin)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch, pool, body)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert counts(pool) == (0, 1, 0)
                nursery.cancel_scope.cancel()
            assert counts(pool) == (0, 0, 0)
            assert len(upstream.lines) == (point not in ("name", "tcp"))
            for line in upstream.lines:
                line.done.set()
                await line.gone.wait()


async def test_cancelled_with_others_to_close(clock: trio.testing.MockClock) -> None:
    """What was taken out of the pool for its age is closed also if nothing comes of the exchange."""
    async with peer(answers(OK)) as upstream:
        resolve(api=[("127.0.0.1", upstream.origin.port)])
        pool = make_pool(Origin("http", "api.test", 80))
        await fetch(pool)
        await trio.sleep(31)
        resolve(api=[])
        with trio.move_on_after(1):
            await fetch(pool)
        assert counts(pool) == (0, 0, 0)
        await upstream.lines[0].gone.wait()


async def test_cancelled_in_the_queue() -> None:
    async with peer(answers(OK)) as upstream, pool_to(upstream, replace(BOUNDS, max_connections=1)) as pool:
        async with ask(pool) as first:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch, pool)
                await trio.testing.wait_all_tasks_blocked()
                assert counts(pool) == (0, 1, 1)
                nursery.cancel_scope.cancel()
            assert counts(pool) == (0, 1, 0)
            await read(first)
        assert counts(pool) == (1, 0, 0)


@KINDS
async def test_cancelled_at_close(tls: ssl.SSLContext | None) -> None:
    async with peer(answers(OK), tls=tls) as upstream, pool_to(upstream) as pool:
        async with ask(pool) as first:
            await fetch(pool)
            await read(first)
        assert counts(pool) == (2, 0, 0)
        with trio.CancelScope() as scope:
            scope.cancel()
            await pool.aclose()
        assert counts(pool) == (0, 0, 0)
        for line in upstream.lines:
            await line.gone.wait()
