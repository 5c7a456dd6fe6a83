"""What was spent, by whom and on what: questions to the ledger's rows and to the sums that are kept of them.

Functions over a connection that only reads, but for `set_back`. They speak of exchanges that have ended; one that runs
has no figures yet.

Every answer is bounded. Sums without days come from `tally`, sums by day from `daily`: what they cost grows with the
days that are asked for, not with the exchanges of a day. Only sessions are summed from exchanges, of which at most
`LOOKED_AT_MAX` are looked at.

Days are those of UTC, as in `daily`. Figures are what exchanges cost, also where a budget's use was set back since.

What a key came to before it was rotated stands under its hash of that time, and counts for the caller that it is now
(`renamed`). Only of an earlier hash that is asked for by itself, it is shown as it stands.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
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

# The days of a kind that there are sums of, one look into the index each.
DAYS: Final = """
WITH RECURSIVE next(day) AS (
    SELECT min(day) FROM daily WHERE kind = :kind AND day >= :since
    UNION ALL
    SELECT (SELECT min(day) FROM daily WHERE kind = :kind AND day > next.day) FROM next WHERE next.day < :until
)
SELECT day FROM next WHERE day <= :until
"""

# The tallies of callers, where some stand under an earlier hash: an exchange that ran when its key was rotated is
# tallied under the hash that it began with.
_TALLY_OF_CALLERS: Final = (
    "(SELECT kind, coalesce(new, id) AS id, sum(exchanges) AS exchanges, sum(prompt_tokens) AS prompt_tokens, "
    "sum(completion_tokens) AS completion_tokens, sum(cost_nano) AS cost_nano, "
    "sum(written_off_nano) AS written_off_nano "
    "FROM tally LEFT JOIN renamed ON old = id WHERE kind = 'caller' GROUP BY coalesce(new, id))"
)

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
    number = _days_in(connection, values) if by == CALLER else 0
    by_look_up = by == CALLER and number * limit <= LOOKED_AT_MAX
    if by != MODEL and _holds_all(connection, values) and (by_look_up or not _are_few(connection, values)):
        found = connection.execute(
            "SELECT id, exchanges, NULL, prompt_tokens, completion_tokens, cost_nano, NULL "  # noqa: S608
            f"FROM {_tallies(connection, by)} WHERE kind = :kind ORDER BY cost_nano DESC, id LIMIT :limit",
            values,
        )
        shown = [Sum(*row) for row in found]
        if by_look_up:
            figures = _looked_up(connection, [each.id for each in shown], values)
            return [figures.get(each.id, each) for each in shown]
        return shown
    if by_look_up:
        renamed = connection.execute("SELECT DISTINCT new FROM renamed UNION ALL SELECT old FROM renamed").fetchall()
        if number * (limit + len(renamed)) <= LOOKED_AT_MAX:
            return _dearest(connection, [id for (id,) in renamed], values)
    # Few of them, each with many sums a day: these are next to each other, so they are first added up by day.
    named, join = ("coalesce(new, id)", "LEFT JOIN renamed ON old = id") if by == CALLER else (column, "")
    found = connection.execute(
        f"SELECT {named} AS now, {_SUMS_OF_SUMS} FROM (SELECT {column}, {_DAILY_SUMS} FROM daily WHERE {_SPAN} "  # noqa: S608
        f"GROUP BY day, {column}) {join} GROUP BY now ORDER BY sum(cost) DESC, now LIMIT :limit",
        values,
    )
    return [Sum(*row) for row in found]


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
    found = _days_of(connection, kind, since, until, id, limit)
    return list(islice(_joined(found), limit) if _are_renamed(connection) else found)


def day_sums(
    connection: sqlite3.Connection, by: str, *, since: str | None = None, until: str | None = None, limit: int
) -> list[DaySum]:
    """The same, summed up further: by day and id (`caller` and `model` are empty), or, with MODEL, by day and model
    (`id` and `caller` are empty)."""
    if by == CALLER and _are_renamed(connection):
        by_model = _days_of(connection, CALLER, since, until, None, limit)
        return list(islice(_joined(replace(each, caller="", model="") for each in by_model), limit))
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
        "SELECT id, exchanges, cost_nano - written_off_nano AS seen "  # noqa: S608
        f"FROM {_tallies(connection, kind)} WHERE kind = :kind AND id >= :begin "
        "AND substr(id, 1, length(:begin)) = :begin AND (:id IS NULL OR id = :id) ORDER BY seen DESC, id LIMIT :limit",
        {"kind": kind, "id": id, "begin": begin, "limit": limit},
    ).fetchall()


def set_back(connection: sqlite3.Connection) -> None:
    """Begin all figures that people see, and the use of all budgets, at nothing. What was spent stays in the rows."""
    connection.execute("UPDATE tally SET written_off_nano = cost_nano WHERE written_off_nano != cost_nano")
    connection.execute("UPDATE budget SET spent_nano = 0 WHERE spent_nano != 0")


def _are_renamed(connection: sqlite3.Connection) -> bool:
    """Was any key rotated?"""
    return connection.execute("SELECT 1 FROM renamed LIMIT 1").fetchone() is not None


def _tallies(connection: sqlite3.Connection, kind: str) -> str:
    """Where the tallies of a kind are, each under the id of now."""
    if kind != CALLER:
        return "tally"
    left = "SELECT 1 FROM renamed CROSS JOIN tally ON tally.kind = 'caller' AND tally.id = renamed.old LIMIT 1"
    return "tally" if connection.execute(left).fetchone() is None else _TALLY_OF_CALLERS


def _days_of(
    connection: sqlite3.Connection, kind: str, since: str | None, until: str | None, id: str | None, limit: int
) -> Iterator[DaySum]:
    """The rows of `daily` in the order of days and of ids and callers as they are now; of the same, there may be
    several."""
    # One id of each day is looked up; without the days by name, all ids of all days would be gone through.
    span = "day >= :since AND day <= :until" if id is None else f"day IN ({DAYS})"
    join, named, caller, of_id, end = "", "id", "caller", "AND id = :id", "LIMIT :limit"
    if _are_renamed(connection):
        # In this order no more than one day, or one id of a day, is sorted at a time: who asks can stop.
        join, caller, end = "LEFT JOIN renamed ON old = caller AND old IS NOT :own", "coalesce(new, caller)", ""
        if kind == CALLER:
            named = caller
            of_id = "AND id IN (SELECT :id UNION SELECT old FROM renamed WHERE new = :id)"
    found = connection.execute(
        f"SELECT day, {named} AS named, {caller} AS by, model, exchanges, failures, "  # noqa: S608
        "input_tokens + cache_read_tokens + cache_write_tokens, output_tokens, cost_nano, unpriced "
        f"FROM daily {join} WHERE kind = :kind AND {span} {of_id if id is not None else ''} "
        f"ORDER BY day, named, by, model {end}",
        {
            "kind": kind,
            "since": since or "",
            "until": until or _LAST_DAY,
            "id": id,
            "own": id if kind == CALLER else None,
            "limit": limit,
        },
    )
    return (DaySum(*row) for row in found)


def _joined(sums: Iterable[DaySum]) -> Iterator[DaySum]:
    """Those of the same day, id, caller and model, which follow each other, as one."""
    for key, same in groupby(sums, lambda each: (each.day, each.id, each.caller, each.model)):
        some = list(same)
        yield (
            some[0]
            if len(some) == 1
            else DaySum(
                *key,
                exchanges=sum(each.exchanges for each in some),
                failures=sum(each.failures for each in some),
                prompt_tokens=sum(each.prompt_tokens for each in some),
                completion_tokens=sum(each.completion_tokens for each in some),
                cost_nano=sum(each.cost_nano for each in some),
                unpriced=sum(each.unpriced for each in some),
            )
        )


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
    number: int = connection.execute(f"SELECT count(*) FROM ({DAYS})", values).fetchone()[0]  # noqa: S608
    return number


def _dearest(connection: sqlite3.Connection, renamed: list[str], values: dict[str, Any]) -> list[Sum]:
    """The callers that cost most in these days. `renamed` are all that have been renamed, and what they are now."""
    # There may be very many callers: which are shown is found by the one figure that decides. For those that have, or
    # are, an earlier name it does not; all of them are looked up, beside as many others as can be shown.
    found = connection.execute(
        f"SELECT id, sum(cost_nano) AS cost FROM daily WHERE {_SPAN} "  # noqa: S608
        "GROUP BY id ORDER BY cost DESC, id LIMIT :limit + :more",
        values | {"more": len(renamed)},
    )
    figures = _looked_up(connection, [*renamed, *(id for id, _ in found)], values)
    return sorted(figures.values(), key=lambda each: (-each.cost_nano, each.id))[: values["limit"]]


def _looked_up(connection: sqlite3.Connection, ids: list[str], values: dict[str, Any]) -> dict[str, Sum]:
    """All figures of these callers, those of their earlier names included, in these days."""
    found = connection.execute(
        f"SELECT coalesce(new, id) AS now, {_DAILY_SUMS} FROM daily LEFT JOIN renamed ON old = id "  # noqa: S608
        f"WHERE kind = :kind AND day IN ({DAYS}) AND id IN (SELECT value FROM json_each(:ids) "
        "UNION SELECT old FROM renamed WHERE new IN (SELECT value FROM json_each(:ids))) GROUP BY now",
        values | {"ids": json.dumps(ids)},
    )
    return {row[0]: Sum(*row) for row in found}
