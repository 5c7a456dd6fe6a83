"""`/live` and `tproxy top` over real sockets, with many streams that run."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import trio

from tests.e2e.api import MASTER, WITH_MASTER, made
from tests.e2e.house import House, open_house
from tests.e2e.process import BIN, run
from tests.e2e.raw import request

STREAMS = 50
PLACE = {"TPROXY_MASTER_KEY": MASTER}


def message(key: str, script: str) -> bytes:
    content = {
        "model": "claude-haiku-4-5",
        "max_tokens": 4000,
        "stream": True,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    headers = [
        ("x-api-key", key),
        ("anthropic-version", "2023-06-01"),
        ("content-type", "application/json"),
        ("x-sandbox", script),
    ]
    return request("POST", "/v1/messages", headers, json.dumps(content).encode())


class Looking:
    """A client of `/live`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self._came = b""

    async def begin(self) -> None:
        headers = [("host", "proxy.test"), ("authorization", f"Bearer {MASTER}")]
        await self._say(h11.Request(method="GET", target="/live?interval=0.5", headers=headers))
        await self._say(h11.EndOfMessage())
        head = await self._next()
        assert isinstance(head, h11.Response)
        assert head.status_code == 200

    async def event(self) -> dict[str, str]:
        """The next event, by its fields."""
        with trio.fail_after(10):
            while b"\n\n" not in self._came:
                data = await self._next()
                assert isinstance(data, h11.Data), data
                self._came += data.data
        event, _, self._came = self._came.partition(b"\n\n")
        return dict(line.split(": ", 1) for line in event.decode().split("\n"))

    async def snapshot(self) -> dict[str, Any]:
        event = await self.event()
        assert event["event"] == "snapshot"
        found: dict[str, Any] = json.loads(event["data"])
        return found

    async def _say(self, event: h11.Event) -> None:
        await self._stream.send_all(self._http.send(event) or b"")

    async def _next(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive_some())
        return event


@asynccontextmanager
async def looking(house: House) -> AsyncIterator[Looking]:
    async with await trio.open_tcp_stream(*house.address) as stream:
        found = Looking(stream)
        await found.begin()
        yield found


@asynccontextmanager
async def streaming(house: House, key: str, count: int = STREAMS) -> AsyncIterator[None]:
    """So many streams that run on until the block ends; all have begun."""
    begun = trio.Semaphore(0)

    async def one() -> None:
        async with await trio.open_tcp_stream(*house.address) as stream:
            await stream.send_all(message(key, "tokens=4000; tps=20"))
            while b"content_block_delta" not in await stream.receive_some():
                pass
            begun.release()
            while await stream.receive_some():
                pass

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
        with trio.fail_after(20):
            for _ in range(count):
                await begun.acquire()
        yield
        nursery.cancel_scope.cancel()


async def test_many_streams_are_seen(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        key = (await made(house, "/key/generate", key_alias="alice"))["key"]
        async with looking(house) as live:
            first = await live.snapshot()
            assert first["exchanges"] == []
            async with streaming(house, key):
                shown = await live.snapshot()
                while shown["totals"]["streaming"] < STREAMS or not shown["totals"]["tokens_per_second"]:
                    shown = await live.snapshot()
                assert shown["totals"]["running"] == len(shown["exchanges"]) == STREAMS
                before = {row["id"]: row["output_tokens"] for row in shown["exchanges"]}
                for row in shown["exchanges"]:
                    assert (row["caller_alias"], row["phase"], row["certainty"]) == ("alice", "streaming", "estimated")
                    assert row["cost_nano"] > 0
                    assert row["first_content_ms"] >= row["head_ms"] > 0
                shown = await live.snapshot()
                while any(row["output_tokens"] <= before[row["id"]] for row in shown["exchanges"]):
                    shown = await live.snapshot()
            while shown["totals"]["running"]:
                shown = await live.snapshot()
            assert shown["totals"]["ended"] == STREAMS
            rows = await house.rows(STREAMS)
            assert {row["id"] for row in rows} == set(before)
            assert all(row["output_tokens"] > before[row["id"]] for row in rows)


async def test_top_shows_them(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        key = (await made(house, "/key/generate", key_alias="alice"))["key"]
        async with streaming(house, key):
            place = PLACE | {"TPROXY_URL": house.url}
            done = await run("tproxy", "top", "--once", "--sort", "tokens", folder=tmp_path, **place)
            assert (done.returncode, done.stderr) == (0, "")
            assert f"{STREAMS} running" in done.stdout
            lines = [line for line in done.stdout.splitlines() if line.startswith("alice ")]
            assert len(lines) == STREAMS
            assert all("claude-haiku-4-5" in line and "stream" in line for line in lines)
            assert max(map(len, done.stdout.splitlines())) <= 120
            done = await run("tproxy", "top", "--once", "--json", folder=tmp_path, **place)
            assert len(json.loads(done.stdout)["exchanges"]) == STREAMS
            done = await run("tproxy", "top", "--once", folder=tmp_path, **place | {"TPROXY_MASTER_KEY": key})
            assert (done.returncode, key in done.stderr) == (1, False)


async def test_lines_of_json_until_it_is_interrupted(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        process: trio.Process = await trio.lowlevel.open_process(
            [str(BIN / "tproxy"), "top", "--json", "--interval", "0.5", "--url", house.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | PLACE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        came = b""
        with trio.fail_after(20):
            while came.count(b"\n") < 3:
                came += await process.stdout.receive_some()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
        assert await process.stderr.receive_some() == b""
        assert all("totals" in json.loads(line) for line in came.splitlines()[:3])


async def test_a_terminal_is_drawn_over_and_given_back(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        key = (await made(house, "/key/generate", key_alias="alice"))["key"]
        ours, its = pty.openpty()
        os.set_blocking(ours, False)
        process: trio.Process = await trio.lowlevel.open_process(
            [str(BIN / "tproxy"), "top", "--interval", "0.5", "--url", house.url],
            stdin=its,
            stdout=its,
            stderr=its,
            env=os.environ | PLACE | {"TERM": "xterm", "COLUMNS": "80", "LINES": "20"},
        )
        os.close(its)
        drawn = b""

        async def until(wanted: bytes) -> None:
            nonlocal drawn
            while wanted not in drawn:
                await trio.lowlevel.wait_readable(ours)
                drawn += os.read(ours, 65536)

        with trio.fail_after(30):
            await until(b"\x1b[?1049h")
            async with streaming(house, key, 3):
                await until(b"3 running")
                await until(b"alice")
            process.send_signal(signal.SIGINT)
            await until(b"\x1b[?1049l")
            assert await process.wait() == 0
        os.close(ours)
        assert b"Traceback" not in drawn


async def test_a_drain_waits_for_nobody_who_looks(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house, looking(house) as live:
        await live.snapshot()
        house.stopping.set()
        with trio.fail_after(5):
            while (event := await live.event())["event"] == "snapshot":
                pass
        assert event == {"event": "end", "data": '{"reason":"draining"}'}
