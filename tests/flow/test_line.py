from __future__ import annotations

import trio
import trio.testing

from tproxy.flow.line import Line

RED, BLUE = ("key", "red"), ("key", "blue")


async def test_the_first_comes_first_and_lines_are_apart() -> None:
    line = Line()
    with line.place(RED) as first, line.place(RED) as second, line.place(BLUE) as other:
        assert first.is_set()
        assert other.is_set()
        assert not second.is_set()
        assert len(line) == 3
    assert len(line) == 0


async def test_who_leaves_lets_the_next_one_step_up() -> None:
    line, order = Line(), []

    async def wait(name: str, leaves: trio.Event) -> None:
        with line.place(RED) as first:
            await first.wait()
            order.append(name)
            await leaves.wait()

    async with trio.open_nursery() as nursery:
        leave = [trio.Event() for _ in range(3)]
        for n in range(3):
            nursery.start_soon(wait, str(n), leave[n])
            await trio.testing.wait_all_tasks_blocked()
        assert order == ["0"]
        leave[0].set()
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["0", "1"]
        leave[1].set()
        leave[2].set()
    assert order == ["0", "1", "2"]
    assert len(line) == 0


async def test_who_gives_up_in_the_middle_wakes_nobody() -> None:
    line = Line()
    with line.place(RED):
        with line.place(RED) as second:
            with line.place(RED) as third:
                pass
            assert not third.is_set()
            assert not second.is_set()
        assert len(line) == 1
