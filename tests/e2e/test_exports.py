"""Exports of a running house: nobody waits for them, and nothing is lost."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock

from tests.e2e.house import REAL_KEY, House, config_text, open_house
from tests.e2e.process import tproxy
from tests.e2e.raw import ask, request
from tests.export.receiver import Receiver, receiving
from tproxy.protocol import signature
from tproxy.sandbox.server import serve_sandbox

BODY = {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
MESSAGE = request("POST", "/v1/messages", [("x-api-key", "sk-any")], json.dumps(BODY).encode())


def tables(receiver: Receiver) -> str:
    return f"""
[tproxy.export.jsonl]
directory = "exports"
[tproxy.export.webhook]
url = "{receiver.url}"
secret = "the-hooks-own-secret"
"""


def posted(receiver: Receiver) -> list[dict[str, Any]]:
    return [one for taken in receiver.taken for one in json.loads(taken.body)["exchanges"]]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for file in sorted((folder / "exports").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]


def tear(folder: Path) -> None:
    with max((folder / "exports").glob("*.jsonl")).open("a") as file:
        file.write('{"version":1,"seq":')


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(300):
        while not true():
            await trio.sleep(0.1)  # files, sockets and threads tell nobody


async def under_load(house: House, count: int, ids: list[str]) -> None:
    """Ask `count` times, four at a time; each is answered as if there were no exports."""

    async def ask_some() -> None:
        for _ in range(count // 4):
            answer = await ask(house.address, MESSAGE)
            assert answer.status == 200
            ids.append(answer.id)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(ask_some)


async def test_a_receiver_that_is_down_under_load(tmp_path: Path, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    ids: list[str] = []
    async with receiving() as receiver, open_house(tmp_path, tables=tables(receiver)) as house:
        receiver.refuse_next = 3
        await under_load(house, 100, ids)
        await until(lambda: receiver.asked >= 2)
        await under_load(house, 100, ids)
        await until(lambda: len(posted(receiver)) >= 200)
        await until(lambda: len(lines(tmp_path)) >= 200)
        rows = {row["id"]: row for row in await house.rows(200)}
    for found in (posted(receiver), lines(tmp_path)):
        assert [one["seq"] for one in found] == list(range(1, 201))
        assert sorted(one["id"] for one in found) == sorted(ids)
        for one in found:
            assert {name: one[name] for name in rows[one["id"]]} == rows[one["id"]]
    key = signature.key("the-hooks-own-secret")
    for came in receiver.came:
        said = came.headers
        sent = said["webhook-timestamp"]
        assert signature.verify(key, said["webhook-id"], sent, came.body, said["webhook-signature"], int(sent))
    text = b"".join(came.body for came in receiver.came).decode() + str(lines(tmp_path))
    assert REAL_KEY not in text
    assert "sk-any" not in text


async def test_what_ended_just_before_the_shutdown_is_sent(tmp_path: Path) -> None:
    ids: list[str] = []
    async with receiving() as receiver:
        async with open_house(tmp_path, tables=tables(receiver)) as house:
            await under_load(house, 8, ids)
        assert [one["id"] for one in posted(receiver)] == [one["id"] for one in lines(tmp_path)]
        assert sorted(one["id"] for one in posted(receiver)) == sorted(ids)


async def test_after_a_kill_every_exchange_arrives(tmp_path: Path) -> None:
    ids: list[str] = []
    async with receiving() as receiver, trio.open_nursery() as nursery:
        sandbox = await nursery.start(serve_sandbox)
        (tmp_path / "config.toml").write_text(config_text(sandbox.url, tables=tables(receiver)))
        for turn in range(3):
            receiver.status = 503 if turn == 1 else 200
            async with tproxy(tmp_path) as running:
                for _ in range(10):
                    ids.append((await ask(running.address, MESSAGE)).id)
                if turn == 0:
                    await until(lambda: len(lines(tmp_path)) >= 5)
                assert await running.stop(signal.SIGKILL) == -signal.SIGKILL
            tear(tmp_path)
        receiver.status = 200
        async with tproxy(tmp_path):
            await until(lambda: {one["id"] for one in posted(receiver)} >= set(ids))
            await until(lambda: {one["id"] for one in lines(tmp_path)} >= set(ids))
        nursery.cancel_scope.cancel()
    for found in (posted(receiver), lines(tmp_path)):
        first = {one["id"]: one["seq"] for one in reversed(found)}
        assert set(first) == set(ids)
        assert list(dict.fromkeys(one["seq"] for one in found)) == sorted(first.values())
