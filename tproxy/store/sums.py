"""The sums of closed rows, by subject (`tally`) and by day, subject, caller and model (`daily`).

They are gathered over a batch of closes and added to the tables at its end: most exchanges of a batch have their
proxy, team and day in common. A sum that would pass what a column can hold stays there.

Anybody who may ask can make up names of tags and customers. So these have sums only of exchanges that came to something
(tokens or a cost), and a customer only if there is a subject of that name (`customers`).

`migrations/0002_money.sql` makes the same sums of the rows that were there before it.
"""

from __future__ import annotations

import sqlite3
from datetime import date
from functools import lru_cache
from typing import Final

from tproxy.store.base import EXACT, FINISHED, UNPRICED, Closing, Opening
from tproxy.store.money import FIGURE_MAX
from tproxy.store.subjects import CUSTOMER

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
_DAILY: Final = (
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
_DAY_US: Final = 86_400_000_000


def _added(columns: tuple[str, ...]) -> str:
    return ", ".join(f"{name} = min({name} + excluded.{name}, {FIGURE_MAX})" for name in columns)


# Only the names above are put into the text of a statement.
_INTO_TALLY: Final = (
    f"INSERT INTO tally (kind, id, last_us, {', '.join(_TALLIED)}) VALUES (?, ?, ?{', ?' * len(_TALLIED)}) "  # noqa: S608
    f"ON CONFLICT (kind, id) DO UPDATE SET last_us = max(last_us, excluded.last_us), {_added(_TALLIED)}"
)
_INTO_DAILY: Final = (
    f"INSERT INTO daily (kind, day, id, caller, model, {', '.join(_DAILY)}) "  # noqa: S608
    f"VALUES (?, ?, ?, ?, ?{', ?' * len(_DAILY)}) "
    f"ON CONFLICT (kind, day, id, caller, model) DO UPDATE SET {_added(_DAILY)}"
)


class Sums:
    """What the rows that one batch closes come to."""

    def __init__(self) -> None:
        self._tally: dict[tuple[str, str], tuple[int, list[int]]] = {}
        self._daily: dict[tuple[str, str, str, str, str], list[int]] = {}

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
        tallied = (1, fresh + read + written, output, cost, *expected)
        daily = (1, int(failed), fresh, output, read, written, cost, int(closing.certainty == UNPRICED))

        ids = [("caller", opening.caller)]
        if opening.team is not None:
            ids.append(("team", opening.team))
        if opening.user is not None:
            ids.append(("user", opening.user))
        if fresh or output or read or written or cost:
            if opening.customer is not None:
                ids.append((CUSTOMER, opening.customer))
            ids.extend(("tag", tag) for tag in opening.tags)

        model = closing.model_served
        if model is None:
            model = opening.model_asked or ""
        day = _day(opening.accepted_us // _DAY_US)
        ended_us = opening.accepted_us if closing.ended_us is None else closing.ended_us
        for kind, id in ids:
            self._add_tally(kind, id, ended_us, tallied)
            self._add_daily((kind, day, id, opening.caller, model), daily)
        self._add_tally("proxy", "", ended_us, tallied)
        self._add_daily(("proxy", day, "", "", model), daily)  # what all callers come to is not summed anew each time

    def _add_daily(self, key: tuple[str, str, str, str, str], figures: tuple[int, ...]) -> None:
        there = self._daily.setdefault(key, [0] * len(_DAILY))
        for place, figure in enumerate(figures):
            there[place] += figure

    def _add_tally(self, kind: str, id: str, ended_us: int, figures: tuple[int, ...]) -> None:
        last_us, there = self._tally.get((kind, id)) or (0, [0] * len(_TALLIED))
        for place, figure in enumerate(figures):
            there[place] += figure
        self._tally[kind, id] = max(last_us, ended_us), there

    def flush(self, connection: sqlite3.Connection) -> None:
        """Add what was gathered to the tables, and begin anew."""
        tally, self._tally = self._tally, {}
        daily, self._daily = self._daily, {}
        unknown = {id for kind, id in tally if kind == CUSTOMER and not _known(connection, id)}
        connection.executemany(
            _INTO_TALLY,
            [
                (kind, id, last_us, *map(_held, there))
                for (kind, id), (last_us, there) in tally.items()
                if not (kind == CUSTOMER and id in unknown)
            ],
        )
        connection.executemany(
            _INTO_DAILY,
            [
                (*key, *map(_held, there))
                for key, there in daily.items()
                if not (key[0] == CUSTOMER and key[2] in unknown)
            ],
        )


def _known(connection: sqlite3.Connection, customer: str) -> bool:
    found = connection.execute("SELECT 1 FROM subject WHERE kind = ? AND id = ?", (CUSTOMER, customer))
    return found.fetchone() is not None


def _held(figure: int) -> int:
    return min(figure, FIGURE_MAX)


@lru_cache(maxsize=64)
def _day(number: int) -> str:
    """The date of a day counted from the epoch; one that no calendar has is the nearest that it has."""
    return date.fromordinal(min(max(_EPOCH_DAY + number, 1), date.max.toordinal())).isoformat()
