"""What our connection class tells an application beyond ASGI: `left` and `held`."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.wire.serving import GET, Client, Message, Receive, Send, answer_with, body_of, serving, settle
from tests.wire.test_inbound_leaving import WAYS
from tproxy.wire.asgi import POLL_SECONDS, READ_AHEAD
from tproxy.wire.inbound import Bounds, ClientDisconnected

pytestmark = pytest.mark.usefixtures("either_channel")

POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n"


def left(scope: Message) -> trio.Event:
    event: trio.Event = scope["extensions"]["tproxy"].left
    return event


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("answering", [False, True], ids=["no answer yet", "an early answer"])
@pytest.mark.parametrize("sent", [GET, POST, POST + bytes(READ_AHEAD)], ids=["all was read", "no body", "unread body"])
async def test_left_tells_who_does_not_ask(
    sent: bytes, answering: bool, way: str, mock_clock: trio.testing.MockClock
) -> None:
    noticed = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if sent is GET:
            await body_of(receive)
        if answering:
            await send({"type": "http.response.start", "status": 200})
        await left(scope).wait()
        noticed.set()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(sent)
        await settle()
        assert not noticed.is_set()
        WAYS[way](client)
        await settle()
        if sent is not GET:
            mock_clock.jump(POLL_SECONDS)
        await noticed.wait()


@pytest.mark.parametrize("way", WAYS)
async def test_who_leaves_is_told_once_without_a_task(way: str) -> None:
    told: list[bool] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        transport = scope["extensions"]["tproxy"]
        transport.on_left = lambda: told.append(transport.left.is_set())
        await body_of(receive)
        await send({"type": "http.response.start", "status": 200})
        await trio.sleep_forever()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        await settle()
        assert told == []
        WAYS[way](client)
        await settle()
        assert told == [True]
    assert told == [True]


async def test_who_took_nothing_for_too_long_has_left(mock_clock: trio.testing.MockClock) -> None:
    told: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scope["extensions"]["tproxy"].on_left = lambda: told.append("left")
        await send({"type": "http.response.start", "status": 200})
        with pytest.raises(ClientDisconnected):
            await send({"type": "http.response.body", "body": bytes(64 << 20)})
        await left(scope).wait()
        told.append("seen")

    async with serving(app, Bounds(write=7)) as server:
        client = await server.connect()
        await client.send(GET)
        await settle()
        mock_clock.jump(7)
        await settle()
    assert told == ["left", "seen"]


async def test_a_send_that_is_cancelled_is_not_leaving(mock_clock: trio.testing.MockClock) -> None:
    """Though the connection is broken off then, and nothing more can be received or sent."""
    told: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        async def waits() -> None:
            assert await receive() == {"type": "http.disconnect"}
            told.append("over")

        scope["extensions"]["tproxy"].on_left = lambda: told.append("left")
        await body_of(receive)
        await send({"type": "http.response.start", "status": 200})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits)
            with trio.move_on_after(1):
                await send({"type": "http.response.body", "body": bytes(64 << 20)})
        assert not left(scope).is_set()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        await settle()
        mock_clock.jump(1)
        await settle()
    assert told == ["over"]


async def test_the_end_of_an_answer_is_not_leaving(mock_clock: trio.testing.MockClock) -> None:
    """Though `receive` says `http.disconnect` then, as ASGI has it."""
    seen: list[bool] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await body_of(receive)
        await answer_with(send)
        assert await receive() == {"type": "http.disconnect"}
        await settle()
        seen.append(left(scope).is_set())
        scope["extensions"]["tproxy"].on_left = lambda: seen.append(True)

    async with serving(app) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(GET)
            assert (await client.answer()).body == b"ok"
        while len(seen) < 2:
            await settle()
    assert seen == [False, False]


@pytest.mark.parametrize("held", [True, False])
async def test_a_held_head_waits_for_the_first_of_the_body(held: bool) -> None:
    go = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "held": held})
        await go.wait()
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await send({"type": "http.response.body", "body": b"rest"})

    async with serving(app) as server:
        client: Client = await server.connect()
        await client.send(GET)
        await settle()
        assert client.socket.is_readable() is not held
        go.set()
        assert (await client.answer()).body == b"partrest"


async def test_a_held_head_without_a_body_is_no_answer() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "held": True})

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        assert await client.rest() == b""
