"""Budgets under concurrency, before an upstream that keeps books of its own."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
import pytest
import trio

from tests.e2e.api import WITH_MASTER, call, made
from tests.e2e.house import House, open_house
from tests.e2e.raw import Answer, ask, request

NANO = 1_000_000_000
MODEL = "claude-sonnet-4-5"
TOKENS = 200


def body(text: str = "Hello, world", max_tokens: int = TOKENS) -> bytes:
    return json.dumps(
        {"model": MODEL, "max_tokens": max_tokens, "stream": True, "messages": [{"role": "user", "content": text}]}
    ).encode()


def message(key: str, content: bytes, script: str, *headers: tuple[str, str]) -> bytes:
    return request(
        "POST",
        "/anthropic/v1/messages",
        [("x-api-key", key), ("content-type", "application/json"), ("x-sandbox", script), *headers],
        content,
    )


def code(answer: Answer) -> str:
    found: str = json.loads(answer.body)["error"]["details"]["error_code"]
    return found


async def ask_all(house: House, count: int, said: bytes) -> list[Answer]:
    """So many at once; those whose answer breaks off are left out."""
    answers: list[Answer] = []

    async def one() -> None:
        with suppress(h11.RemoteProtocolError):
            answers.append(await ask(house.address, said))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return answers


def charged(house: House) -> int:
    """What the upstream says that all of it cost, in nano-dollars: 3 dollars a million in, 15 out."""
    assert house.sandbox is not None
    total = house.sandbox.books.total()
    return total["input_tokens"] * 3_000 + total["output_tokens"] * 15_000


async def at_rest(house: House, count: int) -> list[dict[str, Any]]:
    rows = await house.rows(count)
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + 5
        while house.proxy.running:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return rows


async def cost_of_one(house: House, key: str, script: str) -> int:
    answer = await ask(house.address, message(key, body(), script))
    cost: int = (await house.row(answer.id))["cost_nano"]
    return cost


@pytest.mark.parametrize(
    ("script", "ended"),
    [
        (f"tokens={TOKENS}", {"finished"}),
        (f"tokens={TOKENS}; cut_after=100", {"upstream_broken"}),
    ],
    ids=["finished", "broken upstreams"],
)
async def test_a_hard_budget_is_never_overshot(script: str, ended: set[str], tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        free = (await made(house, "/key/generate"))["key"]
        one = await cost_of_one(house, free, f"tokens={TOKENS}")
        assert house.sandbox is not None
        house.sandbox.books.reset()
        limit = 40 * one
        key = (await made(house, "/key/generate", max_budget=limit / NANO, budget_mode="hard", key_alias="forty"))[
            "key"
        ]
        answers = await ask_all(house, 100, message(key, body(), script))
        admitted = [answer for answer in answers if answer.status == 200]
        refusals = Counter(code(answer) for answer in answers if answer.status != 200)
        assert set(refusals) <= {"budget_exceeded", "budget_reserved"}
        _, info = await call(house, "GET", "/key/info", key=key)
        [budget] = info["info"]["budgets"]
        rows = [row for row in await at_rest(house, 1) if row["caller_alias"] == "forty"]
        assert {row["ended"] for row in rows} == ended
        if ended == {"finished"}:
            assert len(admitted) >= 38
        assert sum(row["cost_nano"] for row in rows) <= limit
        assert charged(house) <= limit
        _, info = await call(house, "GET", "/key/info", key=key)
        [budget] = info["info"]["budgets"]
        assert budget["held"] == 0
        assert budget["spent"] <= limit / NANO


async def test_key_team_user_and_customer_at_once(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        free = (await made(house, "/key/generate"))["key"]
        one = await cost_of_one(house, free, f"tokens={TOKENS}")
        terms = {"budget_mode": "hard"}
        await made(house, "/team/new", team_id="t", max_budget=30 * one / NANO, **terms)
        await made(house, "/user/new", user_id="u", max_budget=25 * one / NANO, auto_create_key=False, **terms)
        await made(house, "/customer/new", user_id="c", max_budget=12 * one / NANO, **terms)
        key = (await made(house, "/key/generate", team_id="t", user_id="u", max_budget=40 * one / NANO, **terms))["key"]
        for customer, least, most in (("c", 11, 12), ("other", 12, 13)):
            said = message(key, body(), f"tokens={TOKENS}", ("x-tproxy-customer", customer))
            answers = await ask_all(house, 40, said)
            assert least <= sum(answer.status == 200 for answer in answers) <= most
        _, info = await call(house, "GET", "/team/info", team_id="t")
        assert info["team_info"]["spend"] <= 25 * one / NANO


async def test_clients_that_hang_up_do_not_overshoot_a_hard_budget(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        free = (await made(house, "/key/generate"))["key"]
        one = await cost_of_one(house, free, f"tokens={TOKENS}")
        assert house.sandbox is not None
        house.sandbox.books.reset()
        limit = 20 * one
        fields = {"max_budget": limit / NANO, "budget_mode": "hard", "key_alias": "twenty"}
        key = (await made(house, "/key/generate", **fields))["key"]

        async def hang_up() -> None:
            stream = await trio.open_tcp_stream(*house.address)
            async with stream:
                await stream.send_all(message(key, body(), f"tokens={TOKENS}; tps=2000"))
                with trio.move_on_after(0.05):
                    await stream.receive_some(65536)

        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(hang_up)
        await at_rest(house, 1)
        assert charged(house) <= limit
        _, info = await call(house, "GET", "/key/info", key=key)
        [budget] = info["info"]["budgets"]
        assert budget["held"] == 0
        assert budget["spent"] <= limit / NANO


async def test_a_dollar_is_served_until_it_is_used(tmp_path: Path) -> None:
    """Claude Code's kind of request: a large body, a large `max_tokens`, a short answer."""
    large = json.dumps(
        {
            "model": MODEL,
            "max_tokens": 64_000,
            "stream": True,
            "system": "You are careful. " * 200,
            "tools": [
                {
                    "name": f"tool_{n}",
                    "description": "It does this and that, and says so in many words. " * 60,
                    "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}},
                }
                for n in range(25)
            ],
            "messages": [{"role": "user", "content": "What is in this file? " * 1000}],
        }
    ).encode()
    async with open_house(tmp_path, tproxy=WITH_MASTER, tables="[tproxy.budgets]\nwait = 1") as house:
        assert 80_000 < len(large) < 120_000
        for name, concurrent in (("one after the other", 1), ("twenty at once", 20)):
            made_key = await made(house, "/key/generate", max_budget=1, key_alias=name)
            said = message(made_key["key"], large, "tokens=800")
            for _ in range(40):
                answers = await ask_all(house, concurrent, said)
                if any(answer.status == 402 for answer in answers):
                    break
            assert {code(answer) for answer in answers if answer.status != 200} <= {
                "budget_exceeded",
                "budget_reserved",
            }
            rows = [row for row in await at_rest(house, 1) if row["caller_alias"] == name]
            dearest = max(row["cost_nano"] for row in rows)
            assert NANO <= sum(row["cost_nano"] for row in rows) < NANO + dearest
            _, info = await call(house, "GET", "/key/info", key=made_key["key"])
            assert info["info"]["budget_estimate"]["exchanges"] == len(rows)


