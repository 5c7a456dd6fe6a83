"""The process as an operator has it: how it starts, reloads, drains, dies, and what is left then."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import trio

from tests.e2e.house import REAL_KEY, config_text
from tests.e2e.process import Running, hypercorn, run, running, tproxy
from tproxy.sandbox.server import Sandbox, serve_sandbox
from tproxy.store import reading


def request(script: str = "", *, key: str = "sk-anything", stream: bool = True) -> bytes:
    body = json.dumps(
        {
            "model": "claude-haiku-4-5",
            "max_tokens": 1000,
            "stream": stream,
            "messages": [{"role": "user", "content": "Hello, world"}],
        }
    ).encode()
    head = (
        f"POST /anthropic/v1/messages HTTP/1.1\r\nHost: h\r\nx-api-key: {key}\r\nx-sandbox: {script}\r\n"
        f"connection: close\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def read_to_end(stream: trio.SocketStream, until: bytes = b"0\r\n\r\n") -> bytes:
    """Everything up to the end of a chunked answer, or of the connection."""
    data = b""
    while not data.endswith(until):
        piece = await stream.receive_some(65536)
        if not piece:
            break
        data += piece
    return data


async def ask(address: tuple[str, int], message: bytes) -> bytes:
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(message)
        return await read_to_end(stream)


@pytest.fixture
async def sandbox(nursery: trio.Nursery) -> Sandbox:
    started: Sandbox = await nursery.start(serve_sandbox)
    return started


def configure(folder: Path, sandbox: Sandbox, **config: str) -> Path:
    (folder / "config.toml").write_text(config_text(sandbox.url, **config))
    return folder / "books.db"


async def test_sigterm_lets_running_streams_finish(tmp_path: Path, sandbox: Sandbox, nursery: trio.Nursery) -> None:
    books = configure(tmp_path, sandbox)
    async with tproxy(tmp_path) as server:
        answers: list[bytes] = []
        streaming = [0]

        async def stream() -> None:
            async with await trio.open_tcp_stream(*server.address) as client:
                await client.send_all(request("tokens=40; per=1; tps=40"))
                data = await client.receive_some(65536)
                streaming[0] += 1
                answers.append(data + await read_to_end(client))

        async with trio.open_nursery() as streams:
            for _ in range(20):
                streams.start_soon(stream)
            with trio.fail_after(10):
                while streaming[0] < 20:
                    await trio.sleep(0.01)  # the server is another process
            server.process.send_signal(signal.SIGTERM)
            with trio.fail_after(5):
                while True:
                    try:
                        await (await trio.open_tcp_stream(*server.address)).aclose()
                    except OSError:
                        break
                    await trio.sleep(0.01)
            assert len(answers) < 20, "the streams ended before the listener was seen to close"
        assert all(b"message_stop" in answer and answer.endswith(b"0\r\n\r\n") for answer in answers)
        with trio.fail_after(10):
            assert await server.process.wait() == 0
    rows = reading.recent(books, 100)
    assert [row["ended"] for row in rows] == ["finished"] * 20


async def test_a_second_signal_cuts_what_still_runs(tmp_path: Path, sandbox: Sandbox) -> None:
    books = configure(tmp_path, sandbox)
    async with tproxy(tmp_path) as server, await trio.open_tcp_stream(*server.address) as client:
        await client.send_all(request("stall_after=3"))
        assert await client.receive_some(65536)
        server.process.send_signal(signal.SIGTERM)
        with trio.fail_after(10):
            while '"draining"' not in server.log.read_text():
                await trio.sleep(0.01)
        assert await server.stop() == 1
        assert not (await read_to_end(client)).endswith(b"0\r\n\r\n")
    [row] = reading.recent(books, 10)
    assert (row["ended"], row["error_type"]) == ("failed", "shutdown")


async def test_sighup_reloads_keys_and_a_faulty_file_changes_nothing(tmp_path: Path, sandbox: Sandbox) -> None:
    configure(tmp_path, sandbox, tproxy='key_file = "keys.toml"')
    keys = tmp_path / "keys.toml"

    def write(text: str) -> None:
        keys.write_text(text)
        keys.chmod(0o600)

    write('[[key]]\nalias = "a"\nkey = "sk-first"\n')
    async with tproxy(tmp_path) as server:

        async def status(key: str) -> bytes:
            return (await ask(server.address, request("tokens=1", key=key)))[9:12]

        async def reload(said: str) -> None:
            seen = server.log.read_text().count(said)
            server.process.send_signal(signal.SIGHUP)
            with trio.fail_after(10):
                while server.log.read_text().count(said) == seen:
                    await trio.sleep(0.01)

        assert (await status("sk-first"), await status("sk-second")) == (b"200", b"401")
        write('[[key]]\nalias = "b"\nkey = "sk-second"\n')
        await reload('"reloaded"')
        assert (await status("sk-first"), await status("sk-second")) == (b"401", b"200")
        write('[[key]]\nalias = "b"\nkey = "sk-third"\nmax_budgets = 5\n')
        await reload("not reloaded")
        assert "max_budget" in server.log.read_text()
        assert await status("sk-second") == b"200"
        log = server.log.read_text()
    assert not [secret for secret in ("sk-first", "sk-second", "sk-third", REAL_KEY) if secret in log]


def _noted(books: Path) -> list[str]:
    """The running exchanges of which the ledger knows what message_start said."""
    return [row["id"] for row in reading.recent(books, 100) if row["ended"] == "open" and row["input_tokens"]]


async def test_kill_9_loses_no_row_that_a_client_has_seen(tmp_path: Path, sandbox: Sandbox) -> None:
    books = configure(tmp_path, sandbox)
    seen: set[str] = set()
    for _ in range(3):
        async with tproxy(tmp_path) as server, trio.open_nursery() as streams:

            async def stream(server: Running = server) -> None:
                try:
                    async with await trio.open_tcp_stream(*server.address) as client:
                        await client.send_all(request("tokens=500; per=1; tps=50"))
                        while data := await client.receive_some(65536):
                            if b"x-tproxy-id: " in data:
                                seen.add(data.split(b"x-tproxy-id: ")[1].split(b"\r\n")[0].decode())
                except (OSError, trio.BrokenResourceError):
                    pass  # that is what a kill looks like from here

            before = len(seen)
            for _ in range(15):
                streams.start_soon(stream)
            with trio.fail_after(20):
                while len(seen) - before < 8 or not _noted(books):
                    await trio.sleep(0.005)
            server.process.kill()
            await server.process.wait()
    async with tproxy(tmp_path):
        pass  # the start closes what was left open
    rows = {row["id"]: row for row in reading.recent(books, 1000)}
    assert seen <= rows.keys()
    assert {row["ended"] for row in rows.values()} == {"lost"}
    assert any(row["cost_nano"] for row in rows.values()), "what message_start said is kept"


async def test_two_processes_do_not_share_a_ledger(tmp_path: Path, sandbox: Sandbox) -> None:
    configure(tmp_path, sandbox)
    async with tproxy(tmp_path):
        second = await run("tproxy", "serve", folder=tmp_path)
    assert second.returncode in (1, 2)
    assert "books.db" in second.stderr
    assert "Traceback" not in second.stderr


async def test_an_address_in_use(tmp_path: Path, sandbox: Sandbox) -> None:
    configure(tmp_path, sandbox)
    config = tmp_path / "config.toml"
    config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{sandbox.port}"))
    ended = await run("tproxy", "serve", folder=tmp_path)
    assert ended.returncode == 1
    assert f"127.0.0.1:{sandbox.port}" in ended.stderr
    assert "in use" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_check_names_five_faults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        """
