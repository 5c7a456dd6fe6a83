"""What goes wrong with streams, over real sockets: the client is never told a short answer is whole, and the row knows.

Each fault is played by the sandbox; what it served is in its books, and what the ledger says is held against them.
"""

from __future__ import annotations

import array
import fcntl
import json
import socket
import struct
import termios
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
import trio.testing

from tests.e2e.house import House, open_house, open_house_before
from tests.e2e.raw import post as raw_post
from tests.wire.peer import Line, deaf, silence

both_paths = pytest.mark.usefixtures("both_paths")

# Counted by the sandbox as the tokenizer of this model's generation would.
MODEL = "claude-sonnet-4-5"


def body(stream: bool = True) -> bytes:
    message = {"role": "user", "content": "Tell me about rivers"}
    return json.dumps({"model": MODEL, "max_tokens": 4000, "stream": stream, "messages": [message]}).encode()


async def post(
    house: House, script: str, *, stream: bool = True, path: str = "/anthropic/v1/messages"
) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=20) as client:
        headers = {"x-api-key": "sk-anything", "x-sandbox": script, "content-type": "application/json"}
        return await client.post(house.url + path, content=body(stream), headers=headers)


def served(house: House) -> Any:
    """What the sandbox says of the one exchange that it served."""
    assert house.sandbox is not None
    [entry] = house.sandbox.books.entries
    return entry


@both_paths
@pytest.mark.parametrize(
    ("script", "ended"),
    [
        ("tokens=60; per=1; cut_after=30", "upstream_broken"),
        ("tokens=60; per=1; reset_after=30", "upstream_broken"),
        ("tokens=60; per=1; cut_after=30; framing=length", "upstream_broken"),
        ("tokens=60; per=1; cut_after=30; coding=gzip", "upstream_broken"),
        ("tokens=60; per=1; cut_after=700b; chunk=7", "upstream_broken"),
        ("tokens=60; per=1; stall_after=30", "upstream_timeout"),
    ],
)
async def test_a_break_midway_is_a_broken_end(tmp_path: Path, script: str, ended: str) -> None:
    async with open_house(tmp_path, tables="[tproxy.timeouts]\nidle = 0.3") as house:
        with pytest.raises(httpx2.RemoteProtocolError):
            await post(house, script)
        [row] = await house.rows(1)
        assert (row["ended"], row["status"]) == (ended, 200)
        assert row["certainty"] == "estimated"
        assert row["input_tokens"] > 0
        assert row["cost_nano"] == row["input_tokens"] * 3000 + row["output_tokens"] * 15_000


@both_paths
@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        ("close_before_head=1", 502, "upstream_broken"),
        ("reset_before_head=1", 502, "upstream_broken"),
        ("head=200000", 502, "upstream_broken"),
        ("head_stall=1", 504, "upstream_timeout"),
    ],
)
async def test_a_break_before_the_head_is_an_error_of_ours(tmp_path: Path, script: str, status: int, code: str) -> None:
    async with open_house(tmp_path, tables="[tproxy.timeouts]\nfirst_byte = 0.3") as house:
        answer = await post(house, script)
        error = answer.json()
        assert (answer.status_code, error["error"]["details"]["error_code"]) == (status, code)
        row = await house.row(answer.headers["x-tproxy-id"])
        assert error["request_id"] == row["id"]
        assert (row["ended"], row["cost_nano"]) == (code, None)
        assert house.sandbox is not None
        assert len(house.sandbox.requests) == 1, "a POST is never sent twice"


@both_paths
@pytest.mark.parametrize(
    ("script", "ended", "certainty"),
    [
        ("tokens=40", "finished", "exact"),
        ("tokens=40; odd=1; junk=1; eol=crlf", "finished", "exact"),
        ("tokens=40; chunk=1; eol=cr", "finished", "exact"),
        ("tokens=40; coding=br", "finished", "exact"),
        ("tokens=40; coding=zstd; chunk=3", "finished", "exact"),
        ("tokens=40; framing=close", "finished", "exact"),
        ("tokens=40; http10=1; framing=close", "finished", "exact"),
        ("tokens=40; informational=1", "finished", "exact"),
        ("tokens=40; trailing=1", "finished", "exact"),
        ("tokens=40; hangup=1", "finished", "exact"),
        ("tokens=40; nostop=1", "incomplete", "exact"),
        ("tokens=40; per=1; nousage=1", "finished", "estimated"),
        ("tokens=40; per=1; error_after=20", "upstream_error", "estimated"),
        ("tokens=40; line=3000000", "finished", "partial"),
    ],
)
async def test_odd_but_whole_streams(tmp_path: Path, script: str, ended: str, certainty: str) -> None:
    async with open_house(tmp_path) as house:
        answer = await post(house, script)
        assert answer.status_code == 200
        row = await house.row(answer.headers["x-tproxy-id"])
        entry = served(house)
        assert row["ended"] == ended
        if "line=" in script:
            assert row["tap_fault"], "an endless line is given up on"
            return
        assert row["certainty"] == certainty
        if certainty == "exact":
            assert (row["input_tokens"], row["output_tokens"]) == (
                entry.bills[0].input_tokens,
                entry.bills[0].output_tokens,
            )
        assert row["bytes_out"] == entry.bytes_sent


