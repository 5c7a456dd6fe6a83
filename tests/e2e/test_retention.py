"""A whole house deletes what is old, and its ledger can be proved while it runs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import trio

from tests.e2e.house import House, open_house
from tests.e2e.raw import ask, post
from tests.store.laws import make_closing, make_opening
from tproxy.store.reading import recent
from tproxy.store.sqlite import open_ledger
from tproxy.store.verify import verify

DAY = 86_400_000_000
BODY = json.dumps(
    {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
).encode()


async def _left(house: House, count: int) -> None:
    """Return when so many rows are left."""
    with trio.fail_after(10):
        while len(await trio.to_thread.run_sync(recent, house.database, 100)) != count:
            await trio.sleep(0.01)


@pytest.mark.parametrize(("setting", "left"), [("retention_days = 30", 2), ("", 4)], ids=["30 days", "for ever"])
async def test_old_rows_go_and_the_rest_agrees(tmp_path: Path, setting: str, left: int) -> None:
    now_us = time.time_ns() // 1000
    async with open_ledger(tmp_path / "books.db") as ledger:
        for number, days in enumerate((40, 32, 1)):
            await ledger.open(make_opening(number, accepted_us=now_us - days * DAY)).durable()
            ledger.close(make_closing(number, ended_us=now_us, cost_nano=5))
            await ledger.write(lambda connection: None)
    async with open_house(tmp_path, tproxy=f'access = "open"\n{setting}') as house:
        answer = await ask(house.address, post("/v1/messages", BODY))
        assert answer.status == 200
        await _left(house, left)
        await house.rows(left)
        assert (await trio.to_thread.run_sync(verify, house.database)).faults == []
    verdict = verify(house.database)
    assert (verdict.faults, verdict.ended) == ([], left)