async def test_rotating_a_key_under_load_gives_it_no_new_money(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        free = (await made(house, "/key/generate"))["key"]
        one = await cost_of_one(house, free, f"tokens={TOKENS}")
        assert house.sandbox is not None
        house.sandbox.books.reset()
        limit = one * 3 // 2
        key = (await made(house, "/key/generate", max_budget=limit / NANO, budget_mode="hard"))["key"]
        async with trio.open_nursery() as nursery:

            async def hammer() -> None:
                while True:
                    await ask(house.address, message(key, body(), f"tokens={TOKENS}"))

            for _ in range(8):
                nursery.start_soon(hammer)
            for n in range(20):
                grace = {"grace_period": "1h"} if n % 2 else {}
                key = (await made(house, "/key/regenerate", key=key, **grace))["key"]
            nursery.cancel_scope.cancel()
        await at_rest(house, 1)
        await house.sandbox.books.settled()
        assert charged(house) <= limit


async def test_another_period_keeps_what_is_spent_and_held(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        free = (await made(house, "/key/generate"))["key"]
        one = await cost_of_one(house, free, f"tokens={TOKENS}")
        terms = {"max_budget": one * 3 / 2 / NANO, "budget_mode": "hard", "budget_wait": 0}
        key = (await made(house, "/key/generate", budget_duration="1d", **terms))["key"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, house.address, message(key, body(), f"tokens={TOKENS}; tps=400"))
            with trio.fail_after(5):
                while not house.proxy.running:
                    await trio.sleep(0.01)
            for duration in ("1mo", "30d", "1w"):
                assert (await call(house, "POST", "/key/update", {"key": key, "budget_duration": duration}))[0] == 200
                refused = await ask(house.address, message(key, body(), f"tokens={TOKENS}"))
                assert refused.status in (402, 429)
        await house.rows(2)  # the answer is whole before its row is closed
        _, info = await call(house, "GET", "/key/info", key=key)
        [budget] = info["info"]["budgets"]
        assert (budget["budget_duration"], budget["spent"], budget["held"]) == ("1w", one / NANO, 0)
