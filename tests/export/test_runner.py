"""One sink at work, in a source and a time of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog.testing
import trio

from tests.export.stock import DOWN, Scripted, Shelf
from tproxy.errors import LedgerUnavailable
from tproxy.export.runner import BACK_OFF_MAX, LAST_SECONDS, Runner
from tproxy.export.sink import SEND_SECONDS, NotTaken
from tproxy.store.migrate import LedgerUnusable

Clock = Any


@asynccontextmanager
async def running(
    sink: Scripted, shelf: Shelf, seq: int = 0, *, chance: Callable[[], float] = lambda: 1.0
) -> AsyncIterator[Runner]:
    runner = Runner(sink, shelf, seq, kept=True, last_us=None, chance=chance)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run)
        yield runner
        nursery.cancel_scope.cancel()


async def test_it_sends_what_is_there_and_what_comes_in_order_and_in_batches(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(batch=10), Shelf(25)
    async with running(sink, shelf, 3) as runner:
        await trio.sleep(1)
        assert [numbers for _, numbers in sink.tries] == [list(range(4, 14)), list(range(14, 24)), [24, 25]]
        assert shelf.kept == [13, 23, 25]
        shelf.add(2)
        await trio.sleep(1)
        assert sink.taken == list(range(4, 28))
        assert (runner.status.behind, runner.status.fault, runner.kept) == (0, None, 27)
    assert sink.closed == 1


async def test_a_new_cursor_is_kept_before_anything_is_sent(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(), Shelf(5)
    runner = Runner(sink, shelf, 5, kept=False, last_us=None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run)
        await trio.sleep(1)
        assert (shelf.kept, sink.tries, runner.kept) == ([5], [], 5)
        nursery.cancel_scope.cancel()


async def test_the_back_off_doubles_up_to_its_bound_and_begins_anew(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(), Shelf(1)
    sink.faults = [DOWN] * 9
    async with running(sink, shelf) as runner:
        await trio.sleep(400)
        waits = [later - earlier for earlier, later in zip(sink.times, sink.times[1:], strict=False)]
        assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60], abs=1e-3)
        assert (sink.taken, runner.failures, runner.fault) == ([1], 9, None)
        sink.faults = [DOWN]
        shelf.add(1)
        await trio.sleep(5)
        assert sink.times[-1] - sink.times[-2] == pytest.approx(1, abs=1e-3)
        assert sink.taken == [1, 2]


async def test_the_back_off_has_a_share_of_chance(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(), Shelf(1)
    sink.faults = [DOWN] * 2
    async with running(sink, shelf, chance=lambda: 0.5):
        await trio.sleep(100)
    waits = [later - earlier for earlier, later in zip(sink.times, sink.times[1:], strict=False)]
    assert waits == pytest.approx([0.75, 1.5], abs=1e-3)


@pytest.mark.parametrize(
    ("fault", "wait"),
    [
        pytest.param(NotTaken("it answered 429", retry_after=17), 17, id="the receiver says when"),
        pytest.param(NotTaken("it answered 503", retry_after=0), 1, id="it says at once"),
        pytest.param(NotTaken("it answered 503", retry_after=0.25), 1, id="it says too soon"),
        pytest.param(NotTaken("it answered 401", final=True), BACK_OFF_MAX, id="refused for good"),
        pytest.param(NotTaken("it answered 413", final=True, too_large=True), BACK_OFF_MAX, id="too large alone"),
        pytest.param(ZeroDivisionError("a bug"), 1, id="a fault of the sink's own"),
    ],
)
async def test_when_it_tries_again(fault: Exception, wait: float, autojump_clock: Clock) -> None:
    sink, shelf = Scripted(), Shelf(1)
    sink.faults = [fault]
    async with running(sink, shelf):
        await trio.sleep(100)
    assert sink.times[1] - sink.times[0] == pytest.approx(wait, abs=1e-3)
    assert sink.taken == [1]


async def test_a_sink_that_cannot_be_opened_is_opened_again_before_it_is_given_anything(autojump_clock: Clock) -> None:
    class Stuck(Scripted):
        async def open(self) -> None:
            await super().open()
            assert not self.tries
            if self.opened < 3:
                raise NotTaken("not now")

    sink, shelf = Stuck(), Shelf(2)
    async with running(sink, shelf):
        await trio.sleep(100)
    assert (sink.opened, sink.taken) == (3, [1, 2])


async def test_what_is_too_large_is_tried_in_smaller_batches_at_once(autojump_clock: Clock) -> None:
    class Narrow(Scripted):
        async def send(self, settled: Any) -> None:
            self.down = NotTaken("it answered 413", final=True, too_large=True) if len(settled) > 30 else None
            await super().send(settled)

    sink, shelf = Narrow(batch=100), Shelf(100)
    async with running(sink, shelf):
        await trio.sleep(0.5)
        assert sink.taken == list(range(1, 101))
    assert max(len(numbers) for _, numbers in sink.tries[1:]) <= 50


async def test_two_that_are_too_large_go_one_by_one_at_once(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(batch=10), Shelf(2)
    sink.faults = [NotTaken("it answered 413", final=True, too_large=True)]
    async with running(sink, shelf):
        await trio.sleep(0.5)
        assert [numbers for _, numbers in sink.tries] == [[1, 2], [1], [2]]
        shelf.add(10)
        await trio.sleep(0.5)
        # And more again, as they are taken.
        assert [numbers for _, numbers in sink.tries[3:]] == [[3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]


async def test_what_was_not_taken_is_not_gathered_again(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(batch=10, linger=300), Shelf(1)
    sink.faults = [DOWN] * 2
    async with running(sink, shelf):
        await trio.sleep(310)
        assert sink.times == pytest.approx([sink.times[0], sink.times[0] + 1, sink.times[0] + 3], abs=1e-3)
        assert sink.taken == [1]


async def test_a_sink_that_hangs_is_given_up_and_tried_again(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(), Shelf(3)
    sink.hangs = True
    async with running(sink, shelf) as runner:
        await trio.sleep(SEND_SECONDS + 0.5)
        assert runner.fault == "it took more than 60 s"
        sink.hangs = False
        await trio.sleep(1)
        assert sink.taken == [1, 2, 3]
    assert sink.times[1] - sink.times[0] == pytest.approx(SEND_SECONDS + 1, abs=1e-3)


async def test_while_a_sink_is_down_one_batch_is_held_and_given_again_as_it_was(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(batch=10), Shelf(10)
    sink.down = DOWN
    async with running(sink, shelf) as runner:
        for _ in range(24):
            await trio.sleep(3600)
            shelf.add(100)
        assert shelf.reads == [(0, 10)]
        assert {tuple(numbers) for _, numbers in sink.tries} == {tuple(range(1, 11))}
        assert runner.status.behind == shelf.newest == 2410
        assert shelf.kept == []
        sink.down = None
        await trio.sleep(BACK_OFF_MAX)
        assert sink.taken == list(range(1, 2411))


async def test_it_says_once_that_it_is_down_and_once_that_it_is_back(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(), Shelf(1)
    sink.faults = [DOWN] * 5
    with structlog.testing.capture_logs() as lines:
        async with running(sink, shelf):
            await trio.sleep(100)
    assert [(line["event"], line.get("why"), line.get("failed")) for line in lines] == [
        ("an export does not take exchanges", "it answered 503", None),
        ("an export takes exchanges again", None, 5),
    ]


async def test_it_gathers_as_long_as_the_sink_likes_or_until_a_batch_is_full(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(batch=10, linger=300), Shelf()
    async with running(sink, shelf):
        await trio.sleep(50)
        for _ in range(5):
            shelf.add(1)
            await trio.sleep(10)
        assert sink.tries == []
        await trio.sleep(251)
        assert sink.taken == [1, 2, 3, 4, 5]
        shelf.add(9)
        await trio.sleep(1)
        assert len(sink.tries) == 1
        shelf.add(1)
        await trio.sleep(1)
        assert [numbers for _, numbers in sink.tries[1:]] == [list(range(6, 16))]


async def test_at_the_end_it_sends_what_is_there(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(batch=10, linger=300), Shelf(25)
    async with running(sink, shelf, 20):
        await trio.sleep(1)
        assert sink.taken == []
    assert (sink.taken, shelf.kept, sink.closed) == ([21, 22, 23, 24, 25], [25], 1)


async def test_at_the_end_a_batch_in_flight_is_given_once_more(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(), Shelf(2)
    sink.hangs = True
    async with running(sink, shelf):
        await trio.sleep(1)
        shelf.add(1)
        sink.hangs = False
    assert [numbers for _, numbers in sink.tries] == [[1, 2], [1, 2], [3]]
    assert sink.taken == [1, 2, 3]


@pytest.mark.parametrize("hangs", [True, False], ids=["it hangs", "it is down"])
async def test_the_end_is_not_held_up(hangs: bool, autojump_clock: Clock) -> None:
    sink, shelf = Scripted(), Shelf(2)
    sink.hangs, sink.down = hangs, DOWN
    async with running(sink, shelf):
        await trio.sleep(0.5)
        ends = trio.current_time()
    assert trio.current_time() - ends == pytest.approx(LAST_SECONDS if hangs else 0, abs=1e-3)
    assert (sink.closed, shelf.kept) == (1, [])


async def test_one_that_is_stopped_sends_nothing_more(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(linger=300), Shelf(2)
    async with running(sink, shelf) as runner:
        await trio.sleep(1)
        with trio.fail_after(5):
            await runner.stop()
        assert (sink.tries, sink.closed) == ([], 1)


async def test_a_ledger_that_cannot_be_written_repeats_nothing(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(), Shelf(2)
    shelf.out = True
    async with running(sink, shelf) as runner:
        await trio.sleep(5)
        assert (sink.taken, runner.seq, runner.kept) == ([1, 2], 2, 0)
        shelf.out = False
        shelf.add(1)
        await trio.sleep(5)
        assert (sink.taken, shelf.kept) == ([1, 2, 3], [3])


class Unreadable(Shelf):
    """Where it is out, nothing can be read of it either, nor is it known what there is."""

    async def after(self, seq: int, limit: int) -> Any:
        if self.out:
            self.reads.append((seq, limit))
            raise LedgerUnusable("secret")
        return await super().after(seq, limit)

    async def look(self) -> None:
        await super().look()
        if self.out:
            raise LedgerUnavailable("out")


async def test_a_ledger_that_cannot_be_read_is_waited_for(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(), Unreadable(2)
    shelf.out = True
    async with running(sink, shelf) as runner:
        await trio.sleep(2)
        assert (len(shelf.reads), runner.failures, runner.fault) == (2, 2, "the ledger cannot be read")
        shelf.out = False
        await trio.sleep(2)
        assert (sink.taken, runner.fault, shelf.kept) == ([1, 2], None, [2])


async def test_the_end_is_not_held_up_by_a_ledger_that_is_out(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(linger=300), Unreadable(2)
    async with running(sink, shelf):
        await trio.sleep(1)
        shelf.out = True
        ends = trio.current_time()
    assert trio.current_time() == ends
    assert (sink.tries, sink.closed) == ([], 1)


class Gone(Shelf):
    """Has numbers, but no rows."""

    async def after(self, seq: int, limit: int) -> list[Any]:
        await super().after(seq, limit)
        return []


async def test_where_retention_was_faster_it_goes_on(autojump_clock: Clock) -> None:
    sink, shelf = Scripted(), Gone(9)
    async with running(sink, shelf) as runner:
        await trio.sleep(1)
        assert (runner.status.behind, sink.tries, len(shelf.reads)) == (0, [], 1)
