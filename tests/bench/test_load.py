"""The load against the upstream, over real sockets, and with something in between that does harm."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from bench import load
from bench.load import Load, Tally
from bench.process import running
from bench.subjects import Address, address_in
from bench.workloads import CLOSED, HELD, PACED, Workload

STREAMS = Workload(name="held", shape=HELD, connections=5, interval_us=10_000, seconds=0.2)
REQUESTS = Workload(name="paced", shape=PACED, connections=2, interval_us=1_000, events=3, period_ms=20, seconds=0.2)
PLAIN = Workload(name="closed", shape=CLOSED, connections=2, stream=False, events=5, seconds=0.3)

Harm = Callable[[bytes], bytes]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "SETTLE_SECONDS", 0.05)


@asynccontextmanager
async def upstream(home: Path) -> AsyncIterator[Address]:
    command = [sys.executable, "-m", "bench.upstream"]
    async with running("upstream", command, frozenset(os.sched_getaffinity(0)), home) as process:
        yield address_in(await process.line())


async def run(workload: Workload, address: Address) -> Tally:
    return await trio.to_thread.run_sync(Load(workload, *address, "/v1/messages").run)


async def test_streams_are_held_to_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "SETTLE_SECONDS", 1.0)  # by then, all streams must be open
    async with upstream(tmp_path) as address:
        tally = await run(STREAMS, address)
    assert (tally.exchanges, tally.dropped, tally.failures) == (5, 0, {})
    assert 0 < tally.events < tally.asked
    assert {"event", "lag"} == tally.times.keys()
    assert 0 < tally.times["event"]["p50"] <= tally.times["event"]["p99"] <= tally.times["event"]["max"]
    assert capfd.readouterr().out.split() == ["measuring", "measured"]


@pytest.mark.parametrize("workload", [REQUESTS, PLAIN], ids=["paced", "closed"])
async def test_requests_follow_each_other(tmp_path: Path, workload: Workload) -> None:
    async with upstream(tmp_path) as address:
        tally = await run(workload, address)
    assert (tally.dropped, tally.failures) == (0, {})
    assert tally.exchanges > workload.connections
    assert 0 < tally.answers <= tally.exchanges
    assert tally.asked == tally.exchanges * workload.events
    assert {"first_byte", "answer"} <= tally.times.keys()


def on_event_3(harm: Harm) -> Harm:
    """Do harm to what holds the fourth event of a stream."""
    return lambda data: harm(data) if b'"text":"00000003 ' in data else data


def cut(data: bytes) -> bytes:
    raise BrokenPipeError


HARMS = {
    "a byte": on_event_3(lambda data: data.replace(b"prose", b"Prose")),
    "an event lost": on_event_3(lambda data: b""),
    "an event twice": on_event_3(lambda data: data + data),
    "cut": on_event_3(cut),
    "no chunked coding": lambda data: data.replace(b"transfer-encoding", b"transfer-endocing"),
    "another status": lambda data: data.replace(b"200 OK", b"502 Bad"),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
async def test_harm_is_counted(tmp_path: Path, harm: Harm) -> None:
    async with upstream(tmp_path) as address, trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), partial(relay, address, harm), 0)
        port = listeners[0].socket.getsockname()[1]
        tally = await run(STREAMS, ("127.0.0.1", port))
        nursery.cancel_scope.cancel()
    assert tally.dropped == tally.exchanges == 5
    assert sum(tally.failures.values()) >= 5


async def test_nobody_there() -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        tally = await run(STREAMS, unused.getsockname())
    assert tally.dropped == tally.exchanges == 5


async def relay(address: Address, harm: Harm, client: trio.SocketStream) -> None:
    """Pass bytes on both ways, those of the answer through `harm`."""

    async def pass_on(source: trio.SocketStream, sink: trio.SocketStream, change: Harm) -> None:
        async for data in source:
            if changed := change(bytes(data)):
                await sink.send_all(changed)
        nursery.cancel_scope.cancel()

    await trio.lowlevel.checkpoint()
    try:
        async with client, await trio.open_tcp_stream(*address) as server, trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, client, server, lambda data: data)
            nursery.start_soon(pass_on, server, client, harm)
    except* (OSError, trio.BrokenResourceError):
        pass
