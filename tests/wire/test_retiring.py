"""Idle connections that are past their age: closed when an exchange begins or ends, and never many at a time."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import trio
import trio.testing

from tests.wire.client import BOUNDS, ask, counts, fetch, pool_to, read
from tests.wire.peer import OK, Line, answers, peer
from tproxy.wire.pool import Pool

either_channel = pytest.mark.usefixtures("either_channel")


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps when nothing happens for a moment: loopback sockets may need one."""
    return trio.testing.MockClock(autojump_threshold=0.02)


async def rest(pool: Pool, count: int) -> None:
    """Have so many connections in the pool, idle."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            await read(await stack.enter_async_context(ask(pool)))


@either_channel
async def test_retired_a_few_at_a_time(clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request after a burst does not pay for all of it."""
    monkeypatch.setattr("tproxy.wire.pool.RETIRED_AT_ONCE", 2)
    async with peer(answers(OK, OK, OK)) as upstream, pool_to(upstream, replace(BOUNDS, max_connections=20)) as pool:
        await rest(pool, 10)
        await trio.sleep(31)
        left = []
        for reused in (False, True, True):
            assert await fetch(pool) == (b"ok", reused)
            left.append(counts(pool)[0])
        # At first two by their age, two that were tried, and two when the exchange ended; then two and two more.
        assert left == [5, 1, 1]
        with trio.fail_after(5):
            for line in upstream.lines[:10]:
                await line.gone.wait()


@either_channel
async def test_those_that_are_still_to_be_retired_count(
    clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peer(answers(OK, OK)) as upstream, pool_to(upstream, replace(BOUNDS, max_connections=4)) as pool:
        await rest(pool, 4)
        await trio.sleep(31)
        monkeypatch.setattr("tproxy.wire.pool.RETIRED_AT_ONCE", 0)
        async with AsyncExitStack() as stack:
            for active in range(1, 5):
                response = await stack.enter_async_context(ask(pool))
                assert not response.reused
                assert counts(pool) == (4 - active, active, 0)


async def test_retired_when_an_exchange_ends(clock: trio.testing.MockClock) -> None:
    async with peer(answers(OK)) as upstream, pool_to(upstream) as pool:
        async with ask(pool) as long:
            await fetch(pool)
            await trio.sleep(31)
            assert counts(pool) == (1, 1, 0)
            await read(long)
        assert counts(pool) == (1, 0, 0)
        with trio.fail_after(5):
            await upstream.lines[1].gone.wait()


async def test_one_that_the_upstream_ends_is_closed_though_no_exchange_comes() -> None:
    """Where the poller tells; elsewhere the next exchange finds it."""
    ended = trio.Event()

    async def script(line: Line) -> None:
        await answers(OK, OK)(line) if ended.is_set() else await once(line)

    async def once(line: Line) -> None:
        await line.request()
        await line.send(OK)
        await ended.wait()

    async with peer(script) as upstream, pool_to(upstream) as pool:
        assert await fetch(pool) == (b"ok", False)
        assert counts(pool)[0] == 1
        ended.set()
        with trio.fail_after(5):
            while counts(pool)[0]:
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert await fetch(pool) == (b"ok", False)
