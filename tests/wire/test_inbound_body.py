"""Request bodies: taken in bounded parts, when they are wanted, and never left over for the next request."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from tests.wire.serving import GET, Message, Receive, Send, answer_with, body_of, ok, serving, settle

pytestmark = pytest.mark.usefixtures("either_channel")


@pytest.fixture(autouse=True)
def _nothing_goes_wrong(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.get_records("call") if record.name == "tproxy.wire"]


async def test_upload_in_bounded_parts_and_no_faster_than_the_application_reads() -> None:
    sizes: list[int] = []
    go_on = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await go_on.wait()
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await answer_with(send)

    total = 64 << 20
    sent = 0
    async with serving(app) as server, trio.open_nursery() as nursery:
        client = await server.connect()

        async def upload() -> None:
            nonlocal sent
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % total)
            while sent < total:
                await client.send(bytes(1 << 20))
                sent += 1 << 20

        nursery.start_soon(upload)
        await settle()
        assert sent < total // 2
        go_on.set()
        assert (await client.answer()).body == b"ok"
    assert sum(sizes) == total
    assert max(sizes) <= 65536


async def test_tiny_chunks_arrive_joined_and_whole() -> None:
    parts: list[bytes] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            parts.append(message["body"])
            more = message["more_body"]
        await answer_with(send)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await client.send(b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n" + GET)
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 200
    assert b"".join(parts) == b"x" * 5000
    assert len(parts) < 500


@pytest.mark.parametrize(
    ("expect", "version", "reads", "first"),
    [
        (b"100-Continue", b"1.1", True, b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"100-continue", b"1.1", False, b"HTTP/1.1 401 Unauthorized\r\n"),
        (b"100-continue", b"1.0", True, None),
    ],
)
async def test_the_body_is_asked_for_when_it_is_wanted(
    expect: bytes, version: bytes, reads: bool, first: bytes | None
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if reads:
            await answer_with(send, await body_of(receive))
        else:
            await answer_with(send, status=401)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/%b\r\nHost: x\r\nExpect: %b\r\nContent-Length: 4\r\n\r\n" % (version, expect))
        if first is not None:
            assert (await client.receive()).startswith(first)
        if reads:
            await settle()
            await client.send(b"body")
            assert (await client.rest() if version == b"1.0" else await client.receive()).startswith(b"HTTP/1.1 200")
        else:
            assert await client.rest() in (b"ok", b"")


async def test_no_100_after_the_answer_has_begun() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"4")]})
        await send({"type": "http.response.body", "body": await body_of(receive)})

    async with serving(app) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        await settle()
        await client.send(b"body")
        wire = await client.rest()
        assert wire.startswith(b"HTTP/1.1 200 OK\r\n")
        assert wire.endswith(b"\r\n\r\nbody")
        assert wire.count(b"HTTP/1.1") == 1


async def test_no_100_where_the_body_has_come_already() -> None:
    async with serving(ok) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbo")
        await settle()
        await client.send(b"dy")
        assert (await client.receive()).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_an_early_answer_reaches_a_client_that_is_still_sending_and_the_connection_ends() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer_with(send, b"no", status=401)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n" + bytes(4000000))
        answer = await client.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (401, b"no", "close")
        assert await client.rest() == b""
