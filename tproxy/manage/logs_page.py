"""`/spend/logs`: the exchanges one by one, and what they came to by day.

An exchange is there once it has ended. The newest come first.
"""

from __future__ import annotations

import sqlite3
from datetime import date, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response

from tproxy.manage.answering import alias_of, caller_id, told
from tproxy.manage.desk import Desk
from tproxy.manage.faults import Unprocessable
from tproxy.manage.span import Day, Span, span
from tproxy.manage.spend_row import spend_row
from tproxy.money import to_dollars
from tproxy.store import reports, search
from tproxy.store.search import Wanted

ROWS_MAX: Final = 1_000
LINES_MAX: Final = 20_000

Text = Annotated[str | None, Query(max_length=1_000)]
Page = Annotated[int | None, Query(ge=1, le=search.OFFSET_MAX)]
PageSize = Annotated[int | None, Query(ge=1, le=ROWS_MAX)]


def add(routes: APIRouter, desk: Desk) -> None:
    """Add the routes of the logs."""

    @routes.get("/spend/logs")
    async def logs(
        request_id: Text = None,
        api_key: Text = None,
        user_id: Text = None,
        team_id: Text = None,
        end_user: Text = None,
        session_id: Text = None,
        tag: Text = None,
        start_date: Day = None,
        end_date: Day = None,
        summarize: bool = True,
        page: Page = None,
        page_size: PageSize = None,
    ) -> Response:
        """Exchanges, newest first, as a plain list: all that fit, up to 1,000; or a page of them.

        `api_key` finds those of a key from before it was rotated too; each names the key that it had then.

        With days and nothing else to go by, and unless `summarize` is false: what was spent on each day, by model and
        by user.
        """
        days = span(start_date, end_date)
        wanted = _wanted(desk, days, request_id, api_key, user_id, team_id, end_user, session_id, tag)
        by_name = (request_id, api_key, user_id, team_id, end_user, session_id, tag)
        if summarize and days != Span() and all(value is None for value in by_name):
            return await told(desk, lambda connection: _by_day(connection, days))
        if page is None and page_size is None:
            page_size = ROWS_MAX
        offset, limit = _place(page, page_size)
        return await told(desk, lambda connection: _rows(desk, connection, wanted, offset, limit))

    @routes.get("/spend/logs/v2")
    async def logs_page(
        request_id: Text = None,
        api_key: Text = None,
        user_id: Text = None,
        team_id: Text = None,
        end_user: Text = None,
        session_id: Text = None,
        tag: Text = None,
        start_date: Day = None,
        end_date: Day = None,
        page: Page = None,
        page_size: PageSize = None,
    ) -> Response:
        """A page of exchanges, newest first, and how many there are.

        Where `total_is_exact` is false, there are more: no more than 100,000 are gone through to count them.
        """
        days = span(start_date, end_date)
        wanted = _wanted(desk, days, request_id, api_key, user_id, team_id, end_user, session_id, tag)
        offset, limit = _place(page, page_size)

        def read(connection: sqlite3.Connection) -> dict[str, Any]:
            counted = search.count(connection, wanted)
            return {
                "data": _rows(desk, connection, wanted, offset, limit),
                "total": counted.total,
                "total_is_exact": counted.exact,
                "page": page or 1,
                "page_size": limit,
                "total_pages": -(-counted.total // limit),
            }

        return await told(desk, read)


def _wanted(
    desk: Desk,
    days: Span,
    request_id: str | None,
    api_key: str | None,
    user_id: str | None,
    team_id: str | None,
    end_user: str | None,
    session_id: str | None,
    tag: str | None,
) -> Wanted:
    return Wanted(
        id=request_id,
        caller=None if api_key is None else caller_id(desk, api_key),
        user=user_id,
        team=team_id,
        customer=end_user,
        session=session_id,
        tag=tag,
        since_us=days.since_us,
        until_us=days.until_us,
    )


def _place(page: int | None, page_size: int | None) -> tuple[int, int]:
    """Offset and limit of a page, the first of which is 1."""
    limit = page_size or 100
    offset = ((page or 1) - 1) * limit
    if offset > search.OFFSET_MAX:
        raise Unprocessable(
            f"only the newest {search.OFFSET_MAX:,} exchanges can be paged through; ask for fewer days", param="page"
        )
    return offset, limit


def _rows(desk: Desk, connection: sqlite3.Connection, wanted: Wanted, offset: int, limit: int) -> list[dict[str, Any]]:
    found = search.rows(connection, wanted, offset=offset, limit=limit)
    return [spend_row(row, lambda team: alias_of(desk, reports.TEAM, team)) for row in found]


def _by_day(connection: sqlite3.Connection, days: Span) -> list[dict[str, Any]]:
    """Each day with its spend; as LiteLLM has it, days without any follow the last one with some, and precede none."""
    result: dict[str, dict[str, Any]] = {}
    for by, name in ((reports.MODEL, "models"), (reports.USER, "users")):
        sums = reports.day_sums(connection, by, since=days.since, until=days.until, limit=LINES_MAX + 1)
        if len(sums) > LINES_MAX:
            raise Unprocessable(f"there are more than {LINES_MAX:,} figures; ask for fewer days", param="end_date")
        for each in sums:
            day = result.setdefault(each.day, {"startTime": each.day, "spend": 0, "models": {}, "users": {}})
            day[name][each.model if by == reports.MODEL else each.id] = to_dollars(each.cost_nano)
            if by == reports.MODEL:
                day["spend"] += each.cost_nano
    for day in result.values():
        day["spend"] = to_dollars(day["spend"])
    if result and days.first is not None and days.last is not None:
        last = date.fromisoformat(max(result))
        while last < days.last:
            last += timedelta(days=1)
            result[last.isoformat()] = {"startTime": last.isoformat(), "spend": 0.0, "models": {}, "users": {}}
    return list(result.values())
