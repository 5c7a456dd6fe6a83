"""Keys as those who hold them meet them: what a change does, to the next request and to a stream that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.api import WITH_MASTER, call, made
from tests.e2e.house import House, open_house
from tests.e2e.raw import Answer, ask
from tests.e2e.test_budgets import body, message


async def answered(house: House, key: str, script: str = "tokens=5") -> Answer:
    return await ask(house.address, message(key, body(), script))


def code(answer: Answer) -> str:
    found: str = json.loads(answer.body)["error"]["details"]["error_code"]
    return found


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        ("/key/block", {}, "key_blocked"),
        ("/key/delete", {}, "key_unknown"),
        ("/key/update", {"duration": "1s"}, "key_expired"),
        ("/key/regenerate", {}, "key_unknown"),
        ("/key/update", {"models": ["claude-haiku-*"]}, "model_not_allowed"),
        ("/key/update", {"allowed_routes": ["/v1/models"]}, "route_not_allowed"),
        ("/key/update", {"max_budget": 0}, "budget_exceeded"),
        ("/key/update", {"rpm_limit": 0}, "rate_limited"),
    ],
    ids=["blocked", "deleted", "expired", "regenerated", "models", "routes", "budget", "limit"],
)
async def test_a_change_counts_at_once_and_running_streams_finish(
    path: str, fields: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        key = (await made(house, "/key/generate", key_alias="a"))["key"]
        assert (await answered(house, key)).status == 200
        answers: list[Answer] = []
        async with trio.open_nursery() as nursery:

            async def stream() -> None:
                answers.append(await answered(house, key, "tokens=40; tps=40"))

            nursery.start_soon(stream)
            with trio.fail_after(5):
                while not house.proxy.running:
                    await trio.sleep(0.01)
            await trio.sleep(0.05)
            named = {"keys": [key]} if path == "/key/delete" else {"key": key}
            status, page = await call(house, "POST", path, {**named, **fields})
            assert status == 200, page
            if expected == "key_expired":
                await trio.sleep(1.01)
            refused = await answered(house, key)
            assert code(refused) == expected
        assert answers[0].body.endswith(b'data: {"type":"message_stop"}\n\n')


async def test_a_key_in_its_time_of_grace_spends_the_budget_of_the_new_one(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        old = (await made(house, "/key/generate", key_alias="a", max_budget=1, rpm_limit=3))["key"]
        assert (await answered(house, old)).status == 200
        new = (await made(house, "/key/regenerate", key=old, grace_period="1h"))["key"]
        assert (await answered(house, old)).status == 200
        assert (await answered(house, new)).status == 200
        rows = await house.rows(3)
        _, info = await call(house, "GET", "/key/info", key=new)
        assert info["info"]["spend"] == sum(row["cost_nano"] for row in rows) / 1e9
        assert {row["caller_alias"] for row in rows} == {"a"}
        _, by = await call(house, "GET", "/spend/by", by="key")
        assert [(each["alias"], each["exchanges"]) for each in by["rows"]] == [("a", 3)]
        _, logs = await call(house, "GET", "/spend/logs", api_key=new)
        assert len(logs) == 3


async def test_a_typo_is_told_from_a_key_that_is_not_known(tmp_path: Path) -> None:
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        key = (await made(house, "/key/generate"))["key"]
        typo = key[:-1] + ("a" if key[-1] != "a" else "b")
        for wrong, said in ((typo, "misspelt"), ("sk-never-given-out-at-all", "not known")):
            refused = await answered(house, wrong)
            assert (refused.status, code(refused)) == (401, "key_unknown")
            assert said in json.loads(refused.body)["error"]["message"]
            assert wrong.encode() not in refused.body


@pytest.mark.parametrize(
    "target",
    [
        "/anthropic/key/generate",
        "/anthropic//key/generate",
        "/anthropic/%2e%2e/key/generate",
        "/anthropic/../key/generate",
        "/v1/../key/generate",
        "/v1/%2e%2e/key/generate",
        "//key/generate",
        "/%6bey/generate",
        "/KEY/generate",
        "/key/generate/",
        "/key//generate",
        "/key/generate;x",
        "http://other.test/key/generate",
    ],
)
async def test_no_other_spelling_reaches_the_management_api(target: str, tmp_path: Path) -> None:
    """Not even with the master key: what leads below a prefix of the passthrough is the upstream's."""
    async with open_house(tmp_path, tproxy=WITH_MASTER) as house:
        status, page = await call(house, "POST", target, {"key_alias": "made"})
        assert status >= 400, page
        _, keys = await call(house, "GET", "/key/list")
        assert keys["total_count"] == 0
