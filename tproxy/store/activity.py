"""What was done by day, in full detail: the rows of `daily` as they are, a page at a time, and sums of some ids by day.

Functions over a connection that only reads. Days are those of UTC. The rows stay when the exchanges they were made of
are deleted. Nothing here looks at an exchange.

A key that was rotated counts for the caller that it is now, as in `reports.py`; only of an earlier hash that is asked
for by itself, what it did is shown as it stands.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tproxy.store import reports
from tproxy.store.reports import DAYS, DaySum

_LAST_DAY: Final = "9999-12-31"
_FIGURES: Final = (
    "sum(exchanges), sum(failures), sum(input_tokens + cache_read_tokens + cache_write_tokens), sum(output_tokens), "
    "sum(cost_nano), sum(unpriced)"
)
_NAMES: Final = "(SELECT value FROM json_each(:{0}))"
# The caller that is asked for, and what it was before.
_ITS_NAMES: Final = "(SELECT :caller UNION SELECT old FROM renamed WHERE new = :caller)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which rows: those for which all that is given here is true.

    Attributes:
        kind: as in `daily`, such as `reports.CALLER`, which has every exchange once.
        since, until: the first and the last day, as `2026-11-25`.
        ids: only these, of a kind other than CALLER; None for all.
        without: none of these.
        caller: only of this caller.
        model: only of this model.
    """

    kind: str
    since: str | None = None
    until: str | None = None
    ids: Sequence[str] | None = None
    without: Sequence[str] = ()
    caller: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """What `id` came to on one day, with one model, for one caller. Several lines can have all four in common, where a
    key was rotated. `input_tokens` are those that no cache had."""

    day: str
    id: str
    caller: str
    model: str
    exchanges: int
    failures: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_nano: int
    unpriced: int


def count(connection: sqlite3.Connection, part: Part) -> int:
    """How many lines there are."""
    where, values = _where(part)
    number: int = connection.execute(f"SELECT count(*) FROM daily WHERE {where}", values).fetchone()[0]  # noqa: S608
    return number


def lines(connection: sqlite3.Connection, part: Part, *, offset: int = 0, limit: int) -> list[Line]:
    """The lines, those of the newest day first, always in the same order."""
    where, values = _where(part)
    named = "coalesce(now.new, daily.caller)"
    # Backwards through the primary key: nothing is sorted, and a page costs no more than the lines before it.
    found = connection.execute(
        f"SELECT day, {named if part.kind == reports.CALLER else 'daily.id'}, {named}, model, exchanges, failures, "  # noqa: S608
        "input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_nano, unpriced "
        "FROM (SELECT * FROM daily "
        f"WHERE {where} ORDER BY day DESC, id DESC, caller DESC, model DESC LIMIT :limit OFFSET :offset) AS daily "
        "LEFT JOIN renamed AS now ON now.old = daily.caller AND now.old IS NOT :caller "
        "ORDER BY day DESC, daily.id DESC, daily.caller DESC, model DESC",
        values | {"limit": limit, "offset": offset},
    )
    return [Line(*row) for row in found]


def by_day(
    connection: sqlite3.Connection, by: str, ids: Sequence[str], *, since: str | None, until: str | None
) -> list[DaySum]:
    """What each of these ids came to on each day, in the order of days and ids; callers as they are now.

    Args:
        by: as for `reports.sums`. What this costs grows with the days and the ids, and with what each id has by day.
    """
    values = {"since": since or "", "until": until or _LAST_DAY, "ids": json.dumps(list(ids))}
    listed = _NAMES.format("ids")
    if by == reports.MODEL:
        kind, named, join, where = reports.PROXY, "model", "", f"model IN {listed}"
    elif by == reports.CALLER:
        kind, named, join = by, "coalesce(new, id)", "LEFT JOIN renamed ON old = id"
        where = f"id IN (SELECT value FROM json_each(:ids) UNION SELECT old FROM renamed WHERE new IN {listed})"  # noqa: S608
    else:
        kind, named, join, where = by, "id", "", f"id IN {listed}"
    found = connection.execute(
        f"SELECT day, {named} AS named, '', '', {_FIGURES} FROM daily {join} "  # noqa: S608
        f"WHERE kind = :kind AND day IN ({DAYS}) AND {where} GROUP BY day, named ORDER BY day, named",
        values | {"kind": kind},
    )
    return [DaySum(*row) for row in found]


def all_by_day(connection: sqlite3.Connection, *, since: str | None, until: str | None) -> list[DaySum]:
    """What all exchanges of each day came to, each counted once, in the order of days."""
    found = connection.execute(
        f"SELECT day, '', '', '', {_FIGURES} FROM daily "  # noqa: S608
        "WHERE kind = ? AND day >= ? AND day <= ? GROUP BY day ORDER BY day",
        (reports.PROXY, since or "", until or _LAST_DAY),
    )
    return [DaySum(*row) for row in found]


def names(connection: sqlite3.Connection, kind: str, limit: int) -> list[str]:
    """The ids of a kind that there are sums of, in their order."""
    found = connection.execute("SELECT id FROM tally WHERE kind = ? ORDER BY id LIMIT ?", (kind, limit))
    return [name for (name,) in found]


def _where(part: Part) -> tuple[str, dict[str, Any]]:
    # Some ids of each day are looked up; without the days by name, all ids of all days would be gone through.
    by_caller = part.caller is not None and part.kind == reports.CALLER  # each row has its caller as its id
    is_looked_up = part.ids is not None or by_caller
    terms = ["kind = :kind", f"day IN ({DAYS})" if is_looked_up else "day >= :since AND day <= :until"]
    if part.ids is not None:
        terms.append("id IN " + _NAMES.format("ids"))
    if part.without:
        terms.append("id NOT IN " + _NAMES.format("without"))
    if part.caller is not None:
        terms.append(f"{'id' if by_caller else 'caller'} IN {_ITS_NAMES}")
    if part.model is not None:
        terms.append("model = :model")
    values = {
        "kind": part.kind,
        "since": part.since or "",
        "until": part.until or _LAST_DAY,
        "ids": json.dumps(list(part.ids or ())),
        "without": json.dumps(list(part.without)),
        "caller": part.caller,
        "model": part.model,
    }
    return " AND ".join(terms), values
