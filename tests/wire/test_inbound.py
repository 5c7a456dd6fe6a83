"""What an application is told of a request, and what a client gets of its answer, over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from anthropic import DefaultAsyncHttpxClient

from tests.cuts import every_cut
from tests.wire.serving import (
    GET,
    Message,
    Receive,
    Send,
    answer_with,
    body_of,
    ok,
    serving,
    settle,
)

pytestmark = pytest.mark.usefixtures("either_channel")

START = {"type": "http.response.start", "status": 200}
PART = {"type": "http.response.body", "body": b"part", "more_body": True}


@pytest.fixture(autouse=True)
def _nothing_goes_wrong(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.get_records("call") if record.name == "tproxy.wire"]


async def test_the_scope() -> None:
    scopes: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert len(scope["headers"]) == 4
        assert scope["headers"][1] == (b"x-two", b"1")
        scopes.append({**scope, "headers": list(scope["headers"])})
        await ok(scope, receive, send)

    async with serving(app, root_path="/root") as server:
        client = await server.connect()
        await client.send(
            b"POST /v1/m%C3%A9ss?b=%20&b=+ HTTP/1.1\r\nHost: x\r\nX-Two: 1\r\nx-two:2 \r\nContent-Length: 0\r\n\r\n"
        )
        await client.answer()
        headers = [(b"Host", b"x"), (b"X-Two", b"1"), (b"x-two", b"2"), (b"Content-Length", b"0")]
        transport = scopes[0]["extensions"].pop("tproxy")
        told = (transport.target, transport.headers, transport.http_version)
        assert told == (b"/v1/m%C3%A9ss?b=%20&b=+", headers, "1.1")
        assert scopes == [
            {
                "type": "http",
                "asgi": {"version": "3.0", "spec_version": "2.4"},
                "http_version": "1.1",
                "method": "POST",
                "scheme": "http",
                "path": "/v1/méss",
                "raw_path": b"/v1/m%C3%A9ss",
                "query_string": b"b=%20&b=+",
                "root_path": "/root",
                "headers": [(name.lower(), value) for name, value in headers],
                "client": client.socket.getsockname(),
                "server": server.address,
                "state": {},
                "extensions": {},
            }
        ]


async def test_each_request_has_a_state_of_its_own() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert scope["state"] == {}
        scope["state"]["left"] = "over"
        await ok(scope, receive, send)

    async with serving(app) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(GET)
            assert (await client.answer()).status == 200


async def test_a_request_is_the_same_however_it_is_cut() -> None:
    seen: list[tuple[Any, bytes]] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        transport = scope["extensions"]["tproxy"]
        told = {"client": None, "headers": list(scope["headers"]), "extensions": (transport.target, transport.headers)}
        seen.append((scope | told, await body_of(receive)))
        await answer_with(send)

    request = (
        b"POST /v1/messages?a=b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nX-Odd:\t\xff \r\n\r\n"
        b"5\r\nhel\r\n\r\n6;ext=1\r\nlo\r\n\r\n\r\n0\r\nTrailer: x\r\n\r\n"
    )
    async with serving(app) as server:
        for pieces in every_cut(request, random_cuts=10):
            client = await server.connect()
            for piece in pieces:
                if piece:
                    await client.send(piece)
                    await settle()
            assert (await client.answer()).body == b"ok"
    assert len(seen) == 12
    assert seen[0][1] == b"hel\r\nlo\r\n\r\n"
    assert all(other == seen[0] for other in seen)


async def test_a_connection_is_used_again() -> None:
    ports: list[int] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        ports.append(scope["client"][1])
        await answer_with(send, await body_of(receive))

    async with serving(app, keep_alive_max_requests=3) as server:
        client = await server.connect()
        for number in range(3):
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d" % number)
            answer = await client.answer()
            assert answer.body == b"%d" % number
            assert answer.headers.get("connection") == ("close" if number == 2 else None)
            assert parsedate_to_datetime(answer.headers["date"]).year >= 2026
        assert await client.rest() == b""
    assert len(set(ports)) == 1


async def test_pipelined_requests_are_served_in_order_one_at_a_time() -> None:
    running = 0

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal running
        running += 1
        assert running == 1
        body = await body_of(receive)
        await trio.lowlevel.checkpoint()
        running -= 1
        await answer_with(send, scope["raw_path"] + body)

    async with serving(app) as server:
        client = await server.connect()
        requests = [
            b"\r\nPOST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n%02d" % (number, number)
            if number % 2
            else b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number
            for number in range(50)
        ]
        await client.send(b"".join(requests))
        for number in range(50):
            body = b"/%d" % number + (b"%02d" % number if number % 2 else b"")
            assert (await client.answer()).body == body


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
BOTH = [(b"transfer-encoding", b"gzip"), (b"content-length", b"9")]
FRAMINGS = [
    # name, request line, status, headers, parts, what the wire holds after the Date field
    ("length", "GET / HTTP/1.1", 200, [(b"CONTENT-length", b"4")], [b"pa", b"rt"], b"\r\npart"),
    ("chunked", "GET / HTTP/1.1", 200, [], [b"pa", b"rt"], CHUNKED + b"2\r\npa\r\n2\r\nrt\r\n0\r\n\r\n"),
    ("chunked, no body", "GET / HTTP/1.1", 200, [], [b""], CHUNKED + b"0\r\n\r\n"),
    ("coding beats length", "GET / HTTP/1.1", 200, BOTH, [b"part"], CHUNKED + b"4\r\npart\r\n0\r\n\r\n"),
    ("HEAD", "HEAD / HTTP/1.1", 200, [(b"Content-Length", b"4")], [b"part"], b"\r\n"),
    ("HEAD, no length", "HEAD / HTTP/1.1", 200, [], [b""], b"\r\n"),
    ("204", "GET / HTTP/1.1", 204, [(b"Content-Length", b"0")], [b""], b"\r\n"),
    ("304", "GET / HTTP/1.1", 304, [(b"Content-Length", b"4")], [b""], b"\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "line", "status", "headers", "parts", "wire"), FRAMINGS, ids=lambda v: v if type(v) is str else ""
)
async def test_framing(
    name: str, line: str, status: int, headers: list[tuple[bytes, bytes]], parts: list[bytes], wire: bytes
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"Date", b"now")]})
        for number, part in enumerate(parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    async with serving(app) as server:
        client = await server.connect()
        # The second request shows that the first answer ended where it should, and left the connection open.
        await client.send(f"{line}\r\nHost: x\r\n\r\n".encode() * 2)
        await settle()
        data = await client.receive()
        while data.count(b"Date: now\r\n") < 2 or not data.endswith(wire):
            data += await client.receive()
        first, second = data[: len(data) // 2], data[len(data) // 2 :]
        assert first == second
        assert first.partition(b"Date: now\r\n")[2] == wire
        assert (b"CONTENT-length: 4" in first) == (name == "length")
        assert (b"Content-Length: 4" in first) == (name in ("HEAD", "304"))
        assert first.lower().count(b"content-length") == (name in ("length", "HEAD", "304"))


@pytest.mark.parametrize(
    ("request_head", "headers", "says_close"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", [(b"Content-Length", b"4")], True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", [], True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: x, Close\r\n\r\n", [(b"Content-Length", b"4")], True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [], False),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", [(b"Content-Length", b"4"), (b"connection", b"close")], True),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", [(b"connection", b"close")], False),
    ],
)
async def test_a_last_answer_ends_the_connection_and_says_so_unless_it_is_chunked(
    request_head: bytes, headers: list[tuple[bytes, bytes]], says_close: bool
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answer_with(send, b"part", headers=headers)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(request_head)
        wire = await client.rest()
        assert wire.lower().count(b"connection: close\r\n") == says_close
        assert (b"chunked" in wire) == (not says_close)
        assert wire.endswith(b"\r\n\r\npart" if says_close else b"\r\n\r\n4\r\npart\r\n0\r\n\r\n")


async def test_the_head_goes_out_at_once_as_the_application_wrote_it_and_each_message_in_one_piece() -> None:
    go_on = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        headers = [(b"dAtE", b"then"), (b"X-A", b"1"), (b"x-b", b" \xff "), (b"X-A", b"2")]
        await send({**START, "status": 529, "reason": b"Overloaded", "headers": headers})
        for _ in range(2):
            await go_on.wait()
            await send(PART)
        await send({"type": "http.response.body"})

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        await settle()
        assert await client.receive() == (
            b"HTTP/1.1 529 Overloaded\r\ndAtE: then\r\nX-A: 1\r\nx-b: \xff\r\nX-A: 2\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        go_on.set()
        await settle()
        assert await client.receive() == b"4\r\npart\r\n4\r\npart\r\n0\r\n\r\n"


async def test_the_client_inside_the_official_sdk() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        body = await body_of(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Path", scope["raw_path"])]})
        for number in range(10):
            await send({"type": "http.response.body", "body": b"%d:%b;" % (number, body), "more_body": True})
        await send({"type": "http.response.body"})

    async with serving(app) as server, DefaultAsyncHttpxClient() as client:
        url = "http://{}:{}/v1/messages".format(*server.address)
        for _ in range(3):
            response = await client.post(url, content=b"hi")
            assert response.headers["x-path"] == "/v1/messages"
            assert response.text == "".join(f"{number}:hi;" for number in range(10))


async def test_a_unix_socket(tmp_path: Path) -> None:
    addresses: list[Any] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        addresses.append((scope["client"], scope["server"]))
        await ok(scope, receive, send)

    async with serving(app, bind=f"unix:{tmp_path}/socket") as server:
        assert (await server.get()).body == b"ok"
    assert addresses == [(None, None)]


async def test_a_worker_ends_after_its_share_of_requests() -> None:
    async with serving(ok, max_requests=2) as server:
        for _ in range(3):
            assert (await server.get()).status == 200
        await server.stopped.wait()
