"""Applications that fail, and what their clients see: an honest 500, or a cut that nobody takes for an end."""

from __future__ import annotations

import json
import logging

import h11
import pytest
import trio

from tests.wire.serving import GET, App, Message, Receive, Send, answer_with, body_of, ok, serving, settle
from tproxy.wire.asgi import READ_AHEAD

pytestmark = pytest.mark.usefixtures("either_channel")

START = {"type": "http.response.start", "status": 200}
PART = {"type": "http.response.body", "body": b"part", "more_body": True}
FOUR = {**START, "headers": [(b"content-length", b"4")]}
NINE = {**START, "headers": [(b"content-length", b"9")]}


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def raises(scope: Message, receive: Receive, send: Send) -> None:
    await trio.lowlevel.checkpoint()
    raise ValueError("a secret")


async def raises_in_a_nursery(scope: Message, receive: Receive, send: Send) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raises, scope, receive, send)
        await trio.sleep_forever()


async def says_nothing(scope: Message, receive: Receive, send: Send) -> None:
    await trio.lowlevel.checkpoint()


async def splits_the_head(scope: Message, receive: Receive, send: Send) -> None:
    await answer_with(send, headers=[(b"x-a", b"1\r\nx-b: 2")])


async def has_two_lengths(scope: Message, receive: Receive, send: Send) -> None:
    await answer_with(send, headers=[(b"content-length", b"2"), (b"content-length", b"2")])


async def begins_with_the_body(scope: Message, receive: Receive, send: Send) -> None:
    await send(PART)


async def sends_an_interim_status(scope: Message, receive: Receive, send: Send) -> None:
    await answer_with(send, status=103)


@pytest.mark.parametrize(
    "app",
    [
        raises,
        raises_in_a_nursery,
        says_nothing,
        splits_the_head,
        has_two_lengths,
        begins_with_the_body,
        sends_an_interim_status,
    ],
    ids=lambda app: app.__name__,
)
async def test_a_failure_before_the_head_is_a_500_in_an_envelope(app: App, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        answer = await client.answer()
        error = json.loads(answer.body)
        assert answer.status == 500
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["connection"] == "close"
        assert error["error"] == {
            "type": "api_error",
            "message": "An internal error ended this request.",
            "details": {"error_code": "internal"},
        }
        assert error["request_id"] == answer.headers["x-tproxy-id"] == answer.headers["x-litellm-call-id"]
        assert await client.rest() == b""
        client = await server.connect()
        await client.send(GET.replace(b"GET", b"HEAD"))
        assert (await client.rest()).endswith(b"\r\n\r\n")
    assert len(errors_in(caplog)) == 2


CUTS = [
    # name, messages, then whether the application raises, HTTP version, what is logged
    ("raise in a chunked body", [START, PART], True, "1.1", 1),
    ("return in a chunked body", [START, PART], False, "1.1", 0),
    ("raise after the head", [START], True, "1.1", 1),
    ("return in a counted body", [NINE, PART], False, "1.1", 0),
    ("too short", [NINE, PART, {**PART, "more_body": False}], False, "1.1", 1),
    ("too long", [FOUR, {**PART, "body": b"partpart"}], False, "1.1", 1),
    ("two heads", [START, START], False, "1.1", 1),
    ("raise in a body that ends with the connection", [START, PART], True, "1.0", 1),
    ("return in a body that ends with the connection", [START, PART], False, "1.0", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "messages", "raising", "version", "logged"), CUTS, ids=[row[0] for row in CUTS])
async def test_a_failure_after_the_head_is_a_cut(
    name: str,
    messages: list[Message],
    raising: bool,
    version: str,
    logged: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await body_of(receive)
        for message in messages:
            await send(message)
        if raising:
            raise ValueError

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET.replace(b"1.1", version.encode()))
        with pytest.raises((h11.RemoteProtocolError, trio.BrokenResourceError)):
            await client.answer()
    assert len(errors_in(caplog)) == logged


async def test_a_cut_lets_through_what_was_sent_before_it() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await settle()
        await send(START)
        await send({**PART, "body": bytes(1_000_000)})

    async with serving(app) as server:
        client = await server.connect(receive_buffer=4096)
        # Closing over what is unread of this would have the kernel send RST, and drop what is on its way.
        await client.send(GET + bytes(READ_AHEAD + 5000))
        await settle()
        assert len(await client.rest()) > 1_000_000


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"zz\r\n", 400), (b"4\r\nbodyXX0\r\n\r\n", 400), (b"4;" + b"x" * 70000, 400), (b"-1\r\n", 400)],
    ids=["no size", "no CRLF after the data", "endless extension", "negative size"],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_body_that_is_not_framed_as_announced(
    body: bytes, status: int, at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        while not seen or seen[-1]["type"] == "http.request":
            seen.append(await receive())
        with pytest.raises(OSError, match="left"):
            await send(START)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + (body if at_once else b"")
        )
        await settle()
        if not at_once:
            await client.send(body)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"
    assert all(message["type"] == "http.disconnect" or message["body"] == b"body" for message in seen)
    assert not errors_in(caplog)


async def test_a_failure_of_the_connection_itself_ends_only_that(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(ok, keep_alive_timeout=None) as server:  # no such setting: the second head waits for None
        for _ in range(2):
            client = await server.connect()
            await client.send(GET)
            assert (await client.answer()).status == 200
            assert await client.rest() == b""
    assert errors_in(caplog) == ["a connection failed; it alone ends"] * 2


async def test_one_failure_leaves_the_others_alone() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == "/bad":
            raise BaseExceptionGroup("", [ValueError(), TypeError()])
        await ok(scope, receive, send)

    async with serving(app) as server:
        good = await server.connect()
        await good.send(GET)
        assert (await good.answer()).status == 200
        bad = await server.connect()
        await bad.send(b"GET /bad HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await bad.answer()).status == 500
        await good.send(GET)
        assert (await good.answer()).status == 200


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_what_is_still_running_when_the_drain_is_over_is_cut_and_its_failures_end_nothing(
    version: str, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send(PART)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError

    async with serving(app, graceful_timeout=5) as server:
        client = await server.connect()
        await client.send(GET.replace(b"1.1", version.encode()))
        await settle()
        server.shutdown.set()
        await settle()
        assert not server.stopped.is_set()
        mock_clock.jump(5)
        await server.stopped.wait()
        with pytest.raises((h11.RemoteProtocolError, trio.BrokenResourceError)):
            await client.answer()
    assert errors_in(caplog) == ["the application failed"]


async def test_a_cancelled_send_aborts_the_connection(mock_clock: trio.testing.MockClock) -> None:
    done = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        with trio.move_on_after(1) as scope_:
            await send({**PART, "body": bytes(64 << 20)})
        assert scope_.cancelled_caught
        with pytest.raises(OSError, match="left"):
            await send(PART)
        assert await receive() == {"type": "http.disconnect"}
        done.set()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        await settle()
        mock_clock.jump(1)
        await done.wait()
        with pytest.raises(trio.BrokenResourceError):
            await client.rest()