@both_paths
@pytest.mark.parametrize("how", ["fin", "rst", "after a pipelined byte"])
@pytest.mark.parametrize("script", ["head_stall=1", "tokens=900; per=1; tps=100", "stall_after=4"])
async def test_a_client_that_leaves_frees_the_upstream_within_a_second(tmp_path: Path, script: str, how: str) -> None:
    async with open_house(tmp_path) as house:
        assert house.sandbox is not None
        client = await trio.open_tcp_stream(*house.address)
        content = body()
        await client.send_all(
            b"POST /anthropic/v1/messages HTTP/1.1\r\nHost: h\r\nx-api-key: k\r\ncontent-type: application/json\r\n"
            b"x-sandbox: %s\r\ncontent-length: %d\r\n\r\n%s" % (script.encode(), len(content), content)
        )
        if script == "head_stall=1":
            with trio.fail_after(5):
                while not house.sandbox.requests:
                    await trio.sleep(0.005)
        else:
            received = b""
            while received.count(b"event: ") < 4:
                received += await client.receive_some(65536)
        if how == "rst":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "after a pipelined byte":
            await client.send_all(b"G")
        left = trio.current_time()
        await client.aclose()
        with trio.fail_after(1):
            while house.sandbox.open:
                await trio.sleep(0.005)
        assert trio.current_time() - left < 1
        [row] = await house.rows(1)
        assert row["ended"] == "client_gone"
        if script != "head_stall=1":
            delivered = served(house).output_delivered
            assert row["input_tokens"] == served(house).bills[0].input_tokens
            assert row["output_tokens"] <= delivered * 1.3 + 5


