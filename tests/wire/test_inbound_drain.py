"""Shutting down: who is idle goes at once, who is served is served to the end, and TLS on the way in."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from tests.wire.serving import GET, Message, Receive, Send, answer_with, body_of, ok, serving, settle
from tproxy.wire.asgi import READ_AHEAD
from tproxy.wire.inbound import HANDSHAKE_SECONDS, Bounds, ClientDisconnected

pytestmark = pytest.mark.usefixtures("either_channel")

START = {"type": "http.response.start", "status": 200}
PART = {"type": "http.response.body", "body": b"part", "more_body": True}


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.get_records("call") if record.name == "tproxy.wire"]


async def test_idle_connections_close_at_once(mock_clock: trio.testing.MockClock) -> None:
    async with serving(ok) as server:
        fresh, used = await server.connect(), await server.connect()
        await used.send(GET)
        assert (await used.answer()).status == 200
        await settle()
        server.shutdown.set()
        assert await fresh.rest() == b""
        assert await used.rest() == b""
        await server.stopped.wait()


@pytest.mark.parametrize("how", ["counted", "chunked", "begun"])
@pytest.mark.parametrize("pipelined", [b"", GET])
async def test_a_running_exchange_is_finished_and_no_other_begun(
    how: str, pipelined: bytes, mock_clock: trio.testing.MockClock
) -> None:
    go_on = trio.Event()
    served = 0

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal served
        served += 1
        if how == "begun":
            await send(START)
        await go_on.wait()
        if how == "begun":
            await send({"type": "http.response.body", "body": b"ok"})
        else:
            await answer_with(send, headers=None if how == "counted" else [])

    async with serving(app, graceful_timeout=600) as server:
        client = await server.connect()
        await client.send(GET + pipelined)
        await settle()
        server.shutdown.set()
        await settle()
        assert not server.stopped.is_set()
        with pytest.raises(ConnectionRefusedError):
            await server.connect()
        go_on.set()
        answer = await client.answer()
        assert answer.body == b"ok"
        assert answer.headers.get("connection") == ("close" if how == "counted" else None)
        assert await client.rest() == b""
        client.close()
        await server.stopped.wait()
    assert served == 1


async def test_a_request_that_has_begun_to_arrive_is_served(mock_clock: trio.testing.MockClock) -> None:
    async with serving(ok, graceful_timeout=600) as server:
        client = await server.connect()
        await client.send(GET[:10])
        await settle()
        server.shutdown.set()
        await settle()
        await client.send(GET[10:])
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await server.stopped.wait()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tls") / "server.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_tls(certificate: Path, tls: ssl.SSLContext) -> None:
    scopes: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await answer_with(send, await body_of(receive), headers=[])

    tls.set_alpn_protocols(["h2", "http/1.1"])
    async with serving(app, certfile=str(certificate), keyfile=str(certificate)) as server:
        client = await server.connect(tls)
        assert isinstance(client.stream, trio.SSLStream)
        assert client.stream.selected_alpn_protocol() == "http/1.1"
        for body in (b"a", b"b" * 500_000):
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            assert (await client.answer()).body == body
    assert [scope["scheme"] for scope in scopes] == ["https", "https"]


async def test_a_client_that_gets_http2_by_a_setting_is_not_misunderstood(
    certificate: Path, tls: ssl.SSLContext, mock_clock: trio.testing.MockClock
) -> None:
    tls.set_alpn_protocols(["h2"])
    async with serving(
        ok, certfile=str(certificate), keyfile=str(certificate), alpn_protocols=["h2", "http/1.1"]
    ) as server:
        client = await server.connect(tls)
        assert await client.rest() == b""


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"], ids=["silent", "slow", "plain"])
async def test_a_client_that_does_no_handshake_is_let_go(
    hello: bytes, certificate: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(ok, certfile=str(certificate), keyfile=str(certificate)) as server:
        client = await server.connect()
        await client.send(hello) if hello else None
        await settle()
        mock_clock.jump(HANDSHAKE_SECONDS)
        try:
            await client.rest()
        except trio.BrokenResourceError:
            assert hello.startswith(b"GET")  # closed over unread bytes


@pytest.mark.parametrize("ahead", [b"", b"\r\n", bytes(READ_AHEAD + 5000)], ids=["nothing", "a line", "more than fits"])
@pytest.mark.parametrize("reset", [True, False])
async def test_a_tls_client_that_leaves_is_noticed(
    ahead: bytes, reset: bool, certificate: Path, tls: ssl.SSLContext, mock_clock: trio.testing.MockClock
) -> None:
    noticed = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await body_of(receive)
        await send(START)
        assert await receive() == {"type": "http.disconnect"}
        with pytest.raises(ClientDisconnected):
            await send(PART)
        noticed.set()

    async with serving(app, certfile=str(certificate), keyfile=str(certificate)) as server:
        client = await server.connect(tls)
        await client.send(GET + ahead)
        await settle()
        client.reset() if reset else client.close()
        await settle()
        mock_clock.jump(1)
        await noticed.wait()


async def test_a_tls_client_that_takes_nothing_is_cut(
    certificate: Path, tls: ssl.SSLContext, mock_clock: trio.testing.MockClock
) -> None:
    ended = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        with pytest.raises(ClientDisconnected, match="too long"):
            await send({**PART, "body": bytes(32 << 20)})
        ended.set()

    settings = {"certfile": str(certificate), "keyfile": str(certificate)}
    async with serving(app, Bounds(write=7), **settings) as server:
        client = await server.connect(tls)
        await client.send(GET)
        await settle()
        mock_clock.jump(7)
        await ended.wait()
