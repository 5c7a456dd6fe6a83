"""Readiness by a set of our own, on real sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from tproxy.wire.poller import Poller, Watch, current


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def watch(sock: socket.socket) -> Watch:
    poller = current()
    assert poller is not None
    return poller.watch(sock.fileno())


async def test_there_is_one_for_each_run() -> None:
    assert current() is current()
    assert isinstance(current(), Poller)


async def test_waits_until_something_comes(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    seen = watch(ours)
    got: list[bytes] = []

    async def read() -> None:
        await seen.readable()
        got.append(ours.recv(100))

    for word in (b"one", b"two"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert got == []
            theirs.send(word)
        assert got.pop() == word
    seen.close()


async def test_what_came_before_the_wait_ends_it_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    seen = watch(ours)
    theirs.send(b"x")
    await trio.testing.wait_all_tasks_blocked(0.01)
    with trio.fail_after(1):
        await seen.readable()
    assert ours.recv(10) == b"x"
    with trio.move_on_after(0.05) as scope:
        await seen.readable()
    assert scope.cancelled_caught
    seen.close()


@pytest.mark.parametrize("how", ["FIN", "FIN behind unread bytes", "RST"])
async def test_tells_once_that_the_peer_has_gone(how: str, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    seen, told = watch(ours), trio.Event()
    calls: list[str] = []

    def gone() -> None:
        calls.append(how)
        told.set()

    seen.on_gone = gone
    if how == "RST":
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif how != "FIN":
        theirs.send(b"unread")
    theirs.close()
    with trio.fail_after(1):
        await told.wait()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert (calls, seen.gone) == ([how], True)
    seen.close()


async def test_a_function_may_take_the_place_of_a_task(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    seen, told = watch(ours), trio.Event()
    got: list[bytes] = []

    def take() -> None:
        got.append(ours.recv(100))
        told.set()

    seen.on_readable = take
    theirs.send(b"x")
    with trio.fail_after(1):
        await told.wait()
    assert got == [b"x"]
    seen.close()


async def test_a_closed_one_wakes_who_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    seen = watch(ours)
    ended: list[str] = []

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await seen.readable()
        ended.append("closed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked(0.01)
        seen.close()
    assert ended == ["closed"]
    with pytest.raises(trio.ClosedResourceError):
        await seen.readable()
    seen.close()  # again, which does nothing
    theirs.send(b"x")  # nobody is told any more
    await trio.testing.wait_all_tasks_blocked(0.01)


async def test_one_task_at_a_time(pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery) -> None:
    seen = watch(pair[0])
    nursery.start_soon(seen.readable)
    await trio.testing.wait_all_tasks_blocked(0.01)
    with pytest.raises(trio.BusyResourceError):
        await seen.readable()
    nursery.cancel_scope.cancel()


async def test_a_cancelled_wait_leaves_nothing_behind(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    seen = watch(ours)
    with trio.move_on_after(0.01):
        await seen.readable()
    theirs.send(b"x")
    with trio.fail_after(1):
        await seen.readable()
    seen.close()


async def test_trouble_of_one_is_not_that_of_others(
    pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pair
    seen = watch(ours)

    def fail() -> None:
        raise RuntimeError("planted")

    seen.on_readable = fail
    theirs.send(b"x")
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert "could not be handled" in caplog.text
    seen.on_readable = None
    theirs.send(b"y")
    with trio.fail_after(1):
        await seen.readable()
    seen.close()
