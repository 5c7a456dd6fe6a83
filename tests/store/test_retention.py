from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from tests.store.laws import T0, make_closing, make_opening
from tests.store.test_sqlite_money import Book
from tproxy.errors import LedgerUnavailable
from tproxy.store import retention
from tproxy.store.base import FINISHED
from tproxy.store.reading import recent
from tproxy.store.retention import drop_oldest, one_round, run
from tproxy.store.sqlite import SqliteLedger
from tproxy.store.verify import verify

DAY = 86_400_000_000
MIDNIGHT = T0 // DAY * DAY  # 2025-11-24
T = TypeVar("T")


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "t.db")


async def _end(ledger: SqliteLedger, *days: int, first: int = 0) -> None:
    """One exchange after the other, numbered from `first`; each was accepted on such a day."""
    for number, day in enumerate(days, first):
        await ledger.open(make_opening(number, accepted_us=MIDNIGHT + day * DAY + number)).durable()
        ledger.close(make_closing(number, FINISHED, cost_nano=7))
    await ledger.write(lambda connection: None)


def _numbers(book: Book) -> list[int]:
    return sorted(int(row["id"][-12:], 16) for row in recent(book.path, 1000))


def _drop(before_day: int, taken: int | None = None, limit: int = 500) -> Callable[[sqlite3.Connection], int]:
    return lambda connection: drop_oldest(connection, MIDNIGHT + before_day * DAY, taken, limit)


@pytest.mark.parametrize(
    ("days", "before", "taken", "limit", "left", "since"),
    [
        pytest.param((0, 0, 1, 2), 0, None, 9, [0, 1, 2, 3], None, id="nothing is old"),
        pytest.param((0, 0, 1, 2), 1, None, 9, [2, 3], "2025-11-25", id="a day"),
        pytest.param((0, 0, 1, 2), 2, None, 9, [3], "2025-11-26", id="two days"),
        pytest.param((0, 0, 1, 2), 9, None, 9, [], "2025-11-27", id="all"),
        pytest.param((0, 0, 1, 2), 9, None, 2, [2, 3], "2025-11-25", id="as many as may be"),
        pytest.param((0, 0, 1, 2), 9, 3, 9, [3], "2025-11-26", id="what the sinks have"),
        pytest.param((0, 0, 1, 2), 9, 0, 9, [0, 1, 2, 3], None, id="the sinks have nothing"),
        pytest.param((0, 2, 0, 0), 1, None, 9, [1, 2, 3], "2025-11-25", id="what ended behind a newer one stays"),
        pytest.param((1, 0, 2), 2, None, 9, [2], "2025-11-26", id="the days are not in order"),
    ],
)
async def test_what_is_deleted(
    book: Book, days: tuple[int, ...], before: int, taken: int | None, limit: int, left: list[int], since: str | None
) -> None:
    async with book.open() as ledger:
        await ledger.open(make_opening(77, accepted_us=MIDNIGHT - 9 * DAY)).durable()  # runs, however old it is
        await _end(ledger, *days)
        sums = book.ask("SELECT * FROM daily"), book.ask("SELECT * FROM tally")
        assert await ledger.write(_drop(before, taken, limit)) == len(days) - len(left)
        assert _numbers(book) == [*left, 77]
        assert book.ask("SELECT since_day FROM retained") == ([(since,)] if since else [])
        assert (book.ask("SELECT * FROM daily"), book.ask("SELECT * FROM tally")) == sums
        # Of the entries whose rows went, the newest stays.
        first = len(days) - len(left) or 1
        assert book.ask("SELECT seq FROM settled ORDER BY seq") == [(n,) for n in range(first, len(days) + 1)]
        assert verify(book.path).faults == []


async def test_it_goes_on_where_it_was(book: Book) -> None:
    async with book.open() as ledger:
        await _end(ledger, 0, 0, 1, 1, 2)
        assert [await ledger.write(_drop(2, limit=1)) for _ in range(6)] == [1, 1, 1, 1, 0, 0]
        assert book.ask("SELECT since_day FROM retained") == [("2025-11-26",)]
        assert await ledger.write(_drop(9)) == 1
        await _end(ledger, 3, 4, first=5)
        assert book.ask("SELECT seq FROM settled ORDER BY seq") == [(5,), (6,), (7,)]
    async with book.open() as ledger:
        assert await ledger.write(_drop(4)) == 1
        assert book.ask("SELECT seq FROM settled ORDER BY seq") == [(6,), (7,)]
        assert book.ask("SELECT since_day FROM retained") == [("2025-11-28",)]
    assert verify(book.path).faults == []