@both_paths
async def test_a_cut_stream_is_billed_close_to_what_was_delivered(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        with pytest.raises(httpx2.RemoteProtocolError):
            await post(house, "tokens=1500; cut_after=500")
        [row] = await house.rows(1)
        delivered = served(house).output_delivered
        assert delivered > 400
        assert abs(row["output_tokens"] - delivered) <= 0.2 * delivered


@both_paths
async def test_with_drain_the_whole_answer_is_billed(tmp_path: Path) -> None:
    async with open_house(tmp_path, upstream='on_disconnect = "drain"') as house:
        client = await trio.open_tcp_stream(*house.address)
        content = body()
        await client.send_all(
            b"POST /v1/messages HTTP/1.1\r\nHost: h\r\nx-api-key: k\r\ncontent-type: application/json\r\n"
            b"x-sandbox: tokens=60; per=1; tps=100\r\ncontent-length: %d\r\n\r\n%s" % (len(content), content)
        )
        assert await client.receive_some(65536)
        await client.aclose()
        [row] = await house.rows(1)
        assert (row["ended"], row["certainty"]) == ("client_gone", "exact")
        assert row["output_tokens"] == served(house).bills[0].output_tokens


@both_paths
async def test_a_client_that_takes_nothing_is_let_go(tmp_path: Path) -> None:
    async with open_house(tmp_path, tables="[tproxy.timeouts]\nwrite = 0.3") as house:
        client = await trio.open_tcp_stream(*house.address)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        content = body()
        await client.send_all(
            b"POST /v1/messages HTTP/1.1\r\nHost: h\r\nx-api-key: k\r\ncontent-type: application/json\r\n"
            b"x-sandbox: tokens=100000\r\ncontent-length: %d\r\n\r\n%s" % (len(content), content)
        )
        [row] = await house.rows(1)
        assert row["ended"] == "client_gone"
        await client.aclose()


UPLOAD = b"POST /v1/files HTTP/1.1\r\nHost: h\r\nx-api-key: k\r\ncontent-length: 60000000\r\n\r\n"


async def fill(client: trio.SocketStream) -> None:
    """Send until something lies unread between the client and the proxy, which then waits for its upstream.

    It is all in the proxy's kernel, so that a FIN behind it arrives; but for more of it there would soon be no room.
    """
    with trio.fail_after(20):
        while not unread_at_the_other_end(client):
            await client.send_all(bytes(16384))
            await trio.testing.wait_all_tasks_blocked(0.001)
        unsent = array.array("i", [1])
        while unsent[0]:
            await trio.sleep(0.005)
            fcntl.ioctl(client.socket.fileno(), termios.TIOCOUTQ, unsent)


def unread_at_the_other_end(client: trio.SocketStream) -> bool:
    """Whether bytes from this socket lie unread in the one at its other end (proc(5), net/tcp)."""
    ends = [f"0100007F:{name[1]:04X}" for name in (client.socket.getpeername(), client.socket.getsockname())]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if [local, remote] == ends:
            return not queues.endswith(":00000000")
    return False


async def early(line: Line) -> None:
    """An upstream that begins its answer at the head of the request, and then neither reads nor says more."""
    await line.receive()
    await line.send(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n"
    )
    await deaf(line)


def go(client: trio.SocketStream, how: str) -> None:
    if how == "rst":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
    else:
        client.socket.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("script", [deaf, early])
async def test_a_client_that_leaves_a_stuck_upload_frees_the_upstream(tmp_path: Path, script: Any, how: str) -> None:
    """The proxy does not read then: it waits for the upstream to take what it has, for up to a minute."""
    async with open_house_before(tmp_path, script) as (house, upstream):
        client = await trio.open_tcp_stream(*house.address)
        await client.send_all(UPLOAD)
        with trio.fail_after(5):
            while not upstream.lines:  # a name is looked up in a thread: until then, the body lies unread anyway
                await trio.sleep(0.005)
        if script is early:
            assert (await client.receive_some(65536)).startswith(b"HTTP/1.1 200")
        await fill(client)
        go(client, how)
        [row] = await house.rows(1)
        assert (row["ended"], row["status"]) == ("client_gone", 200 if script is early else None)
        [line] = upstream.lines
        line.done.set()
        with trio.fail_after(5):
            await line.gone.wait()
        client.socket.close()


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_client_that_leaves_while_its_upload_waits_for_a_place(tmp_path: Path, how: str) -> None:
    bounds = {"upstream": "max_connections = 1", "tables": "[tproxy.timeouts]\nqueue = 60"}
    async with open_house_before(tmp_path, silence, **bounds) as (house, upstream):
        first = await trio.open_tcp_stream(*house.address)
        await first.send_all(raw_post("/v1/messages", body()))
        with trio.fail_after(5):
            while not upstream.lines:
                await trio.sleep(0.005)
        second = await trio.open_tcp_stream(*house.address)
        await second.send_all(UPLOAD + bytes(1000))
        with trio.fail_after(5):
            while "waiting 1" not in repr(house.proxy.services.upstream.pool):
                await trio.sleep(0.005)
        go(second, how)
        with trio.fail_after(5):
            while "waiting 0" not in repr(house.proxy.services.upstream.pool):
                await trio.sleep(0.005)
        first.socket.close()
        assert [row["ended"] for row in await house.rows(2)] == ["client_gone"] * 2
        assert len(upstream.lines) == 1
        second.socket.close()


@both_paths
async def test_an_early_refusal_reaches_a_client_that_is_still_sending(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, httpx2.AsyncClient(timeout=20) as client:
        headers = {"x-api-key": "k", "x-sandbox": "early_answer=413"}
        answer = await client.post(house.url + "/v1/files", content=bytes(8_000_000), headers=headers)
        assert answer.status_code == 413
        row = await house.row(answer.headers["x-tproxy-id"])
        assert (row["ended"], row["cost_nano"]) == ("refused", 0)


@both_paths
@pytest.mark.parametrize("status", [400, 401, 404, 413, 429, 500, 503, 529])
async def test_errors_of_the_upstream_are_relayed_and_cost_nothing(tmp_path: Path, status: int) -> None:
    async with open_house(tmp_path) as house:
        answer = await post(house, f"status={status}; retry_after=7", stream=False)
        assert answer.status_code == status
        assert answer.headers["request-id"]
        if status == 429:
            assert answer.headers["retry-after"] == "7"
        row = await house.row(answer.headers["x-tproxy-id"])
        assert (row["ended"], row["status"], row["cost_nano"]) == ("refused", status, 0)
        assert row["request_id"] == answer.headers["request-id"]
        assert row["bytes_out"] == len(answer.content)


@both_paths
async def test_connections_are_used_again_and_stale_ones_are_not(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        assert house.sandbox is not None
        for script in ["tokens=1"] * 5 + ["tokens=1; hangup=1", "tokens=1", "tokens=1; trailing=1", "tokens=1"]:
            assert (await post(house, script)).status_code == 200
        assert house.sandbox.accepted == 3


@both_paths
async def test_nothing_hangs_while_draining(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house, httpx2.AsyncClient(timeout=20) as client:
        assert (await client.get(house.url + "/health/readiness")).status_code == 200
        async with client.stream(
            "POST", house.url + "/v1/messages", content=body(), headers={"x-sandbox": "tokens=50; per=1; tps=100"}
        ) as stream:
            house.stopping.set()
            assert b"message_stop" in await stream.aread()
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream(*house.address)
