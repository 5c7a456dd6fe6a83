"""What was spent, by whom and on what: `/spend/*`, with the routes of LiteLLM and one of our own, `/spend/by`.

`/spend/keys`, `/spend/users` and `/spend/tags` show the figure that a reset sets back; all others what exchanges cost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Response

from tproxy.manage import calculate, global_spend, logs_page
from tproxy.manage.answering import alias_of, limit_of, told
from tproxy.manage.csv_page import AsCsv, csv_told
from tproxy.manage.desk import Desk
from tproxy.manage.faults import Unprocessable
from tproxy.manage.span import Day, Span, first_day, recent, span
from tproxy.manage.spend_groups import sums_table
from tproxy.manage.spend_row import shown_caller
from tproxy.money import to_dollars
from tproxy.store import activity, reports
from tproxy.store.money import standings
from tproxy.store.reports import DaySum, Sum

# What is summed by, in the words of the API.
KINDS: Final = {
    "key": reports.CALLER,
    "team": reports.TEAM,
    "user": reports.USER,
    "customer": reports.CUSTOMER,
    "tag": reports.TAG,
    "model": reports.MODEL,
    "session": reports.SESSION,
}
By = Literal["key", "team", "user", "customer", "tag", "model", "session"]
ByDay = Literal["key", "team", "user", "customer", "tag", "model"]
Limit = Annotated[int, Query(ge=1, le=1_000)]
DayLimit = Annotated[int, Query(ge=1, le=100)]
BY_DAY_MAX: Final = 40_000  # rows times days: they are written as JSON in one go


def router(desk: Desk) -> APIRouter:
    """All routes of spend."""
    routes = APIRouter(tags=["spend"])
    for part in (logs_page, global_spend, calculate):
        part.add(routes, desk)

    @routes.get("/spend/by")
    async def spent_by(
        as_csv: AsCsv,
        by: By = "key",
        since: Annotated[str | None, Query(max_length=32)] = None,
        until: Day = None,
        limit: Limit = 100,
    ) -> Response:
        """What each key, team, user, customer, tag, model or session came to, those that cost most first.

        `since` is a day, or `7d` for the last seven days, today included; `until` the last day. Money is exact in
        `spend_nano`, in nano-dollars. A figure that is null was not counted. `total` is of all exchanges of these days,
        each counted once; `complete` is false where not all of them were looked at, which happens with sessions only.
        What a key came to before it was rotated counts for the key that it is now.
        """
        days = span(first_day(since, desk.clock()), until, "until")
        if as_csv:
            return await csv_told(desk, lambda connection: sums_table(_by(desk, connection, by, days, limit)))
        return await told(desk, lambda connection: _by(desk, connection, by, days, limit))

    @routes.get("/spend/by/day")
    async def spent_by_day(
        by: ByDay = "team",
        since: Annotated[str | None, Query(max_length=32)] = None,
        until: Day = None,
        limit: DayLimit = 50,
    ) -> Response:
        """As `/spend/by`, with `days`: what all exchanges of each day came to (each counted once), and each of `rows`
        on each day. Days without an exchange are left out. Without days, these are the last thirty."""
        first = first_day(since, desk.clock())
        days = recent(desk.clock(), 30) if first is None and until is None else span(first, until, "until")
        return await told(desk, lambda connection: _by_day(desk, connection, by, days, limit))

    @routes.get("/spend/keys")
    async def keys(limit: Limit = 100) -> Response:
        """The keys that spent most."""

        def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            found = reports.seen(connection, reports.CALLER, begin="key:", limit=limit)
            return [_key(desk, shown_caller(id), spent) for id, _, spent in found]

        return await told(desk, read)

    @routes.get("/spend/users")
    async def users(user_id: Annotated[str | None, Query(max_length=256)] = None, limit: Limit = 100) -> Response:
        """The users that spent most, or one of them."""

        def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            found = reports.seen(connection, reports.USER, limit=limit, id=user_id)
            budgets = standings(connection, reports.USER, [id for id, _, _ in found], desk.clock(), desk.zone())
            return [
                {
                    "user_id": id,
                    "user_alias": alias_of(desk, reports.USER, id),
                    "spend": to_dollars(spent),
                    "max_budget": limit_of(budgets[id]),
                }
                for id, _, spent in found
            ]

        return await told(desk, read)

    @routes.get("/spend/tags")
    async def tags(start_date: Day = None, end_date: Day = None, limit: Limit = 100) -> Response:
        """The tags that cost most, of these days or of all."""
        days = span(start_date, end_date)

        def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            if days == Span():
                found = reports.seen(connection, reports.TAG, limit=limit)
            else:
                sums = reports.sums(connection, reports.TAG, since=days.since, until=days.until, limit=limit)
                found = [(each.id, each.exchanges, each.cost_nano) for each in sums]
            return [
                {"individual_request_tag": id, "log_count": exchanges, "total_spend": to_dollars(spent)}
                for id, exchanges, spent in found
            ]

        return await told(desk, read)

    return routes


def _by(desk: Desk, connection: sqlite3.Connection, by: By, days: Span, limit: int) -> dict[str, Any]:
    kind, complete = KINDS[by], True
    if kind == reports.SESSION:
        found, complete = reports.session_sums(connection, since_us=days.since_us, until_us=days.until_us, limit=limit)
    else:
        found = reports.sums(connection, kind, since=days.since, until=days.until, limit=limit)
    return _by_of(desk, connection, by, days, found) | {"complete": complete}


def _by_day(desk: Desk, connection: sqlite3.Connection, by: ByDay, days: Span, limit: int) -> dict[str, Any]:
    kind = KINDS[by]
    found = reports.sums(connection, kind, since=days.since, until=days.until, limit=limit)
    ids = [each.id for each in found]
    every_day = activity.all_by_day(connection, since=days.since, until=days.until)
    if len(every_day) * len(ids) > BY_DAY_MAX:
        raise Unprocessable(f"rows and days make more than {BY_DAY_MAX:,} figures; ask for fewer", param="limit")
    theirs: dict[str, list[dict[str, Any]]] = {}
    for each in activity.by_day(connection, kind, ids, since=days.since, until=days.until):
        theirs.setdefault(each.day, []).append(_on_day(kind, each))
    return _by_of(desk, connection, by, days, found) | {
        "days": [{"day": each.day} | _figures(each) | {"rows": theirs.get(each.day, [])} for each in every_day]
    }


def _on_day(kind: str, each: DaySum) -> dict[str, Any]:
    return {"id": shown_caller(each.id) if kind == reports.CALLER else each.id} | _figures(each)


def _by_of(desk: Desk, connection: sqlite3.Connection, by: By, days: Span, found: Sequence[Sum]) -> dict[str, Any]:
    return {
        "by": by,
        "since": days.since,
        "until": days.until,
        "rows": [_sum(desk, connection, KINDS[by], each) for each in found],
        "total": _figures(reports.total(connection, since=days.since, until=days.until)),
        "complete": True,
    }


def _sum(desk: Desk, connection: sqlite3.Connection, kind: str, each: Sum) -> dict[str, Any]:
    alias = None if kind in (reports.MODEL, reports.SESSION) else alias_of(desk, kind, each.id, connection)
    return {"id": shown_caller(each.id) if kind == reports.CALLER else each.id, "alias": alias} | _figures(each)


def _figures(each: Sum | DaySum) -> dict[str, Any]:
    return {
        "exchanges": each.exchanges,
        "failures": each.failures,
        "prompt_tokens": each.prompt_tokens,
        "completion_tokens": each.completion_tokens,
        "spend_nano": each.cost_nano,
        "spend": to_dollars(each.cost_nano),
        "unpriced": each.unpriced,
    }


def _key(desk: Desk, digest: str, spent_nano: int) -> dict[str, Any]:
    """A key as LiteLLM lists it by spend; one that was deleted has no name any more."""
    key = desk.directory.key(digest)
    return {
        "token": digest,
        "key_name": f"sk-...{key.last4}" if key is not None and key.last4 is not None else None,
        "key_alias": key.alias if key is not None else None,
        "spend": to_dollars(spent_nano),
        "user_id": key.user if key is not None else None,
        "team_id": key.team if key is not None else None,
    }
