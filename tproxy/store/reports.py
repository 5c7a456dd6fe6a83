"""What was spent, by whom and on what: questions to the ledger's rows and to the sums that are kept of them.

Functions over a connection that only reads, but for `set_back`. They speak of exchanges that have ended; one that runs
has no figures yet.

Every answer is bounded. Sums without days come from `tally`, sums by day from `daily`: what they cost grows with the
days that are asked for, not with the exchanges of a day. Only sessions are summed from exchanges, of which at most
`LOOKED_AT_MAX` are looked at.

Days are those of UTC, as in `daily`. Figures are what exchanges cost, also where a budget's use was set back since.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Final

LOOKED_AT_MAX: Final = 100_000

# What rows are summed by: the kind of the sum in `daily` and `tally`, or, for `MODEL` and `SESSION`, the column.
CALLER: Final = "caller"
TEAM: Final = "team"
USER: Final = "user"
CUSTOMER: Final = "customer"
TAG: Final = "tag"
MODEL: Final = "model"
SESSION: Final = "session"
PROXY: Final = "proxy"

_LATEST_US: Final = (1 << 63) - 1
_LAST_DAY: Final = "9999-12-31"

_PROMPT: Final = " + ".join(
    f"coalesce({name}, 0)"
    for name in ("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
)
_DAILY_SUMS: Final = (
    "sum(exchanges) AS exchanges, sum(failures) AS failures, "
    "sum(input_tokens + cache_read_tokens + cache_write_tokens) AS prompt, sum(output_tokens) AS completion, "
    "sum(cost_nano) AS cost, sum(unpriced) AS unpriced"
)
_SUMS_OF_SUMS: Final = "sum(exchanges), sum(failures), sum(prompt), sum(completion), sum(cost), sum(unpriced)"
_SPAN: Final = "kind = :kind AND day >= :since AND day <= :until"

# The days that there are, one look into the index each.
_DAYS: Final = """
WITH RECURSIVE next(day) AS (
    SELECT min(day) FROM daily WHERE kind = :kind AND day >= :since
    UNION ALL
    SELECT (SELECT min(day) FROM daily WHERE kind = :kind AND day > next.day) FROM next WHERE next.day < :until
)
SELECT day FROM next WHERE day <= :until
"""

# The kind of `daily` that has every exchange once, in one row for each day and model.
_EVERY: Final = PROXY


@dataclass(frozen=True, slots=True)
class Sum:
    """What the exchanges of one `id` came to; a figure that is None was not counted.

    Of the `exchanges`, `failures` did not end as they should, and `unpriced` have tokens whose price is not known and
    is not in `cost_nano`. `prompt_tokens` are the input, the cached part included.
    """

    id: str
    exchanges: int
    failures: int | None
    prompt_tokens: int
    completion_tokens: int
    cost_nano: int
    unpriced: int | None


@dataclass(frozen=True, slots=True)
class DaySum:
    """One row of `daily`, or the sum of several: what `id` came to on one day, with one model, for one caller."""

    day: str
    id: str
    caller: str
    model: str
    exchanges: int
    failures: int
    prompt_tokens: int
    completion_tokens: int
    cost_nano: int
    unpriced: int


def sums(
    connection: sqlite3.Connection, by: str, *, since: str | None = None, until: str | None = None, limit: int = 100
) -> list[Sum]:
    """What each came to, those that cost most first.

    Args:
        by: CALLER, TEAM, USER, CUSTOMER, TAG (an exchange counts once for each of its tags) or MODEL.
        since, until: the first and the last day, as `2026-11-25`; None for no such bound.
    """
    kind, column = (_EVERY, MODEL) if by == MODEL else (by, "id")
    values = {"kind": kind, "since": since or "", "until": until or _LAST_DAY, "limit": limit}
    # A caller has few sums a day, one for each model, so those of the callers that are shown can be looked up.
    by_look_up = by == CALLER and _days_in(connection, values) * limit <= LOOKED_AT_MAX
    if by != MODEL and _holds_all(connection, values) and (by_look_up or not _are_few(connection, values)):
        found = connection.execute(
            "SELECT id, exchanges, NULL, prompt_tokens, completion_tokens, cost_nano, NULL FROM tally "
            "WHERE kind = :kind ORDER BY cost_nano DESC, id LIMIT :limit",
            values,
        )
    elif by_look_up:
        # There may be very many callers: which are shown is found by the one figure that decides.
        found = connection.execute(
            f"SELECT id, 0, 0, 0, 0, sum(cost_nano) AS cost, 0 FROM daily WHERE {_SPAN} "  # noqa: S608
            "GROUP BY id ORDER BY cost DESC, id LIMIT :limit",
            values,
        )
    else:
        # Few of them, each with many sums a day: these are next to each other, so they are first added up by day.
        found = connection.execute(
            f"SELECT {column}, {_SUMS_OF_SUMS} FROM (SELECT {column}, {_DAILY_SUMS} FROM daily WHERE {_SPAN} "  # noqa: S608
            f"GROUP BY day, {column}) GROUP BY {column} ORDER BY sum(cost) DESC, {column} LIMIT :limit",
            values,
        )
    shown = [Sum(*row) for row in found]
    return _looked_up(connection, shown, values) if by_look_up else shown


def total(connection: sqlite3.Connection, *, since: str | None = None, until: str | None = None) -> Sum:
    """What all exchanges of these days came to, each counted once."""
    values = {"kind": _EVERY, "since": since or "", "until": until or _LAST_DAY}
    if _holds_all(connection, values) and not _are_few(connection, values):
        row = connection.execute(
            "SELECT id, exchanges, NULL, prompt_tokens, completion_tokens, cost_nano, NULL FROM tally WHERE kind = ?",
            (PROXY,),
        ).fetchone()
        return Sum(*row)
    row = connection.execute(f"SELECT {_DAILY_SUMS} FROM daily WHERE {_SPAN}", values).fetchone()  # noqa: S608
    return Sum("", *(figure or 0 for figure in row))


def session_sums(
    connection: sqlite3.Connection, *, since_us: int | None = None, until_us: int | None = None, limit: int = 100
) -> tuple[list[Sum], bool]:
    """What each session came to, those that cost most first; and whether all exchanges of that time were looked at."""
    values = {"since": since_us or 0, "until": _LATEST_US if until_us is None else until_us, "limit": limit}
    span = "FROM exchange WHERE accepted_us >= :since AND accepted_us < :until ORDER BY accepted_us DESC"
    found = connection.execute(
        "SELECT session, count(*), NULL, sum(prompt), sum(output), sum(coalesce(cost_nano, 0)) AS cost, "  # noqa: S608
        "sum(certainty = 'unpriced') FROM ("
        f"SELECT session, ended, {_PROMPT} AS prompt, coalesce(output_tokens, 0) AS output, cost_nano, certainty "
        f"{span} LIMIT {LOOKED_AT_MAX}) "
        "WHERE session IS NOT NULL AND ended != 'open' GROUP BY session ORDER BY cost DESC, session LIMIT :limit",
        values,
    ).fetchall()
    more = connection.execute(f"SELECT 1 {span} LIMIT 1 OFFSET {LOOKED_AT_MAX}", values).fetchone()
    return [Sum(*row) for row in found], more is None


def days(
    connection: sqlite3.Connection,
    kind: str,
    *,
    since: str | None = None,
    until: str | None = None,
    id: str | None = None,
    limit: int,
) -> list[DaySum]:
    """What each came to by day, caller and model, in the order of days and ids; of one `id`, or of all of the kind.

    Args:
        kind: as for `sums`, but MODEL.
        limit: there may be as many sums as exchanges: ask for one more than you can use to see whether it was enough.
    """
    # One id of each day is looked up; without the days by name, all ids of all days would be gone through.
    wanted = "day >= :since AND day <= :until" if id is None else f"day IN ({_DAYS}) AND id = :id"
    found = connection.execute(
        "SELECT day, id, caller, model, exchanges, failures, "  # noqa: S608
        "input_tokens + cache_read_tokens + cache_write_tokens, output_tokens, cost_nano, unpriced FROM daily "
        f"WHERE kind = :kind AND {wanted} ORDER BY day, id, caller, model LIMIT :limit",
        {"kind": kind, "since": since or "", "until": until or _LAST_DAY, "id": id, "limit": limit},
    )
    return [DaySum(*row) for row in found]


def day_sums(
    connection: sqlite3.Connection, by: str, *, since: str | None = None, until: str | None = None, limit: int
) -> list[DaySum]:
    """The same, summed up further: by day and id (`caller` and `model` are empty), or, with MODEL, by day and model
    (`id` and `caller` are empty)."""
    kind, columns, group = (_EVERY, "'', '', model", MODEL) if by == MODEL else (by, "id, '', ''", "id")
    found = connection.execute(
        f"SELECT day, {columns}, {_DAILY_SUMS} FROM daily "  # noqa: S608
        f"WHERE kind = ? AND day >= ? AND day <= ? GROUP BY day, {group} ORDER BY day, {group} LIMIT ?",
        (kind, since or "", until or _LAST_DAY, limit),
    )
    return [DaySum(*row) for row in found]


def seen(
    connection: sqlite3.Connection, kind: str, *, id: str | None = None, begin: str = "", limit: int
) -> list[tuple[str, int, int]]:
    """Id, exchanges, and the spend that people see, which a reset sets back; the highest first.

    Args:
        kind: as for `sums`, but MODEL; or PROXY, whose one id is the empty text.
        id: only this one.
        begin: how the ids begin.
    """
    return connection.execute(
        "SELECT id, exchanges, cost_nano - written_off_nano AS seen FROM tally WHERE kind = :kind AND id >= :begin "
        "AND substr(id, 1, length(:begin)) = :begin AND (:id IS NULL OR id = :id) ORDER BY seen DESC, id LIMIT :limit",
        {"kind": kind, "id": id, "begin": begin, "limit": limit},
    ).fetchall()


def set_back(connection: sqlite3.Connection) -> None:
    """Begin all figures that people see, and the use of all budgets, at nothing. What was spent stays in the rows."""
    connection.execute("UPDATE tally SET written_off_nano = cost_nano WHERE written_off_nano != cost_nano")
    connection.execute("UPDATE budget SET spent_nano = 0 WHERE spent_nano != 0")


def _holds_all(connection: sqlite3.Connection, values: dict[str, Any]) -> bool:
    """Is there nothing of that kind outside these days?"""
    outside = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM daily WHERE kind = :kind AND day < :since)"
        " OR EXISTS (SELECT 1 FROM daily WHERE kind = :kind AND day > :until)",
        values,
    ).fetchone()
    return not outside[0]


def _are_few(connection: sqlite3.Connection, values: dict[str, Any]) -> bool:
    """Are the sums by day few enough to be added up for what `tally` does not count?"""
    many = f"SELECT 1 FROM daily WHERE {_SPAN} LIMIT 1 OFFSET {LOOKED_AT_MAX}"  # noqa: S608
    return connection.execute(many, values).fetchone() is None


def _days_in(connection: sqlite3.Connection, values: dict[str, Any]) -> int:
    """How many days there are sums of."""
    number: int = connection.execute(f"SELECT count(*) FROM ({_DAYS})", values).fetchone()[0]  # noqa: S608
    return number


def _looked_up(connection: sqlite3.Connection, shown: list[Sum], values: dict[str, Any]) -> list[Sum]:
    """The same ids with all their figures of these days."""
    found = connection.execute(
        f"SELECT id, {_DAILY_SUMS} FROM daily "  # noqa: S608
        f"WHERE kind = :kind AND day IN ({_DAYS}) AND id IN (SELECT value FROM json_each(:ids)) GROUP BY id",
        values | {"ids": json.dumps([each.id for each in shown])},
    )
    figures = {row[0]: Sum(*row) for row in found}
    return [figures.get(each.id, each) for each in shown]
