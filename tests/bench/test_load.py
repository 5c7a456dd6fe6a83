"""Loads against upstreams, over real sockets, and with something in between that does harm.

In each language that can run here: the programs in Python always, those in C where there is a compiler.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from bench import http1, native, talk
from bench.load import Load, Plan, Tally
from bench.process import ROOT
from bench.subjects import Address, address_in
from bench.timing import phase_us
from bench.workloads import CLOSED, HELD, PACED, SHARES, Workload

LOADS = {"Python": [sys.executable, "-m", "bench.load"]}
UPSTREAMS = {"Python": [sys.executable, "-m", "bench.upstream"]}
if native.program("load") and (compiled := native.program("upstream")):
    LOADS["C"] = [sys.executable, "-m", "bench.native"]
    UPSTREAMS["C"] = [str(compiled)]

SETTLE = 0.03
STREAMS = Workload(name="held", shape=HELD, connections=5, interval_us=10_000, seconds=0.2)
REQUESTS = Workload(name="paced", shape=PACED, connections=2, interval_us=1_000, events=3, period_ms=20, seconds=0.155)
PLAIN = Workload(name="closed", shape=CLOSED, connections=2, stream=False, events=5, seconds=0.1)
FLOOD = Workload(name="flood", shape=CLOSED, connections=2, events=5_000, seconds=0.1)
FRESH = replace(REQUESTS, name="fresh", fresh=True)
LARGE = replace(REQUESTS, name="large", body_bytes=100_000)
SLOW = replace(STREAMS, name="slow", interval_us=1_000, slow_each=5, stall_ms=100)

Harm = Callable[[bytes], bytes]


@contextmanager
def serving(command: list[str]) -> Iterator[Address]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield address_in(process.stdout.readline().strip())
        finally:
            process.terminate()


@pytest.fixture(scope="module", params=UPSTREAMS)
def upstream(request: pytest.FixtureRequest) -> Iterator[Address]:
    with serving(UPSTREAMS[request.param]) as address:
        yield address


@pytest.fixture(scope="module")
def in_python() -> Iterator[Address]:
    with serving(UPSTREAMS["Python"]) as address:
        yield address


async def run(load: str, workload: Workload, address: Address, **more: Any) -> Tally:
    """Run a load in its own process; see that it says what it does, and return what came of it."""
    host, port = address
    plan = {"workload": asdict(workload), "host": host, "port": port, "path": "/v1/messages", "settle_seconds": SETTLE}
    done = await trio.run_process([*LOADS[load], json.dumps(plan | more)], capture_stdout=True, cwd=ROOT)
    *said, tally = done.stdout.decode().splitlines()
    assert said == ["measuring", "measured"]
    return Tally(**json.loads(tally))


@pytest.fixture(params=LOADS)
def load(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def test_streams_are_held_to_the_end(load: str, upstream: Address) -> None:
    tally = await run(load, STREAMS, upstream, settle_seconds=0.25)  # by then, all streams must be open
    assert (tally.exchanges, tally.dropped, tally.failures) == (5, 0, {})
    assert 0 < tally.events < tally.asked <= 5 * 47
    assert tally.events * talk.DELTA_LENGTH < tally.bytes < tally.events * (talk.DELTA_LENGTH + 20)
    assert {"event", "lag", "open"} == tally.times.keys()
    assert 0 < tally.times["event"]["p50"] <= tally.times["event"]["p99"] <= tally.times["event"]["max"]
    curve = tally.cdf["event"]
    assert len(curve) == len(SHARES)
    assert curve == sorted(curve)
    assert curve[SHARES.index(0.5)] == tally.times["event"]["p50"]


async def test_every_kind_of_workload(load: str, upstream: Address) -> None:
    found: dict[str, Tally] = {}

    async def one(workload: Workload) -> None:
        found[workload.name] = await run(load, workload, upstream, settle_seconds=0.15)

    async with trio.open_nursery() as nursery:
        for workload in (REQUESTS, FRESH, LARGE, SLOW):
            nursery.start_soon(one, workload)
    for workload in (PLAIN, FLOOD):  # these take all that there is
        await one(workload)
    assert {name: tally.failures for name, tally in found.items()} == {name: {} for name in found}
    assert not any(tally.dropped for tally in found.values())
    for workload in (REQUESTS, FRESH, LARGE):  # each 20 ms for 325 ms, from 0 and from 10 ms on
        assert found[workload.name].exchanges == 17 + 16
    for workload in (REQUESTS, PLAIN, FLOOD, FRESH, LARGE):
        tally = found[workload.name]
        assert tally.asked == tally.exchanges * workload.events
        assert 0 < tally.answers <= tally.exchanges
        assert {"first_byte", "answer"} <= tally.times.keys()
        assert len(tally.cdf["first_byte"]) == len(SHARES)
    assert found["slow"].exchanges == 5
    assert 0 < found["flood"].events <= found["flood"].asked
    assert not found["flood"].times.keys() & {"event", "lag"}


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
    "a chunk's end": on_event_3(lambda data: data.replace(b"\n\n\r\n", b"\n\n\r\r")),
    "no chunked coding": lambda data: data.replace(b"transfer-encoding", b"transfer-endocing"),
    "another status": lambda data: data.replace(b"200 OK", b"502 Bad"),
    "the end": lambda data: data.replace(b"end_turn", b"end_tUrn"),
    "more than the end": lambda data: data + b"HTTP" if data.endswith(b"\r\n0\r\n\r\n") else data,
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
async def test_harm_is_counted_by_all_loads(in_python: Address, harm: Harm) -> None:
    found: dict[str, Tally] = {}

    async def one(load: str) -> None:
        found[load] = await run_through(harm, load, replace(STREAMS, interval_us=2_000, seconds=0.03), in_python)

    async with trio.open_nursery() as nursery:
        for load in LOADS:
            nursery.start_soon(one, load)
    assert found.keys() == LOADS.keys()
    for tally in found.values():
        assert tally.dropped == tally.exchanges == 5
        assert sum(tally.failures.values()) >= 5


@pytest.mark.parametrize(
    ("exact", "harm", "harmful"),
    [
        (True, lambda data: data.replace(b'"role":"assistant"', b'"role": "asistant"'), True),
        (False, lambda data: data.replace(b'"role":"assistant"', b'"role": "asistant"'), False),
        (False, lambda data: data.replace(b"word word", b"word Word"), True),
        (False, lambda data: data.replace(b"200 OK", b"502 Bad"), True),
    ],
    ids=["compared", "written anew", "other words", "another status"],
)
async def test_plain_answers_that_are_written_anew(
    load: str, in_python: Address, exact: bool, harm: Harm, harmful: bool
) -> None:
    tally = await run_through(harm, load, replace(PLAIN, seconds=0.03), in_python, exact=exact)
    assert tally.dropped == (2 if harmful else 0)
    assert tally.exchanges >= 2


async def run_through(harm: Harm, load: str, workload: Workload, address: Address, **more: Any) -> Tally:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), partial(relay, address, harm), 0)
        port = listeners[0].socket.getsockname()[1]
        tally = await run(load, workload, ("127.0.0.1", port), **more)
        nursery.cancel_scope.cancel()
    return tally


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


async def test_nobody_there(load: str) -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        tally = await run(load, STREAMS, unused.getsockname())
    assert tally.dropped == tally.exchanges == 5


async def test_all_loads_send_the_same(load: str) -> None:
    got: list[bytes] = []

    async def listen(client: trio.SocketStream) -> None:
        async with client:
            request = b""
            while talk.Asked.read(request) is None or not request.endswith(b'"stream": true}'):
                request += bytes(await client.receive_some())
            got.append(request)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), listen, 0)
        port = listeners[0].socket.getsockname()[1]
        tally = await run(load, STREAMS, ("127.0.0.1", port), headers={"X-Api-Key": "sk-other", "x-more": "1"})
        nursery.cancel_scope.cancel()
    assert tally.dropped == len(got) == 5
    asked = [talk.Asked.read(request) for request in got]
    assert [one.phase_us for one in asked if one] == [phase_us(number, 10_000) for number in range(5)]
    plan = Plan(
        workload=STREAMS,
        host="127.0.0.1",
        port=port,
        path="/v1/messages",
        headers={"x-api-key": "sk-other", "x-more": "1"},
    )
    assert got == [plan.request().asking(one) for one in asked if one]


# ------------------------------------------------------------------------------------------------------ upstreams

FIVE = talk.Asked(stream=False, events=5)


def exchange(address: Address, requests: list[bytes], context: ssl.SSLContext | None = None) -> list[tuple[int, bytes]]:
    """Send requests one after the other over one connection; return the status and body of each answer."""
    answers = []
    with socket.create_connection(address, timeout=5) as plain:
        sock = context.wrap_socket(plain, server_hostname=address[0]) if context else plain
        with sock:
            for request in requests:
                sock.sendall(request)
                answer, body = http1.Answer(), b""
                while not answer.ended:
                    body += answer.feed(sock.recv(65_536))
                answers.append((answer.status, body))
    return answers


def post(path: str, body: bytes, *, chunks: int = 0) -> bytes:
    if not chunks:
        return b"POST %b HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(body), body)
    pieces = [body[at : at + chunks] for at in range(0, len(body), chunks)]
    coded = b"".join(b"%X;x=y\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % (path.encode(), coded)


def test_requests_that_peers_write(upstream: Address) -> None:
    rewritten = json.dumps({"messages": [{"content": [{"type": "text", "text": FIVE.marker.decode()}]}]}).encode()
    short = b'{"text":"bench stream=0 events=5 interval_us=0 phase_us=0"}'
    right = (200, talk.plain(5))
    assert (
        exchange(
            upstream,
            [
                post("/v1/messages", rewritten),
                post("/anthropic/v1/messages?beta=true", rewritten + b" " * 200_000),
                post("/v1/messages", rewritten, chunks=7),
                post("/v1/messages", short, chunks=1_000),
            ],
        )
        == [right] * 4
    )


def test_other_requests_are_refused_and_the_connection_goes_on(upstream: Address) -> None:
    answers = exchange(
        upstream,
        [
            b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n",
            post("/v1/messages/count_tokens", FIVE.marker),
            post("/v1/messages", b'{"messages":[]}'),
            post("/v1/messages", FIVE.marker),
        ],
    )
    assert [status for status, _ in answers] == [404, 404, 400, 200]
    assert json.loads(answers[0][1])["error"]["type"] == "not_found_error"


def test_a_request_that_comes_early_waits_for_the_answer_before(upstream: Address) -> None:
    stream = post("/v1/messages", talk.Asked(True, 2, 1_000).marker)
    with socket.create_connection(upstream, timeout=5) as sock:
        sock.sendall(stream + post("/v1/messages", FIVE.marker))
        got = b""
        while not got.endswith(talk.plain(5)):
            data = sock.recv(65_536)
            assert data, got
            got += data
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200", b"200"]
    assert got.index(b"message_stop") < got.index(b"application/json")


def test_a_stream_over_tls_and_gzip(tmp_path: Path) -> None:
    command = [*UPSTREAMS["Python"], "--gzip", "--tls", str(tmp_path / "ca.pem")]
    asked = talk.Asked(True, 3)
    request = post("/v1/messages", asked.marker)
    gzipped = request.replace(b"\r\n\r\n", b"\r\naccept-encoding: br, gzip\r\n\r\n", 1)
    with serving(command) as address:
        context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        for status, body in [*exchange(address, [gzipped]), *exchange(address, [gzipped, request], context)]:
            check = talk.Check(asked)
            assert (status, len(check.feed(body))) == (200, 3)
            check.end()
        host, port = address
        plan = Plan(workload=replace(STREAMS, gzip=True), host=host, port=port, path="/messages", settle_seconds=0.3)
        tally = Load(plan).run()
        assert (tally.dropped, tally.failures) == (0, {})
        assert tally.bytes < tally.events * talk.DELTA_LENGTH / 2