bind = ["127.0.0.1:0"]
worker_class = "trio"
graceful_timeoutt = 5

[tproxy]
master_key = "env:NOT_SET_ANYWHERE"
acess = "keys"

[tproxy.upstream]
base_url = "ftp://example.com"

[tproxy.timeouts]
idle = "long"
"""
    )
    ended = await run("tproxy", "check", folder=tmp_path, ANTHROPIC_API_KEY="sk-ant-x")
    assert ended.returncode == 2
    for word in ("graceful_timeout", "NOT_SET_ANYWHERE", "acess", "base_url", "tproxy.timeouts.idle"):
        assert word in ended.stderr
    assert len(ended.stderr.splitlines()) == 5


async def test_check_reads_the_files_that_the_configuration_names(tmp_path: Path, sandbox: Sandbox) -> None:
    configure(tmp_path, sandbox, tproxy='key_file = "keys.toml"\nprice_file = "prices.toml"')
    (tmp_path / "keys.toml").write_text("[[key]]\nalias = 5\n")
    (tmp_path / "keys.toml").chmod(0o600)
    (tmp_path / "prices.toml").write_text("[model.x]\nnonsense = 1\n")
    ended = await run("tproxy", "check", folder=tmp_path)
    assert ended.returncode == 2
    assert "keys.toml" in ended.stderr
    assert "prices.toml" in ended.stderr


async def test_spend_shows_what_was_served(tmp_path: Path, sandbox: Sandbox) -> None:
    configure(tmp_path, sandbox)
    empty = await run("tproxy", "spend", folder=tmp_path)
    assert empty.returncode == 1
    assert "books.db" in empty.stderr
    async with tproxy(tmp_path) as server:
        answer = await ask(server.address, request("tokens=10"))
        id = answer.decode().lower().split("x-tproxy-id: ")[1].split("\r\n")[0]
        table = await run("tproxy", "spend", folder=tmp_path)
        assert "claude-haiku-4-5" in table.stdout
        totals = json.loads((await run("tproxy", "spend", "--json", folder=tmp_path)).stdout)
        one = json.loads((await run("tproxy", "spend", "--id", id, "--json", folder=tmp_path)).stdout)
        assert one["ended"] == "finished"
        assert totals["total_cost_nano"] == one["cost_nano"] == totals["days"][0]["cost_nano"]
        assert one["cost_nano"] == one["input_tokens"] * 1000 + one["output_tokens"] * 5000
        shown = await run("tproxy", "spend", "--id", id[:13], folder=tmp_path)
        assert id in shown.stdout
        unknown = await run("tproxy", "spend", "--id", "00000000-0000", folder=tmp_path)
        assert unknown.returncode == 1
        newest = await run("tproxy", "spend", "--last", "5", folder=tmp_path)
        assert id in newest.stdout
        listed = json.loads((await run("tproxy", "spend", "--last", "5", "--json", folder=tmp_path)).stdout)
        assert [row["id"] for row in listed] == [id]


KILLER = (
    b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nx"
)


async def test_hypercorns_own_command_serves_the_same(tmp_path: Path, sandbox: Sandbox) -> None:
    """And the request that kills a bare hypercorn does not kill it, nor does a viewer hold up its end."""
    books = configure(tmp_path, sandbox, tproxy='access = "open"\nmaster_key = "sk-master-of-the-tests"')
    config = tmp_path / "config.toml"
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listener.socket.getsockname()[1]
    await listener.aclose()
    config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
    async with hypercorn(tmp_path) as server:
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(request("tokens=20; per=1; tps=20"))
            head = await client.receive_some(65536)
            for _ in range(3):
                refused = await ask(("127.0.0.1", port), KILLER)
                assert refused.startswith(b"HTTP/1.1 400")
            assert b"message_stop" in head + await read_to_end(client)
        assert server.returncode is None
        async with await trio.open_tcp_stream("127.0.0.1", port) as viewer:
            await viewer.send_all(
                b"GET /live HTTP/1.1\r\nhost: h\r\nauthorization: Bearer sk-master-of-the-tests\r\n\r\n"
            )
            assert b"200 OK" in await viewer.receive_some(65536)
            server.send_signal(signal.SIGTERM)
            with trio.fail_after(10):  # graceful_timeout is longer
                assert b"draining" in await read_to_end(viewer)
                await server.wait()
    [row] = reading.recent(books, 10)
    assert row["ended"] == "finished"


async def test_hypercorns_command_with_a_faulty_configuration(tmp_path: Path, sandbox: Sandbox) -> None:
    configure(tmp_path, sandbox, tproxy='acess = "open"')
    ended = await run("hypercorn", "--config", "config.toml", "tproxy:app", folder=tmp_path)
    assert "acess" in ended.stderr  # the exit code is hypercorn's own, and it is 0


async def test_the_demo_is_kept_apart_from_money(tmp_path: Path, sandbox: Sandbox) -> None:
    books = configure(tmp_path, sandbox)
    async with tproxy(tmp_path, "--sandbox") as server:
        await ask(server.address, request("tokens=5"))
        totals = json.loads((await run("tproxy", "spend", "--json", folder=tmp_path)).stdout)
    assert totals["total_cost_nano"] == 0
    assert totals["sandbox_cost_nano"] == totals["days"][0]["cost_nano"] > 0
    assert [row["upstream"] for row in reading.recent(books, 5)] == ["sandbox"]
    assert len(sandbox.requests) == 0


async def test_spend_needs_no_secret(tmp_path: Path, sandbox: Sandbox) -> None:
    configure(tmp_path, sandbox, tproxy='master_key = "env:NOT_SET_ANYWHERE"')
    ended = await run("tproxy", "spend", folder=tmp_path)
    assert "NOT_SET_ANYWHERE" not in ended.stderr
    assert "no such file" in ended.stderr


async def test_a_sandbox_that_cannot_listen(tmp_path: Path) -> None:
    for bind in ("foo", "127.0.0.1:99999"):
        ended = await run("tproxy", "sandbox", "--bind", bind, folder=tmp_path)
        assert ended.returncode == 2
        assert "HOST:PORT" in ended.stderr
        assert "Traceback" not in ended.stderr


async def test_the_sandbox_alone(tmp_path: Path) -> None:
    async with running(
        "tproxy", "sandbox", "--bind", "127.0.0.1:0", folder=tmp_path, ready="sandbox listening on "
    ) as sandbox:
        answer = await ask(sandbox.address, request("tokens=3").replace(b"/anthropic/", b"/"))
        assert b"message_stop" in answer
        assert await sandbox.stop(signal.SIGINT) == 0
