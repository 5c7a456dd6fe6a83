"""The channel on a descriptor: what it does at once, what it waits for, and that it hides nobody's turn or end."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from tests.wire.serving import GET, Message, Receive, Send, body_of, ok, serving, settle
from tproxy.wire import poller
from tproxy.wire.channel import Channel, ClientDisconnected
from tproxy.wire.channel_kinds import SocketChannel, StreamChannel, channel_of

pytestmark = pytest.mark.usefixtures("either_channel")


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Channel, socket.socket]]:
    """A channel, and its client's socket."""
    ours, theirs = socket.socketpair()
    channel = channel_of(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), 5)
    with theirs:
        try:
            yield channel, theirs
        finally:
            channel.close()


async def others_turns(work: Callable[[], Awaitable[object]]) -> int:
    """How often another task had its turn while `work` was done 100 times."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(100):
            await work()
        nursery.cancel_scope.cancel()
    return turns


async def test_what_need_not_wait_gives_others_their_turn() -> None:
    async with connected() as (channel, client):
        assert await others_turns(partial(channel.write, b"x")) >= 3
        client.send(bytes(100))
        assert await others_turns(partial(channel.read, 1)) >= 3


@pytest.mark.parametrize("told_first", [True, False], ids=["told before it is read", "told after it"])
async def test_an_end_that_came_with_the_last_bytes_is_read(told_first: bool) -> None:
    async with connected() as (channel, client):
        client.send(b"last")
        client.shutdown(socket.SHUT_WR)
        if told_first:
            await settle()
        assert await channel.read() == b"last"
        assert not channel.gone
        assert await channel.read() == b""
        assert channel.gone
        with pytest.raises(ClientDisconnected):
            await channel.write(b"x")


async def test_an_end_that_came_with_the_last_bytes_wakes_a_reader_once() -> None:
    """One event tells of both, and the reader that it wakes gets the bytes; the end, the next one."""
    got: list[bytes] = []

    async def read_to_the_end() -> None:
        with trio.fail_after(1):
            while not got or got[-1]:
                got.append(await channel.read())

    async with connected() as (channel, client), trio.open_nursery() as nursery:
        nursery.start_soon(read_to_the_end)
        await settle()
        client.send(b"last")
        client.shutdown(socket.SHUT_WR)
    assert got == [b"last", b""]


async def test_bytes_that_come_between_two_reads_are_read() -> None:
    async with connected() as (channel, client):
        for number in range(5):
            client.send(b"%d" % number)
            if number % 2:
                await settle()
            assert await channel.read(100) == b"%d" % number
        client.send(b"abc")
        assert [await channel.read(1) for _ in range(3)] == [b"a", b"b", b"c"]


async def test_a_reader_waits_and_wakes() -> None:
    got: list[bytes] = []

    async def read() -> None:
        got.append(await channel.read())

    async with connected() as (channel, client), trio.open_nursery() as nursery:
        for piece in (b"one", b"two"):
            nursery.start_soon(read)
            await settle()
            client.send(piece)
            await settle()
        nursery.start_soon(read)
        await settle()
        channel.close()
    assert got == [b"one", b"two", b""]


async def test_a_cancelled_read_loses_nothing() -> None:
    async with connected() as (channel, client):
        with trio.move_on_after(0) as scope:
            await channel.read()
        assert scope.cancelled_caught
        client.send(b"x")
        with trio.CancelScope() as scope:
            scope.cancel()
            await channel.read()
        assert scope.cancelled_caught
        assert await channel.read() == b"x"


async def test_a_write_that_has_to_wait_is_whole(autojump_clock: trio.testing.MockClock) -> None:
    data = os.urandom(1 << 20) * 4
    got = bytearray()

    async def take() -> None:
        """With a pause now and then, each shorter than the time that a write may make no progress."""
        theirs = trio.socket.from_stdlib_socket(client)
        while len(got) < len(data):
            if len(got) % 3 == 0:
                await trio.sleep(4)
            got.extend(await theirs.recv(70_000))

    async with connected() as (channel, client):
        client.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await channel.write(data)
    assert got == data


async def test_who_leaves_is_told_whatever_lies_unread_before_that() -> None:
    """Or nobody says that they will be told: then there is `left` to ask."""
    told: list[bool] = []
    async with connected() as (channel, client):
        client.send(b"unread")
        tells = channel.attend(lambda: told.append(channel.gone))
        assert tells is (poller.current() is not None)
        await settle()
        assert not channel.left()
        client.close()
        await settle()
        assert told == [True] * tells
        assert channel.left()
        channel.close()
        assert told == [True]


async def test_who_had_left_before_is_told_at_once() -> None:
    told: list[bool] = []
    async with connected() as (channel, client):
        client.close()
        await settle()
        assert told == []
        tells = channel.attend(lambda: told.append(channel.gone))
        assert told == [True] * tells


async def test_who_attends_no_more_is_told_nothing() -> None:
    told: list[bool] = []
    async with connected() as (channel, client):
        channel.attend(lambda: told.append(True))
        channel.attend(None)
        client.close()
        await settle()
        assert await channel.read() == b""
        assert channel.gone
    assert told == []


async def test_without_room_in_the_poller_there_is_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: poller.Poller, fd: int) -> poller.Watch:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(poller.Poller, "watch", full)
    async with connected() as (channel, _):
        assert isinstance(channel, StreamChannel)
    async with serving(ok) as server:
        assert (await server.get()).body == b"ok"


def tasks() -> int:
    """How many run, but for trio's own."""
    main = trio.lowlevel.current_root_task()
    assert main is not None
    found, count = [main], 0
    while found:
        task = found.pop()
        count += 1
        found += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return count


async def test_a_connection_is_one_task_where_the_poller_tells() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await body_of(receive)
        await send({"type": "http.response.start", "status": 200})
        await trio.sleep_forever()

    async with serving(app) as server:
        await server.connect()
        await settle()
        before = tasks()
        idle = [await server.connect() for _ in range(5)]
        await settle()
        assert tasks() - before == 5
        for client in idle:
            await client.send(GET)
        await settle()
        told = poller.current() is not None
        assert tasks() - before == (5 if told else 10)


async def test_each_kind() -> None:
    async with connected() as (channel, _):
        assert isinstance(channel, SocketChannel if poller.current() is not None else StreamChannel)
