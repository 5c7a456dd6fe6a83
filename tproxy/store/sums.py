"""The sums of closed rows, by subject (`tally`) and by day, subject, caller and model (`daily`).

They are gathered over a batch of closes and added to the tables at its end: most exchanges of a batch have their
proxy, team and day in common. A sum that would pass what a column can hold stays there.

Anybody who may ask can make up names of tags and customers. So these have sums only of exchanges that came to something
(tokens or a cost), and a customer only if there is a subject of that name (`customers`).

`migrations/0002_money.sql` makes the same sums of the rows that were there before it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import date
from functools import lru_cache
from operator import add
from typing import Final, NamedTuple, TypeVar

from tproxy.store.base import EXACT, FINISHED, UNPRICED, Closing, Opening
from tproxy.store.money import FIGURE_MAX
from tproxy.store.subjects import CUSTOMER

K = TypeVar("K")

_PROXY: Final = ("proxy", "")
_TALLIED: Final = (
    "exchanges",
    "prompt_tokens",
    "completion_tokens",
    "cost_nano",
    "expected_exchanges",
    "expected_nano",
    "expected_cost_nano",
    "expected_error_nano",
)
DAILY: Final = (
    "exchanges",
    "failures",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cost_nano",
    "unpriced",
)
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
DAY_US: Final = 86_400_000_000


def _added(columns: tuple[str, ...]) -> str:
    return ", ".join(f"{name} = min({name} + excluded.{name}, {FIGURE_MAX})" for name in columns)


# Only the names above are put into the text of a statement.
_INTO_TALLY: Final = (
    f"INSERT INTO tally (kind, id, last_us, {', '.join(_TALLIED)}) VALUES (?, ?, ?{', ?' * len(_TALLIED)}) "  # noqa: S608
    f"ON CONFLICT (kind, id) DO UPDATE SET last_us = max(last_us, excluded.last_us), {_added(_TALLIED)}"
)
_INTO_DAILY: Final = (
    f"INSERT INTO daily (kind, day, id, caller, model, {', '.join(DAILY)}) "  # noqa: S608
    f"VALUES (?, ?, ?, ?, ?{', ?' * len(DAILY)}) "
    f"ON CONFLICT (kind, day, id, caller, model) DO UPDATE SET {_added(DAILY)}"
)


class _Alike(NamedTuple):
    """What the exchanges have in common that are summed by the same; no customer and no tags of those that came to
    nothing."""

    day: str
    model: str
    caller: str
    team: str | None
    user: str | None
    customer: str | None
    tags: tuple[str, ...]

    def ids(self) -> Iterator[tuple[str, str]]:
        """The kind and id of all that they are summed by."""
        yield "caller", self.caller
        if self.team is not None:
            yield "team", self.team
        if self.user is not None:
            yield "user", self.user
        if self.customer is not None:
            yield CUSTOMER, self.customer
        for tag in self.tags:
            yield "tag", tag


class Sums:
    """What the rows that one batch closes come to.

    Args:
        known: whether a customer is one that has sums; asked when they are flushed.
    """

    def __init__(self, known: Callable[[sqlite3.Connection, str], bool] | None = None) -> None:
        self._known = _known if known is None else known
        self._figures: dict[_Alike, tuple[int, ...]] = {}
        self._last_us: dict[_Alike, int] = {}

    def add(self, opening: Opening, closing: Closing) -> None:
        """Count a row that has just been closed, so once."""
        fresh = closing.input_tokens or 0
        output = closing.output_tokens or 0
        read = closing.cache_read_tokens or 0
        written = (closing.cache_write_5m_tokens or 0) + (closing.cache_write_1h_tokens or 0)
        cost = closing.cost_nano or 0
        expected = (0, 0, 0, 0)
        if opening.expected_nano is not None and closing.cost_nano is not None and closing.certainty == EXACT:
            expected = (1, opening.expected_nano, cost, abs(opening.expected_nano - cost))
        failed = closing.ended != FINISHED or (closing.status or 0) >= 400
        billed = fresh or output or read or written or cost
        model = closing.model_served
        if model is None:
            model = opening.model_asked or ""
        alike = _Alike(
            day=day_of(opening.accepted_us // DAY_US),
            model=model,
            caller=opening.caller,
            team=opening.team,
            user=opening.user,
            customer=opening.customer if billed else None,
            tags=opening.tags if billed else (),
        )
        ended_us = opening.accepted_us if closing.ended_us is None else closing.ended_us
        unpriced = int(closing.certainty == UNPRICED)
        tallied = (1, fresh + read + written, output, cost, *expected)
        _add(self._figures, alike, (*tallied, 1, int(failed), fresh, output, read, written, cost, unpriced))
        self._last_us[alike] = max(self._last_us.get(alike, 0), ended_us)

    def flush(self, connection: sqlite3.Connection) -> None:
        """Add what was gathered to the tables, and begin anew."""
        tally: dict[tuple[str, str], tuple[int, ...]] = {}
        last_us: dict[tuple[str, str], int] = {}
        daily: dict[tuple[str, str, str, str, str], tuple[int, ...]] = {}
        for alike, figures in self._figures.items():
            tallied, by_day = figures[: len(_TALLIED)], figures[len(_TALLIED) :]
            for kind, id in alike.ids():
                if kind == CUSTOMER and not self._known(connection, id):
                    continue
                _add(tally, (kind, id), tallied)
                last_us[kind, id] = max(last_us.get((kind, id), 0), self._last_us[alike])
                _add(daily, (kind, alike.day, id, alike.caller, alike.model), by_day)
            _add(tally, _PROXY, tallied)
            last_us[_PROXY] = max(last_us.get(_PROXY, 0), self._last_us[alike])
            # What all callers come to is not summed anew each time.
            _add(daily, ("proxy", alike.day, "", "", alike.model), by_day)
        self._figures, self._last_us = {}, {}
        connection.executemany(_INTO_TALLY, [(*key, last_us[key], *map(_held, there)) for key, there in tally.items()])
        connection.executemany(_INTO_DAILY, [(*key, *map(_held, there)) for key, there in daily.items()])


def _add(sums: dict[K, tuple[int, ...]], key: K, figures: tuple[int, ...]) -> None:
    there = sums.get(key)
    sums[key] = figures if there is None else tuple(map(add, there, figures))


def _known(connection: sqlite3.Connection, customer: str) -> bool:
    found = connection.execute("SELECT 1 FROM subject WHERE kind = ? AND id = ?", (CUSTOMER, customer))
    return found.fetchone() is not None


def _held(figure: int) -> int:
    return min(figure, FIGURE_MAX)


@lru_cache(maxsize=64)
def day_of(number: int) -> str:
    """The date of a day counted from the epoch; one that no calendar has is the nearest that it has."""
    return date.fromordinal(min(max(_EPOCH_DAY + number, 1), date.max.toordinal())).isoformat()
