"""`tproxy keys` and `tproxy spend --by` as processes, against a running house."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.e2e.api import MASTER, WITH_MASTER, made
from tests.e2e.house import House, open_house
from tests.e2e.process import BIN
from tests.e2e.raw import ask, request

MODEL = "claude-haiku-4-5"


@dataclass
class Terminal:
    """Where an operator types."""

    house: House

    async def run(self, line: str, *, stdin: str = "", code: int = 0, master: str = MASTER) -> str:
        """Run `tproxy` with what is in `line`, and return what it printed on stdout, or on stderr if it failed."""
        call = partial(
            subprocess.run,
            [str(BIN / "tproxy"), *shlex.split(line)],
            env={**os.environ, "COLUMNS": "200", "TPROXY_URL": self.house.url, "TPROXY_MASTER_KEY": master},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        done = await trio.to_thread.run_sync(call)
        assert done.returncode == code, (done.stdout, done.stderr)
        assert master not in done.stdout + done.stderr
        return done.stderr if code else done.stdout

    async def status(self, key: str, model: str = MODEL, max_tokens: int = 10) -> int:
        """The status of one message."""
        content = {"model": model, "max_tokens": max_tokens, "messages": [{"role": "user", "content": "Hello"}]}
        headers = [("x-api-key", key), ("content-type", "application/json"), ("anthropic-version", "2023-06-01")]
        answer = await ask(
            self.house.address, request("POST", "/anthropic/v1/messages", headers, json.dumps(content).encode())
        )
        return answer.status


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        yield Terminal(house)


async def test_the_life_of_a_key(terminal: Terminal) -> None:
    run = terminal.run
    made = await run("keys create --alias alice --model claude-haiku-* --budget 1 --every 1d --limit 1mo=9")
    key = made.strip()
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert await terminal.status(key) == 200
    assert await terminal.status(key, "claude-opus-4-5") == 403

    table = await run("keys list")
    (line,) = [line for line in table.splitlines() if "alice" in line]
    assert ["alice", f"sk-...{key[-4:]}", digest[:12]] == line.split()[:3]
    assert "1.00 per 1d" in line
    assert "9.00 per 1mo" in table
    info = json.loads(await run("keys info - --json", stdin=key))
    assert (info["token"], info["models"], info["max_budget"]) == (digest, ["claude-haiku-*"], 1.0)
    assert "1.00 per 1d: spent 0." in await run(f"keys info {digest[:8]}")
    assert key not in table

    await run(f"keys update {digest[:8]} --unset model --rpm 100 --alias bob --soft 0.5")
    assert await terminal.status(key, "claude-opus-4-5") == 200
    info = json.loads(await run("keys info bob --json"))
    assert (info["models"], info["rpm_limit"], info["soft_budget"]) == ([], 100, 0.5)
    await run("keys update bob --unset rpm --unset budget --unset every --unset soft --unset limit")
    info = json.loads(await run("keys info bob --json"))
    assert (info["rpm_limit"], info["max_budget"], info["budget_limits"], info["budgets"]) == (None, None, [], [])

    await run("keys block bob")
    assert await terminal.status(key) == 401
    await run("keys unblock bob")
    assert await terminal.status(key) == 200

    new = (await run("keys rotate bob --grace 1h")).strip()
    assert [await terminal.status(each) for each in (key, new)] == [200, 200]
    newest = (await run("keys rotate -", stdin=new)).strip()
    assert [await terminal.status(each) for each in (new, newest)] == [401, 200]

    await run("keys delete bob", stdin="n\n", code=1)
    await run("keys delete bob --yes")
    assert await terminal.status(newest) == 401
    assert "there is no key" in await run("keys info bob", code=1)


async def test_a_key_that_reads_changes_none(terminal: Terminal) -> None:
    key = (await terminal.run("keys create --alias viewer --role viewer")).strip()
    assert "viewer" in await terminal.run("keys info viewer", master=key)
    assert "says 403" in await terminal.run("keys block viewer", code=1, master=key)
    assert "does not take the key" in await terminal.run("keys list", code=1, master="sk-unknown")


async def test_what_the_server_refuses_is_said_in_a_line(terminal: Terminal) -> None:
    await made(terminal.house, "/key/generate", key_alias="alice")
    taken = await terminal.run("keys create --alias alice", code=1)
    long = await terminal.run(f"keys create --alias {'a' * 300}", code=1)
    assert "key_alias" in long
    assert [len(said.splitlines()) for said in (taken, long)] == [1, 1]


async def test_what_each_came_to(terminal: Terminal) -> None:
    for alias, team in (("alice", "red"), ("bob", "red")):
        key = await made(terminal.house, "/key/generate", key_alias=alias, team_id=team, tags=["night"])
        assert await terminal.status(key["key"]) == 200
    rows = await terminal.house.rows(2)
    cost = sum(row["cost_nano"] for row in rows)
    assert cost > 0
    spent = {by: json.loads(await terminal.run(f"spend --by {by} --since 7d --json")) for by in ("key", "team", "tag")}
    assert {row["alias"] for row in spent["key"]["rows"]} == {"alice", "bob"}
    assert [(row["id"], row["spend_nano"]) for row in spent["team"]["rows"]] == [("red", cost)]
    assert [(row["id"], row["spend_nano"]) for row in spent["tag"]["rows"]] == [("night", cost)]
    assert {by: answer["total"]["spend_nano"] for by, answer in spent.items()} == dict.fromkeys(spent, cost)
    assert MODEL in await terminal.run("spend --by model")
