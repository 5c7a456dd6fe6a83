from __future__ import annotations

import json

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from tests.export.stock import settled
from tproxy.export.record import encoded
from tproxy.store.base import Closing, Opening
from tproxy.store.feed import Settled


async def test_every_column_is_there_and_what_is_added() -> None:
    (line,) = await encoded([settled(7, cost_nano=13_408_001)])
    found = json.loads(line)
    assert found.keys() == {
        *Opening.__struct_fields__,
        *Closing.__struct_fields__,
        *("version", "seq", "cost_usd", "sandbox"),
    }
    assert (found["version"], found["seq"], found["cost_usd"], found["sandbox"]) == (1, 7, "0.013408001", False)
    one = settled(7, cost_nano=13_408_001)
    for name in (*Opening.__struct_fields__, *Closing.__struct_fields__):
        there = getattr(one.closing, name) if name in Closing.__struct_fields__ else getattr(one.opening, name)
        assert found[name] == (list(there) if isinstance(there, tuple) else there), name
    assert found["tags"] == ["a", "ü,\n\"'", "b"]
    assert b"\n" not in line


@pytest.mark.parametrize(("cost", "text"), [(None, None), (0, "0.0"), (1, "0.000000001"), (10**18, "1000000000.0")])
async def test_cost_is_exact_text(cost: int | None, text: str | None) -> None:
    (line,) = await encoded([settled(1, cost_nano=cost)])
    assert json.loads(line)["cost_usd"] == text


async def test_the_sandbox_is_told() -> None:
    one = settled(1)
    (line,) = await encoded([Settled(1, replace(one.opening, upstream="sandbox"), one.closing)])
    assert json.loads(line)["sandbox"] is True


async def test_others_run_in_between() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert len(await encoded([settled(number) for number in range(500)])) == 500
        nursery.cancel_scope.cancel()
    assert turns >= 18
