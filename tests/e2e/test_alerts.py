"""Alerts of a whole house: each once, by signed webhook, and no word of a secret in the log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from tests.alert.told import Receiver, receiver
from tests.e2e.api import WITH_MASTER, call, made
from tests.e2e.house import House, open_house
from tests.e2e.raw import ask
from tests.e2e.test_budgets import body, message
from tproxy.alert import alerts
from tproxy.alert.alert import BUDGET, ERRORS, SOFT_BUDGET, UNPRICED

SECRET = "the-secret-that-signs"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked for often: threads and sockets are not on trio's clock."""
    monkeypatch.setattr(alerts, "TICK_SECONDS", 0.05)


def tables(hook: Receiver) -> str:
    return f'[tproxy.alerts]\nwebhook_url = "{hook.url}"\nwebhook_secret = "{SECRET}"\nslack_url = "{hook.url}/slack"\n'


def told(hook: Receiver) -> list[str]:
    """The kinds of what the webhook was told."""
    return [json.loads(each.body)["kind"] for each in hook.requests if not each.target.endswith(b"/slack")]


async def until_told(hook: Receiver, count: int) -> list[str]:
    with trio.fail_after(10):
        while len(hook.requests) < 2 * count:
            await trio.sleep(0.02)
    await trio.sleep(0.3)  # some looks more
    return told(hook)


async def ask_once(house: House, key: str, script: str = "tokens=200", **fields: str) -> int:
    said = body() if not fields else json.dumps({**json.loads(body()), **fields}).encode()
    return (await ask(house.address, message(key, said, script))).status


async def test_budgets_and_unpriced_models(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with receiver() as hook, open_house(tmp_path, tproxy=WITH_MASTER, tables=tables(hook)) as house:
        key = (await made(house, "/key/generate", max_budget=0.002, soft_budget=0.001, budget_mode="soft"))["key"]
        assert await ask_once(house, key) == 200
        assert await ask_once(house, key) == 402
        assert sorted(await until_told(hook, 2)) == [BUDGET, SOFT_BUDGET]
        assert await ask_once(house, key) == 402
        other = (await made(house, "/key/generate"))["key"]
        for _ in range(2):
            await ask_once(house, other, model="claude-of-the-future-9")
        assert await until_told(hook, 3) == [*told(hook)[:2], UNPRICED]
        _, page = await call(house, "GET", "/health")
        assert page["alerts"]["open_count"] == 3
    written = "".join(capfd.readouterr())
    assert "budget_reached" in written
    assert SECRET not in written
    assert "secret-part" not in written


async def test_an_upstream_that_is_down_is_one_alert(tmp_path: Path) -> None:
    async with receiver() as hook:
        async with open_house(tmp_path, tproxy=WITH_MASTER, tables=tables(hook)) as house:
            key = (await made(house, "/key/generate"))["key"]
            for _ in range(25):
                assert await ask_once(house, key, "status=529") == 529
            assert await until_told(hook, 1) == [ERRORS]
        async with open_house(tmp_path, tproxy=WITH_MASTER, tables=tables(hook)) as house:
            await trio.sleep(0.5)  # begun again, and nothing is told twice
            assert told(hook) == [ERRORS]


async def test_a_channel_can_be_tried_and_health_is_shown(tmp_path: Path) -> None:
    async with receiver() as hook, open_house(tmp_path, tproxy=WITH_MASTER, tables=tables(hook)) as house:
        status, page = await call(house, "GET", "/health/services", service="slack")
        assert (status, page["status"]) == (200, "success")
        assert b"This is a test" in hook.requests[0].body
        status, page = await call(house, "GET", "/health/services", service="email")
        assert (status, page["status"]) == (502, "error")
        assert (await call(house, "GET", "/health/services", service="pager"))[0] == 400
        viewer = (await made(house, "/key/generate"))["key"]
        assert (await call(house, "GET", "/health", key=viewer))[0] == 403
        status, page = await call(house, "GET", "/health")
        assert (status, page["status"], page["healthy_count"]) == (200, "healthy", 1)
        assert page["upstream"]["reachable"]
