"""POST requests to a receiver on a real socket."""

from __future__ import annotations

import ssl
from typing import cast

import pytest
import trio
import trustme
from trio.testing import MockClock

from tests.export.receiver import receiving
from tests.wire.peer import Line, Script, peer
from tproxy.export import post
from tproxy.export.post import ANSWER_MAX, CONNECT_SECONDS, RETRY_AFTER_MAX, WAIT_SECONDS, Poster, refused
from tproxy.export.sink import NotTaken


async def test_what_is_posted_arrives_over_one_connection() -> None:
    async with receiving() as receiver:
        poster = Poster()
        assert await poster.post(receiver.url, b"\x00body", {"x-one": "1"}) == b"ok"
        await poster.post(receiver.url, b"2", {})
        await poster.aclose()
    first, second = receiver.taken
    assert (first.method, first.path, first.body, first.headers["x-one"]) == ("POST", "/hook", b"\x00body", "1")
    assert first.headers["user-agent"].startswith("tproxy/")
    assert first.headers["accept-encoding"] == "identity"
    assert second.body == b"2"


@pytest.mark.parametrize(
    ("status", "final", "too_large"),
    [
        *((status, True, False) for status in (301, 307, 400, 401, 403, 404, 410, 422)),
        (413, True, True),
        *((status, False, False) for status in (408, 425, 429, 500, 503, 599)),
    ],
)
async def test_what_a_status_means(status: int, final: bool, too_large: bool) -> None:
    async with receiving() as receiver:
        receiver.status = status
        receiver.extra = [("location", receiver.url), ("retry-after", "7")]
        poster = Poster()
        with pytest.raises(NotTaken) as caught:
            await poster.post(receiver.url, b"", {})
        await poster.aclose()
        assert receiver.asked == 1
    fault = caught.value
    assert (fault.final, fault.too_large, fault.why) == (final, too_large, f"it answered {status}")
    assert fault.retry_after == (None if final else 7)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("0", 0),
        (" 120 ", 120),
        ("9" * 400, RETRY_AFTER_MAX),
        ("Thu, 01 Jan 1970 00:17:40 GMT", 60),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_MAX),
        ("Thu, 99 Jan 1970 00:00:00 GMT", None),
    ],
)
def test_retry_after(said: str | None, seconds: float | None) -> None:
    assert refused(503, said, now=1000).retry_after == seconds


async def test_nobody_there_says_nothing_of_where() -> None:
    async with receiving() as receiver:
        pass
    poster = Poster()
    with pytest.raises(NotTaken) as caught:
        await poster.post(f"http://127.0.0.1:{receiver.port}/secret-path", b"", {"authorization": "secret"})
    await poster.aclose()
    assert str(caught.value) == "no connection"
    assert not caught.value.final


async def test_a_connection_that_breaks() -> None:
    async with receiving() as receiver:
        receiver.status = -1
        poster = Poster()
        with pytest.raises(NotTaken, match=r"broken off|broke"):
            await poster.post(receiver.url, b"", {})
        receiver.status = 204
        receiver.answer = b""
        await poster.post(receiver.url, b"", {})
        await poster.aclose()


async def test_no_answer_is_waited_for_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "WAIT_SECONDS", 0.05)
    async with receiving() as receiver:
        receiver.status = 0
        poster = Poster()
        with pytest.raises(NotTaken, match="no answer in time"):
            await poster.post(receiver.url, b"", {})
        await poster.aclose()


def trickles(at_once: bytes) -> Script:
    """Says this, and then a byte every five seconds, for as long as anybody listens."""

    async def script(line: Line) -> None:
        await line.request()
        await line.send(at_once)
        for _ in range(1000):
            await trio.sleep(5)
            await line.send(b"x")

    return script


@pytest.mark.parametrize(
    ("at_once", "why", "seconds"),
    [
        (b"HTTP/1.1 200 OK\r\nx-long: ", "no answer in time", CONNECT_SECONDS + 2 * WAIT_SECONDS),
        (b"HTTP/1.1 503 x\r\ncontent-length: 9999\r\n\r\n", "it answered 503", WAIT_SECONDS),
    ],
    ids=["the head", "the body"],
)
async def test_an_answer_that_never_ends_is_not_waited_for(
    at_once: bytes, why: str, seconds: float, autojump_clock: MockClock
) -> None:
    async with peer(trickles(at_once)) as receiver:
        poster = Poster()
        began = trio.current_time()
        with pytest.raises(NotTaken) as caught:
            await poster.post(f"http://127.0.0.1:{receiver.origin.port}/", b"", {})
        assert caught.value.why == why
        assert trio.current_time() - began == pytest.approx(seconds, abs=1e-3)
        await poster.aclose()


async def test_what_was_taken_is_taken_also_if_the_rest_of_the_answer_never_comes(autojump_clock: MockClock) -> None:
    async with peer(trickles(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n")) as receiver:
        poster = Poster()
        assert set(await poster.post(f"http://127.0.0.1:{receiver.origin.port}/", b"", {})) == set(b"x")
        await poster.aclose()


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        for spelled in (name, name.lower()):
            monkeypatch.setenv(spelled, "http://127.0.0.1:1")
    for spelled in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(spelled, raising=False)
    async with receiving() as receiver:
        poster = Poster()
        assert await poster.post(receiver.url, b"", {}) == b"ok"
        await poster.aclose()


async def test_a_long_answer_is_cut_off() -> None:
    async with receiving() as receiver:
        receiver.answer = b"x" * (ANSWER_MAX * 3)
        poster = Poster()
        assert len(await poster.post(receiver.url, b"", {})) == ANSWER_MAX
        receiver.answer = b"ok"
        assert await poster.post(receiver.url, b"", {}) == b"ok"
        await poster.aclose()


async def test_of_an_answer_no_more_is_waited_for_than_is_read(autojump_clock: MockClock) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n"
    async with peer(trickles(head + b"y" * ANSWER_MAX)) as receiver:
        poster = Poster()
        began = trio.current_time()
        assert await poster.post(f"http://127.0.0.1:{receiver.origin.port}/", b"", {}) == b"y" * ANSWER_MAX
        assert trio.current_time() - began < 5
        await poster.aclose()


@pytest.mark.parametrize("trusted", [True, False])
async def test_certificates_are_checked(trusted: bool) -> None:
    authority, other = trustme.CA(), trustme.CA()
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(served)

    def store() -> ssl.SSLContext:
        context = ssl.create_default_context()
        (authority if trusted else other).configure_trust(context)
        return context

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            received = b""
            while b"\r\n\r\nbody" not in received:
                received += await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            await stream.receive_some()
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_ssl_over_tcp_listeners(0, served, host="127.0.0.1")
        port = cast(trio.SocketListener, listeners[0].transport_listener).socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        poster = Poster(tls=store)
        if trusted:
            assert await poster.post(f"https://127.0.0.1:{port}/", b"body", {}) == b"ok"
        else:
            with pytest.raises(NotTaken, match="certificate is not trusted"):
                await poster.post(f"https://127.0.0.1:{port}/", b"body", {})
        await poster.aclose()
        nursery.cancel_scope.cancel()
