"""Reports of real exchanges: every way to ask for them comes to what the ledger's rows come to, to the nano-dollar."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.api import MASTER, WITH_MASTER, call, made
from tests.e2e.house import House, open_house
from tests.e2e.process import BIN
from tests.e2e.raw import ask, request

HAIKU, SONNET = "claude-haiku-4-5-20251001", "claude-sonnet-4-5-20250929"
KINDS = ("team", "user", "key", "customer", "tag", "model")


@dataclass
class Busy:
    """A house in which several keys, teams, users, customers and tags have done something.

    Attributes:
        keys: those that were made, by their alias.
        rows: what the ledger says of each exchange.
        query: the days that hold them all, whenever midnight passes.
    """

    house: House
    keys: dict[str, str]
    rows: list[dict[str, Any]]
    query: dict[str, str]

    def cost(self, **columns: Any) -> int:
        """What the exchanges came to whose columns have these values."""
        return sum(
            row["cost_nano"] or 0 for row in self.rows if all(row[name] == value for name, value in columns.items())
        )


async def _message(house: House, key: str, model: str, *more: tuple[str, str], tokens: int = 20) -> int:
    content = {"model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": "Hello, reports"}]}
    headers = [("x-api-key", key), ("content-type", "application/json"), ("anthropic-version", "2023-06-01"), *more]
    body = json.dumps(content).encode()
    return (await ask(house.address, request("POST", "/anthropic/v1/messages", headers, body))).status


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncIterator[Busy]:
    first = datetime.now(UTC).date()
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        await made(house, "/customer/new", user_id="acme")
        keys: dict[str, str] = {}
        for alias, fields in (
            ("=alice", {"team_id": "red", "user_id": "alice", "tags": ["ci", "night"]}),
            ("bob", {"team_id": "blue", "user_id": "bob", "tags": ["ci"]}),
            ("nobody", {}),
        ):
            keys[alias] = (await made(house, "/key/generate", key_alias=alias, **fields))["key"]
        statuses = [
            await _message(house, keys["=alice"], HAIKU),
            await _message(house, keys["=alice"], SONNET, tokens=40),
            await _message(house, keys["bob"], SONNET, ("x-litellm-customer-id", "acme")),
            await _message(house, keys["nobody"], HAIKU, tokens=30),
            await _message(house, keys["bob"], "claude-no-such-model"),
        ]
        assert statuses[:4] == [200] * 4
        rows = await house.rows(5)
        days = {"start_date": str(first), "end_date": str(first + timedelta(days=1))}
        yield Busy(house, keys, rows, days)


async def get(busy: Busy, path: str, *, key: str = MASTER, **query: Any) -> Any:
    status, content = await call(busy.house, "GET", path, key=key, **query)
    assert status == 200, content
    return content


async def test_activity_is_what_the_rows_come_to(busy: Busy) -> None:
    page = await get(busy, "/user/daily/activity", **busy.query)
    assert page["metadata"]["total_spend_nano"] == busy.cost() > 0
    assert page["metadata"]["total_api_requests"] == 5
    for name, column in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
        assert page["metadata"][f"total_{name}"] == sum(row[column] or 0 for row in busy.rows)

    for path, query, columns in (
        ("/user/daily/activity", {"user_id": "alice"}, {"user": "alice"}),
        ("/user/daily/activity", {"api_key": busy.keys["nobody"]}, {"caller_alias": "nobody"}),
        ("/user/daily/activity/aggregated", {"model": HAIKU}, {"model_served": HAIKU}),
        ("/team/daily/activity", {"team_ids": "blue"}, {"team": "blue"}),
        ("/tag/daily/activity", {"tags": "night"}, {"team": "red"}),
    ):
        page = await get(busy, path, **busy.query, **query)
        assert page["metadata"]["total_spend_nano"] == busy.cost(**columns) > 0, (path, query)


async def test_a_key_without_a_role_sees_its_own(busy: Busy) -> None:
    own = await get(busy, "/user/daily/activity", key=busy.keys["bob"], **busy.query)
    assert own["metadata"]["total_spend_nano"] == busy.cost(user="bob") > 0
    report = await get(busy, "/key/spend/report", key=busy.keys["nobody"], **busy.query)
    assert [row["model_details"][0]["model"] for row in report] == [HAIKU]
    status, _ = await call(
        busy.house, "GET", "/user/daily/activity", key=busy.keys["bob"], user_id="alice", **busy.query
    )
    assert status == 403


@pytest.mark.parametrize("by", KINDS)
async def test_sums_by_day_add_up(busy: Busy, by: str) -> None:
    page = await get(busy, "/spend/by/day", by=by, since=busy.query["start_date"])
    assert page["total"]["spend_nano"] == sum(day["spend_nano"] for day in page["days"]) == busy.cost()
    by_day = sum(row["spend_nano"] for day in page["days"] for row in day["rows"])
    assert by_day == sum(row["spend_nano"] for row in page["rows"])


async def _run(busy: Busy, *arguments: str) -> bytes:
    def call() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(BIN / "tproxy"), "report", "--since", "2d", *arguments],
            env={**os.environ, "COLUMNS": "120", "TPROXY_URL": busy.house.url, "TPROXY_MASTER_KEY": MASTER},
            capture_output=True,
            timeout=30,
            check=False,
        )

    done = await trio.to_thread.run_sync(call)
    assert done.returncode == 0, done.stderr
    assert MASTER not in done.stdout.decode() + done.stderr.decode()
    return done.stdout


async def test_the_report_of_a_terminal(busy: Busy) -> None:
    for by in ("team", "tag"):
        assert f"Spend by {by}, in USD" in (await _run(busy, "--by", by)).decode()

    text = (await _run(busy, "--by", "key", "--format", "csv")).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert sum(int(row["spend_nano"]) for row in rows) == busy.cost()
    assert {row["name"] for row in rows} == {"'=alice", "bob", "nobody"}
    assert sum(int(row["spend_nano"]) for row in rows if row["name"] == "bob") == busy.cost(caller_alias="bob")


async def test_the_report_to_be_mailed(busy: Busy, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert await _run(busy, "--by", "team", "--out", str(out)) == b""
    page = out.read_text(encoding="utf-8")
    whole, fraction = divmod(busy.cost(), 1_000_000_000)
    assert f"<dd>{whole}.{fraction:09d}".rstrip("0") in page
    assert all(f"<td>{name}</td>" in page for name in ("red", "blue", "(none or others)", "all exchanges"))
    assert page.count("<svg") >= 2
