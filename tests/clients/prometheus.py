"""For prometheus.sh: load through several keys, then every query of the dashboard and the rules.

python prometheus.py TPROXY PROMETHEUS DASHBOARD FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import trio

LOAD_SECONDS = 30


async def make(client: httpx2.AsyncClient, path: str, **fields: Any) -> Any:
    answer = await client.post(path, json=fields, headers={"authorization": f"Bearer {os.environ['MASTER']}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def load(client: httpx2.AsyncClient, key: str, number: int) -> None:
    """One request after the other: streams and whole answers, good ones and others."""
    turn = 0
    while True:
        turn += 1
        script = ["tokens=40; tps=40", "tokens=20", "tokens=10; ttft=0.3", "status=529"][turn % 4]
        headers = {"x-api-key": key if turn % 9 else "sk-of-nobody-at-all", "x-sandbox": script}
        headers |= {
            "x-tproxy-tags": f"prod-{number}",
            "x-tproxy-customer": f"customer-{turn % 5}",
            "user-agent": "load/1",
        }
        body = {
            "model": ["claude-opus-5-5", "claude-sonnet-4-5", "claude-haiku-4-5"][turn % 3],
            "max_tokens": 100,
            "stream": turn % 2 == 0,
            "messages": [{"role": "user", "content": f"Hello, {turn}"}],
        }
        with suppress(httpx2.TimeoutException):  # so some clients leave early
            await client.post("/v1/messages", json=body, headers=headers, timeout=0.5 if turn % 7 == 0 else 10)
        await trio.sleep(0.1)


async def ask(client: httpx2.AsyncClient, query: str) -> list[Any]:
    answer = (await client.get("/api/v1/query", params={"query": query})).json()
    if answer["status"] != "success":
        raise SystemExit(f"FAILED: {query}\n{answer['error']}")
    result: list[Any] = answer["data"]["result"]
    return result


async def main(tproxy: str, prometheus: str, dashboard: Path, folder: Path) -> None:
    async with httpx2.AsyncClient(base_url=tproxy) as proxy, httpx2.AsyncClient(base_url=prometheus) as client:
        await make(proxy, "/team/new", team_id="red", team_alias="Red", max_budget=5, budget_duration="1d")
        await make(proxy, "/user/new", user_id="u", max_budget=5, budget_duration="1d", auto_create_key=False)
        async with trio.open_nursery() as nursery:
            for number in range(6):
                key = await make(
                    proxy,
                    "/key/generate",
                    key_alias=f"key-{number}",
                    team_id="red",
                    user_id="u",
                    max_budget=1,
                    budget_duration="1d",
                    rpm_limit=1000,
                    tpm_limit=1_000_000,
                    metadata={"department": f"d{number % 2}"},
                )
                nursery.start_soon(load, proxy, key["key"], number)
            await trio.sleep(LOAD_SECONDS)
            await look(client, proxy, await trio.Path(dashboard).read_text(), folder)
            nursery.cancel_scope.cancel()


async def look(client: httpx2.AsyncClient, proxy: httpx2.AsyncClient, dashboard: str, folder: Path) -> None:
    [up] = await ask(client, "up")
    assert up["value"][1] == "1", up
    count = 0
    missing = []
    for panel in json.loads(dashboard)["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "15s").replace("$job", ".*")
            count += 1
            if not await ask(client, query):
                missing.append(f"{panel['title']}: {query}")
    if missing:
        raise SystemExit("FAILED: no data for\n" + "\n".join(missing))
    print(f"== all {count} queries of the dashboard have data")

    groups = (await client.get("/api/v1/rules")).json()["data"]["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert found
    for rule in found:
        assert rule["health"] == "ok", rule
        await ask(client, rule["query"])
    firing = [rule["name"] for rule in found if rule["state"] == "firing"]
    print(f"== all {len(found)} rules are well; firing: {', '.join(firing) or 'none'}")

    page = await proxy.get("/metrics", headers={"authorization": f"Bearer {os.environ['MASTER']}"})
    await trio.Path(folder, "metrics.txt").write_text(page.text)
    lines = sum(not line.startswith("#") for line in page.text.splitlines())
    print(f"== a page has {lines} samples, {len(page.text)} bytes")
    [series] = await ask(client, "scrape_duration_seconds")
    print(f"== a scrape took {float(series['value'][1]) * 1000:.0f} ms")


trio.run(main, sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
