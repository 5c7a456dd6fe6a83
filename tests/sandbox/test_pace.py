from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tproxy.sandbox.pace import Pacer


async def test_turns_come_when_they_are_due(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pacer = Pacer()
    nursery.start_soon(pacer.run)
    seen: dict[str, list[float]] = {"a": [], "b": []}

    def step(name: str, turns: int) -> bool:
        seen[name].append(trio.current_time())
        return len(seen[name]) < turns

    async with trio.open_nursery() as streams:
        streams.start_soon(pacer.turns, 1.0, 0.5, lambda: step("a", 4))
        streams.start_soon(pacer.turns, 0.25, 1.0, lambda: step("b", 2))
    assert seen == {"a": pytest.approx([1, 1.5, 2, 2.5]), "b": pytest.approx([0.25, 1.25])}


async def test_a_schedule_does_not_wait(nursery: trio.Nursery) -> None:
    """Turns that are overdue are taken at once, each of them."""
    pacer = Pacer()
    nursery.start_soon(pacer.run)
    turns = iter(range(1000))
    with trio.fail_after(5):
        await pacer.turns(trio.current_time() - 60, 0.01, lambda: next(turns) < 999)
    assert next(turns, None) is None


async def test_a_stream_that_is_cancelled_has_no_more_turns(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pacer = Pacer()
    nursery.start_soon(pacer.run)
    seen: list[float] = []

    def step() -> bool:
        seen.append(trio.current_time())
        return True

    with trio.move_on_after(2.5):
        await pacer.turns(trio.current_time() + 1, 1.0, step)
    await trio.sleep(10)
    assert len(seen) == 2


async def test_a_broken_stream_ends_alone(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pacer = Pacer()
    nursery.start_soon(pacer.run)

    def broken() -> bool:
        raise trio.BrokenResourceError

    with pytest.raises(trio.BrokenResourceError):
        await pacer.turns(0, 1, broken)
    await pacer.turns(0, 1, lambda: False)


async def test_an_earlier_turn_that_is_added_comes_first(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pacer = Pacer()
    nursery.start_soon(pacer.run)
    seen: list[str] = []

    async def stream(name: str, first: float) -> None:
        def step() -> bool:
            seen.append(name)
            return False

        await pacer.turns(first, 1, step)

    async with trio.open_nursery() as streams:
        streams.start_soon(stream, "late", 100.0)
        await trio.sleep(1)
        streams.start_soon(stream, "early", 5.0)
    assert seen == ["early", "late"]
