"""The way round `send`: the client's descriptor, and what is left of a chunk of which it took a part."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
import trio
import trustme

from tests.wire.serving import GET, Message, Receive, Send, body_of, ok, serving, settle
from tproxy.wire import poller
from tproxy.wire.asgi import Transport
from tproxy.wire.inbound import ClientDisconnected

START = {"type": "http.response.start", "status": 200}
PART = {"type": "http.response.body", "body": b"part", "more_body": True}
END = {"type": "http.response.body"}
COUNTED = {**START, "headers": [(b"content-length", b"8")]}


def transport(scope: Message) -> Transport:
    extension = scope["extensions"]["tproxy"]
    assert isinstance(extension, Transport)
    return extension


async def test_chunks_are_written_past_send() -> None:
    go_on = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send(PART)
        fd = transport(scope).sink()
        assert fd is not None
        assert os.write(fd, b"3\r\none\r\n") == 8
        assert os.write(fd, b"3\r\nt") == 4
        await go_on.wait()
        await transport(scope).rest(b"wo\r\n")
        assert transport(scope).sink() == fd
        await send({**END, "body": b"three"})

    async with serving(app) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(GET)
            await settle()
            go_on.set()
            assert (await client.answer()).body == b"partonetwothree"


SINKS = [
    # name, request, what is sent before, whether there is a sink
    ("nothing", GET, [], False),
    ("a held head", GET, [{**START, "held": True}], False),
    ("a head", GET, [START], True),
    ("a held head with a part", GET, [{**START, "held": True}, PART], True),
    ("a counted body", GET, [COUNTED, PART], False),
    ("an answer to HEAD", GET.replace(b"GET", b"HEAD"), [START], False),
    ("a body that ends with the connection", GET.replace(b"1.1", b"1.0"), [START, PART], False),
    ("a whole answer", GET, [START, PART, END], False),
]


@pytest.mark.parametrize(("name", "request_head", "before", "there"), SINKS, ids=[row[0] for row in SINKS])
async def test_where_there_is_a_sink(name: str, request_head: bytes, before: list[Message], there: bool) -> None:
    seen: list[bool] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        for message in before:
            await send(message)
        seen.append(transport(scope).sink() is not None)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(request_head)
        await settle()
    assert seen == [there]


async def test_there_is_none_while_something_is_being_written() -> None:
    seen: list[int | None] = []
    looked = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, {**PART, "body": bytes(64 << 20)})
            await settle()
            seen.append(transport(scope).sink())
            looked.set()
            nursery.cancel_scope.cancel()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        await looked.wait()
    assert seen == [None]


async def test_there_is_none_without_a_poller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "current", lambda: None)
    seen: list[int | None] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        seen.append(transport(scope).sink())
        await send(END)

    async with serving(app) as server:
        assert (await server.get()).status == 200
    assert seen == [None]


async def test_there_is_none_over_tls(tmp_path: Path) -> None:
    seen: list[int | None] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        seen.append(transport(scope).sink())
        await send(END)

    authority, context = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(context)
    file = str(tmp_path / "server.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(file)
    async with serving(app, certfile=file, keyfile=file) as server:
        client = await server.connect(context)
        await client.send(GET)
        assert (await client.answer()).status == 200
    assert seen == [None]


async def test_none_is_left_after_the_request() -> None:
    kept: list[Transport] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        kept.append(transport(scope))
        await ok(scope, receive, send)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer()).status == 200
        assert kept[0].sink() is None
        with pytest.raises(ClientDisconnected):
            await kept[0].rest(b"x")


async def test_what_is_left_of_a_chunk_waits_for_the_client_as_send_does() -> None:
    size = 32 << 20

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        fd = transport(scope).sink()
        assert fd is not None
        chunk = b"%x\r\n%b\r\n" % (size, bytes(size))
        await transport(scope).rest(chunk[os.write(fd, chunk) :])
        await send(END)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer()).body == bytes(size)


async def test_a_client_that_left_has_no_sink_and_takes_no_rest() -> None:
    done = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await body_of(receive)
        await send(START)
        await transport(scope).left.wait()
        assert transport(scope).sink() is None
        with pytest.raises(ClientDisconnected):
            await transport(scope).rest(b"rest")
        done.set()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        await settle()
        client.close()
        await done.wait()
