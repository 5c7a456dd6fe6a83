"""Clients that leave, stall or dawdle: each is noticed within a second, or when its time is up.

Time stands still unless a test moves it on (`mock_clock`): what is noticed without that is noticed at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.wire.serving import GET, Client, Message, Receive, Send, answer_with, body_of, ok, serving, settle
from tproxy.wire.asgi import POLL_SECONDS, READ_AHEAD
from tproxy.wire.channel import LINGER_SECONDS
from tproxy.wire.inbound import Bounds, ClientDisconnected

pytestmark = pytest.mark.usefixtures("either_channel")

START = {"type": "http.response.start", "status": 200}
PART = {"type": "http.response.body", "body": b"part", "more_body": True}
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"

WAYS: dict[str, Callable[[Client], None]] = {
    "FIN": Client.close,
    "RST": Client.reset,
    "half-close": lambda client: client.socket.shutdown(trio.socket.SHUT_WR),
}


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.get_records("call") if record.name == "tproxy.wire"]


def open_sockets() -> int:
    """How many this process has, on both sides."""
    kinds = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder's own
            kinds.append(os.readlink(fd))
    return sum(kind.startswith("socket:") for kind in kinds)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "waiting"])
@pytest.mark.parametrize(
    "request_bytes",
    [GET, POST + b"body", GET + b"\r\n", GET + b"GET", POST + b"body" + GET, GET + bytes(READ_AHEAD + 5000)],
    ids=["GET", "POST", "stray CRLF", "pipelined start", "pipelined request", "more than is read ahead"],
)
async def test_after_the_request(
    request_bytes: bytes, streaming: bool, way: str, mock_clock: trio.testing.MockClock
) -> None:
    noticed = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await body_of(receive)
        if streaming:
            await send(START)
            await send(PART)
        assert await receive() == {"type": "http.disconnect"}
        with pytest.raises(ClientDisconnected):
            await send(PART if streaming else START)
        assert await receive() == {"type": "http.disconnect"}
        noticed.set()

    before = open_sockets()
    async with serving(app) as server:
        client = await server.connect()
        await client.send(request_bytes)
        await settle()
        WAYS[way](client)
        await settle()
        if len(request_bytes) > READ_AHEAD:
            mock_clock.jump(POLL_SECONDS)
        await noticed.wait()
    assert open_sockets() == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sent", [b"", b"bo", bytes(READ_AHEAD)], ids=["no body", "half a body", "much body"])
@pytest.mark.parametrize("asks", [True, False], ids=["asked for", "not asked for"])
async def test_in_the_body(asks: bool, sent: bytes, way: str, mock_clock: trio.testing.MockClock) -> None:
    noticed = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if asks:
            while (message := await receive())["type"] == "http.request":
                assert message["more_body"]
        else:
            await trio.sleep(1)
        with pytest.raises(ClientDisconnected):
            await send(START)
        assert await receive() == {"type": "http.disconnect"}
        noticed.set()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n" + sent)
        await settle()
        WAYS[way](client)
        await settle()
        if not asks:
            mock_clock.jump(POLL_SECONDS)
            await settle()
            mock_clock.jump(1 - POLL_SECONDS)
        await noticed.wait()


async def test_an_application_may_let_the_error_pass() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        assert await receive() == {"type": "http.disconnect"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, START)
            await trio.sleep_forever()

    async with serving(app) as server:
        before = open_sockets()
        client = await server.connect()
        await client.send(GET)
        await settle()
        client.close()
        await settle()
        assert open_sockets() == before


async def test_in_a_write_that_waits_for_the_client() -> None:
    noticed = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        with pytest.raises(ClientDisconnected):
            await send({**PART, "body": bytes(64 << 20)})
        noticed.set()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        await settle()
        WAYS["half-close"](client)
        await noticed.wait()


async def test_from_a_unix_socket(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    noticed = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await body_of(receive)
        assert await receive() == {"type": "http.disconnect"}
        noticed.set()

    async with serving(app, bind=f"unix:{tmp_path}/socket") as server:
        client = await server.connect()
        await client.send(GET + bytes(READ_AHEAD + 5000))
        await settle()
        client.close()
        mock_clock.jump(POLL_SECONDS)
        await noticed.wait()


async def test_after_a_whole_answer_the_application_is_told_too() -> None:
    told = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer_with(send)
        for _ in range(2):
            assert await receive() == {"type": "http.disconnect"}
        told.set()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer()).body == b"ok"
        await told.wait()


async def test_a_reader_of_the_body_does_not_outlive_the_answer() -> None:
    told = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        async def read() -> None:
            assert await receive() == {"type": "http.disconnect"}
            told.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await settle()
            await answer_with(send, b"no", status=413)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(POST)
        assert (await client.answer()).status == 413
        await told.wait()


async def test_a_client_that_takes_nothing_is_reset(mock_clock: trio.testing.MockClock) -> None:
    ended = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        sending = True
        while sending:
            try:
                await send({**PART, "body": bytes(65536)})
            except ClientDisconnected as error:
                sending = "too long" not in str(error)
        ended.set()

    async with serving(app, Bounds(write=7)) as server:
        client = await server.connect()
        await client.send(GET)
        await settle()
        mock_clock.jump(6.9)
        await settle()
        assert not ended.is_set()
        mock_clock.jump(0.1)
        await ended.wait()
        with pytest.raises(trio.BrokenResourceError):
            await client.rest()


async def test_a_client_that_takes_a_little_now_and_then_is_served(mock_clock: trio.testing.MockClock) -> None:
    size = 32 << 20

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer_with(send, bytes(size))

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        got = 0
        while got < size:
            mark = got + (4 << 20)
            while got < min(mark, size):
                got += len(await client.receive())
            await settle()
            mock_clock.jump(59)
            await settle()


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r"])
async def test_a_slow_head(sent: bytes, mock_clock: trio.testing.MockClock) -> None:
    async with serving(ok) as server:
        client = await server.connect()
        await settle()
        for byte in sent:
            mock_clock.jump(9.5 / len(sent))
            await client.send(bytes([byte]))
            await settle()
        mock_clock.jump(0.6)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert await client.rest() == b""


async def test_a_client_that_says_nothing_is_let_go(mock_clock: trio.testing.MockClock) -> None:
    async with serving(ok) as server:
        client = await server.connect()
        await settle()
        mock_clock.jump(10)
        assert await client.rest() == b""


async def test_later_heads_have_a_clock_of_their_own(mock_clock: trio.testing.MockClock) -> None:
    async with serving(ok, keep_alive_timeout=75) as server:
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer()).status == 200
        for _ in range(2):
            await settle()
            mock_clock.jump(74)
            await settle()
            await client.send(GET[:5])
            await settle()
            mock_clock.jump(9)
            await settle()
            await client.send(GET[5:])
            assert (await client.answer()).status == 200
        await client.send(GET[:5])
        await settle()
        mock_clock.jump(10)
        assert (await client.answer()).status == 408


async def test_an_idle_connection_ends_and_empty_lines_do_not_keep_it(mock_clock: trio.testing.MockClock) -> None:
    async with serving(ok, keep_alive_timeout=75) as server:
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer()).status == 200
        await settle()
        mock_clock.jump(74)
        await client.send(b"\r\n\r\n\r")
        await settle()
        await client.send(b"\n")
        await settle()
        mock_clock.jump(1)
        await settle()
        assert await client.rest() == b""


@pytest.mark.parametrize("way", WAYS)
async def test_idle_connections_whose_clients_left_hold_no_descriptor(
    way: str, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(ok) as server:
        before = open_sockets()
        clients = [await server.connect() for _ in range(50)]
        for client in clients[:40]:
            await client.send(GET)
            assert (await client.answer()).body == b"ok"
        for client in clients:
            WAYS[way](client)
        await settle()
        assert open_sockets() == before + (50 if way == "half-close" else 0)


async def test_a_client_that_never_stops_sending_is_not_listened_to_for_ever(
    mock_clock: trio.testing.MockClock,
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer_with(send, status=401)

    async with serving(app) as server:
        client = await server.connect()
        await settle()
        before = open_sockets()
        await client.send(POST)
        assert (await client.answer()).status == 401
        await client.send(b"b")
        await settle()
        assert open_sockets() == before
        mock_clock.jump(LINGER_SECONDS)
        await settle()
        assert open_sockets() == before - 1


async def test_a_storm_of_resets_ends_nothing_and_fills_no_log() -> None:
    async with serving(ok) as server:
        for length in range(len(POST) + 4):
            client = await server.connect()
            if length:
                await client.send((POST + b"body")[:length])
            client.reset()
        await settle()
        assert (await server.get()).body == b"ok"
