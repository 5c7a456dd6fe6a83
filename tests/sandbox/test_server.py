from __future__ import annotations

import errno
import socket
from functools import partial
from typing import Any

import pytest
import trio

from tests.sandbox.raw import ask, connect, exchange, request, until
from tproxy.sandbox.books import CUT
from tproxy.sandbox.server import PACED, Sandbox, accept, serve_sandbox


async def test_the_url_names_the_real_port(nursery: trio.Nursery) -> None:
    sandbox: Sandbox = await nursery.start(serve_sandbox, "127.0.0.1:0")
    assert sandbox.port > 0
    assert sandbox.url == f"http://127.0.0.1:{sandbox.port}"


async def test_an_address_that_is_taken_is_an_error(sandbox: Sandbox) -> None:
    with pytest.raises(OSError, match="in use"):
        await serve_sandbox(f"127.0.0.1:{sandbox.port}")


@pytest.mark.parametrize(
    "bind",
    ["", "foo", "4010", "127.0.0.1", "127.0.0.1:", ":4010", "127.0.0.1:99999", "h:-1", "h:http", "::1:0", "http://h:1"],
)
async def test_no_address_is_a_plain_error(bind: str) -> None:
    with pytest.raises(ValueError, match=r"^the address .* must be HOST:PORT, for example 127\.0\.0\.1:4010, not '"):
        await serve_sandbox(bind)


async def test_cancelling_ends_all_and_closes_the_books() -> None:
    async with trio.open_nursery() as nursery:
        sandbox: Sandbox = await nursery.start(serve_sandbox)
        async with await connect(sandbox) as stream:
            await stream.send_all(request(body=ask(stream=True), script="stall_after=3"))
            await until(stream, b"ping")
            nursery.cancel_scope.cancel()
    assert (sandbox.open, sandbox.books.running, sandbox.books.ended) == (0, 0, {CUT: 1})
    with pytest.raises(OSError, match="all attempts"):
        await connect(sandbox)


async def test_paced_answers_come_at_a_pleasant_pace(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    sandbox: Sandbox = await nursery.start(partial(serve_sandbox, paced=True))
    before = trio.current_time()
    answer = await exchange(sandbox, request(body=ask(stream=True)))
    events = answer.body.count(b"\n\n")
    assert trio.current_time() - before > PACED.ttft + (events - 2) / PACED.tps
    before = trio.current_time()
    whole = await exchange(sandbox, request(body=ask()))
    assert trio.current_time() - before > PACED.ttft + (whole.json()["usage"]["output_tokens"] - 1) / PACED.tps
    before = trio.current_time()
    await exchange(sandbox, request(body=ask(), script="tps=0;ttft=0"))
    assert trio.current_time() - before < PACED.ttft


async def test_many_clients_at_once(sandbox: Sandbox) -> None:
    seen = []

    async def client() -> None:
        answer = await exchange(sandbox, request(body=ask(stream=True), script="tps=2000;tokens=10"))
        seen.append(answer.complete)

    async with trio.open_nursery() as clients:
        for _ in range(300):
            clients.start_soon(client)
    assert seen == [True] * 300
    assert sandbox.accepted == 300
    assert sandbox.books.total()["output_delivered"] == 3000


async def test_only_the_newest_requests_are_kept(sandbox: Sandbox) -> None:
    async with await connect(sandbox) as stream:
        for _ in range(11):
            await stream.send_all(request("/gone", close=False) * 100)
            await until(stream, b"\r\n\r\n")
        await stream.send_all(request("/last"))
        await until(stream, b"Connection: close")
    assert len(sandbox.requests) == 1000
    assert sandbox.requests[-1].target == b"/last"


class Listener(socket.socket):
    """Accepts what it was told to: sockets, or the errors of accept(2)."""

    def __init__(self, *outcomes: OSError | None) -> None:
        super().__init__()
        self._outcomes = iter(outcomes)

    def accept(self) -> tuple[socket.socket, Any]:
        outcome = next(self._outcomes, BlockingIOError())
        if outcome is not None:
            raise outcome
        return socket.socket(), None


def test_a_client_that_goes_in_the_queue_is_passed_over() -> None:
    with Listener(None, OSError(errno.ECONNABORTED, "gone"), None) as listener:
        accepted, full = accept(listener)
    assert (len(accepted), full) == (2, False)
    for sock in accepted:
        sock.close()


def test_without_descriptors_those_that_were_accepted_are_served_first() -> None:
    with Listener(None, OSError(errno.EMFILE, "full"), None) as listener:
        accepted, full = accept(listener)
    assert (len(accepted), full) == (1, True)
    accepted[0].close()


def test_other_errors_of_the_listener_are_not_hidden() -> None:
    with Listener(OSError(errno.EBADF, "bad")) as listener, pytest.raises(OSError, match="bad"):
        accept(listener)
