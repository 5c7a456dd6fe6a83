"""The process when what it writes to fails it: a log that nobody reads, and a ledger that is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.e2e.house import config_text
from tests.e2e.process import running, tproxy
from tests.e2e.raw import ask, post, request
from tproxy.sandbox.server import Sandbox, serve_sandbox
from tproxy.store import reading

BODY = b'{"model":"claude-haiku-4-5","max_tokens":1000,"stream":true,"messages":[{"role":"user","content":"Hello"}]}'
READY, LIVE = (request("GET", f"/health/{page}") for page in ("readiness", "liveness"))
REFUSED = request("POST", "/v1/messages", [("x-api-key", "a"), ("x-api-key", "b")], BODY)


def message(script: str) -> bytes:
    return post("/v1/messages", BODY, ("x-sandbox", script))


async def read_to_end(client: trio.SocketStream, begun: bytes) -> bytes:
    """The answer, from what was read of it to the end of its chunks."""
    with trio.fail_after(20):
        while not begun.endswith(b"0\r\n\r\n"):
            piece = await client.receive_some(65536)
            assert piece, "cut"
            begun += piece
    return begun


@pytest.fixture
async def sandbox(nursery: trio.Nursery, tmp_path: Path) -> Sandbox:
    started: Sandbox = await nursery.start(serve_sandbox)
    (tmp_path / "config.toml").write_text(config_text(started.url))
    return started


@contextmanager
def full_pipe() -> Iterator[tuple[int, Callable[[], None]]]:
    """A pipe that takes nothing, because nobody reads."""
    reading_end, writing_end = os.pipe()
    os.set_blocking(writing_end, False)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(writing_end, b"\0" * size)
    os.set_blocking(writing_end, True)
    yield writing_end, lambda: None
    os.close(reading_end)
    os.close(writing_end)


@contextmanager
def closed_pipe() -> Iterator[tuple[int, Callable[[], None]]]:
    """A pipe whose reader leaves when the function is called."""
    reading_end, writing_end = os.pipe()
    yield writing_end, lambda: os.close(reading_end)
    os.close(writing_end)


Stderr = Callable[[], AbstractContextManager[tuple[int, Callable[[], None]]]]


@pytest.mark.parametrize("stderr", [full_pipe, closed_pipe])
async def test_a_log_that_nobody_reads(stderr: Stderr, sandbox: Sandbox, tmp_path: Path) -> None:
    """It serves, refuses, answers health checks and drains as if somebody did."""
    with stderr() as (descriptor, leave):
        serve = running("tproxy", "serve", folder=tmp_path, ready="tproxy listening on ", stderr=descriptor)
        async with serve as server, await trio.open_tcp_stream(*server.address) as client:
            leave()

            async def refused() -> None:
                for _ in range(100):
                    assert (await ask(server.address, REFUSED)).status == 400

            async with trio.open_nursery() as clients:
                for _ in range(5):
                    clients.start_soon(refused)
                for _ in range(20):
                    assert (await ask(server.address, message("tokens=1"))).status == 200
            for page in (READY, LIVE):
                assert (await ask(server.address, page)).status == 200
            await client.send_all(message("tokens=20; per=1; tps=40"))
            begun = await client.receive_some(65536)
            assert b"message_stop" not in begun
            server.process.send_signal(signal.SIGTERM)
            assert b"message_stop" in await read_to_end(client, begun)
            with trio.fail_after(10):
                assert await server.process.wait() == 0
    rows = reading.recent(tmp_path / "books.db", 100)
    assert [row["ended"] for row in rows] == ["finished"] * 21


async def test_one_reader_of_all_that_is_printed_stops_reading(sandbox: Sandbox, tmp_path: Path) -> None:
    """As under `tproxy serve 2>&1 | less`: the pipe is full after some hundred exchanges, and nobody notices."""
    ready = "tproxy listening on "
    async with running("tproxy", "serve", folder=tmp_path, ready=ready, stderr=subprocess.STDOUT) as server:
        pipe = server.process.stdout
        assert pipe is not None
        async with trio.open_nursery() as clients:

            async def served() -> None:
                for _ in range(75):
                    assert (await ask(server.address, message("tokens=1"))).status == 200

            for _ in range(4):
                clients.start_soon(served)
        assert (await ask(server.address, READY)).status == 200
        assert await server.stop() == 0
        printed = b""
        while piece := await pipe.receive_some(65536):
            printed += piece
        assert 0 < printed.count(b'"event":"exchange"') < 200  # what a pipe holds
    assert len(reading.recent(tmp_path / "books.db", 1000)) == 300


async def test_a_ledger_that_is_gone_is_missed_before_money_is_spent(sandbox: Sandbox, tmp_path: Path) -> None:
    books = tmp_path / "books.db"

    async def until(status: int) -> None:
        with trio.fail_after(10):
            while (await ask(server.address, READY)).status != status:
                await trio.sleep(0.02)  # the server is another process

    async with tproxy(tmp_path) as server:
        assert (await ask(server.address, message("tokens=1"))).status == 200
        books.rename(tmp_path / "away.db")
        await until(503)
        asked = len(sandbox.requests)
        answer = await ask(server.address, message("tokens=1"))
        assert json.loads(answer.body)["error"]["details"]["error_code"] == "ledger_unavailable"
        assert len(sandbox.requests) == asked
        (tmp_path / "away.db").rename(books)
        await until(200)
        assert (await ask(server.address, message("tokens=1"))).status == 200
        assert await server.stop() == 0
    assert [row["ended"] for row in reading.recent(books, 10)] == ["finished"] * 2


IMPATIENT = """
import functools
from tproxy import assembly
from tproxy.cli import main
assembly.open_ledger = functools.partial(assembly.open_ledger, flush_seconds=0.1)
main()
"""


async def test_the_end_of_an_exchange_that_cannot_be_written_fails_the_process(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    books = tmp_path / "books.db"
    async with running("python", "-c", IMPATIENT, "serve", folder=tmp_path, ready="tproxy listening on ") as server:
        async with await trio.open_tcp_stream(*server.address) as client:
            await client.send_all(message("tokens=20; per=1; tps=40"))
            begun = await client.receive_some(65536)
            books.rename(tmp_path / "away.db")
            assert b"message_stop" in await read_to_end(client, begun)
        assert await server.stop() == 1
        assert "1 entries were not written" in server.log.read_text()
    (tmp_path / "away.db").rename(books)
    async with running("python", "-c", IMPATIENT, "serve", folder=tmp_path, ready="tproxy listening on ") as server:
        assert await server.stop() == 0
    assert [row["ended"] for row in reading.recent(books, 10)] == ["lost"]