async def test_the_day_since_which_all_is_here_never_goes_back(book: Book) -> None:
    async with book.open() as ledger:
        await _end(ledger, 5, 2)
        for left in ([1], []):
            assert await ledger.write(_drop(9, limit=1)) == 1
            assert _numbers(book) == left
            assert book.ask("SELECT since_day FROM retained") == [("2025-11-30",)]
    assert verify(book.path).faults == []


async def test_a_row_that_is_missing_stops_it(book: Book) -> None:
    """So that nothing hides that somebody else deleted it."""
    async with book.open() as ledger:
        await _end(ledger, 0, 0, 0)
        await ledger.write(lambda c: c.execute("DELETE FROM exchange WHERE id = ?", (make_opening(0).id,)).rowcount)
        assert await ledger.write(_drop(9)) == 0
        assert book.ask("SELECT seq FROM settled ORDER BY seq") == [(1,), (2,), (3,)]


async def test_a_round_is_of_whole_days(book: Book) -> None:
    async with book.open() as ledger:
        await _end(ledger, 0, 1, 2)
        now = MIDNIGHT + 3 * DAY - 1

        async def keep(days: int | None) -> int:
            return await one_round(ledger, lambda: days, now_us=lambda: now)

        assert [await keep(None), await keep(2), await keep(3)] == [0, 0, 0]
        now += 1
        assert [await keep(3), await keep(2), await keep(2)] == [0, 1, 0]
        assert _numbers(book) == [1, 2]


async def test_a_round_has_many_slices_and_an_end(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE", 2)
    monkeypatch.setattr(retention, "ROUND", 4)
    async with book.open() as ledger:
        await _end(ledger, *[0] * 7)

        async def go() -> int:
            return await one_round(ledger, lambda: 1, now_us=lambda: MIDNIGHT + 9 * DAY)

        assert [await go(), await go(), await go()] == [4, 3, 0]
    assert verify(book.path).faults == []


class _Full:
    """A ledger of which two slices and some are old."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        await trio.lowlevel.checkpoint()
        self.asked.append(trio.current_time())
        return retention.SLICE if len(self.asked) < 3 else 7  # type: ignore[return-value]


async def test_there_is_a_pause_between_two_slices(autojump_clock: trio.testing.MockClock) -> None:
    ledger = _Full()
    assert await one_round(ledger, lambda: 1, now_us=lambda: MIDNIGHT) == 2 * retention.SLICE + 7
    assert ledger.asked == pytest.approx([0, retention.PAUSE_SECONDS, 2 * retention.PAUSE_SECONDS])
    assert retention.PAUSE_SECONDS > 0


class _Fails:
    """A ledger that cannot be written the first time."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        await trio.lowlevel.checkpoint()
        self.asked.append(trio.current_time())
        if len(self.asked) == 1:
            raise LedgerUnavailable("not now")
        return 0  # type: ignore[return-value]


async def test_it_looks_every_hour_and_goes_on_after_a_fault(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    ledger, kept = _Fails(), iter([5, 5, None, 5])
    with trio.move_on_after(3 * 3600 + 1):
        await run(ledger, lambda: next(kept), lambda: 3, now_us=lambda: MIDNIGHT)
    assert ledger.asked == pytest.approx([0, 3600, 3 * 3600])
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "old rows could not be deleted, which is tried again in an hour: not now"
    ]


async def test_while_sinks_have_not_begun_it_looks_again_soon(autojump_clock: trio.testing.MockClock) -> None:
    ledger, taken = _Fails(), iter([0, 0, 0, 0, 7, 7, 7, 7])
    with trio.move_on_after(3600):
        await run(ledger, lambda: 5, lambda: next(taken), now_us=lambda: MIDNIGHT)
    assert ledger.asked == pytest.approx([0, 10, 20])


async def test_the_position_of_the_sinks_is_asked_for_each_slice(book: Book) -> None:
    async with book.open() as ledger:
        await _end(ledger, 0, 0, 0)
        assert await one_round(ledger, lambda: 0, lambda: 2, now_us=lambda: MIDNIGHT + DAY) == 2
        assert await one_round(ledger, lambda: 0, retention.no_sinks, now_us=lambda: MIDNIGHT + DAY) == 1
