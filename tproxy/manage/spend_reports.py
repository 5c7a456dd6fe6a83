"""Spend for whom it concerns, in LiteLLM's shapes: what one key, user or team came to, by key and model, which any key
may ask about its own; and the lists of providers, tags and customers that have spent.
"""

from __future__ import annotations

import sqlite3
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from tproxy.manage import own
from tproxy.manage.activity import PROVIDER, both_days, whole
from tproxy.manage.answering import told
from tproxy.manage.auth import for_any_key
from tproxy.manage.desk import Desk
from tproxy.manage.fields import InQuery
from tproxy.manage.global_spend import LINES_MAX, by_key
from tproxy.manage.own import Seen
from tproxy.manage.permit import Who
from tproxy.manage.span import Day, Span
from tproxy.money import to_dollars
from tproxy.store import activity, reports

Limit = Annotated[int, Query(ge=1, le=10_000)]


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["spend"])

    @routes.get("/key/spend/report")
    @for_any_key
    async def key(who: Who, start_date: Day = None, end_date: Day = None, api_key: InQuery = None) -> Response:
        """What a key came to with each model; without `api_key`, the key that asks."""
        days = both_days(start_date, end_date)
        return await _report(desk, days, Seen(reports.CALLER, None, own.of_key(desk, who, api_key or None)))

    @routes.get("/user/spend/report")
    @for_any_key
    async def user(
        who: Who, start_date: Day = None, end_date: Day = None, internal_user_id: InQuery = None
    ) -> Response:
        """What the keys of a user came to with each model; without `internal_user_id`, of all users, or for a key
        without a role of its own."""
        days = both_days(start_date, end_date)
        return await _report(desk, days, own.of_user(desk, who, internal_user_id or None))

    @routes.get("/team/spend/report")
    @for_any_key
    async def team(who: Who, start_date: Day = None, end_date: Day = None, team_id: InQuery = None) -> Response:
        """What the keys of a team came to with each model; without `team_id`, of all teams, or for a key without a
        role its own part of its team."""
        days = both_days(start_date, end_date)
        return await _report(desk, days, own.of_teams(desk, who, [team_id] if team_id else None))

    @routes.get("/global/spend/provider")
    async def providers(start_date: Day = None, end_date: Day = None) -> Response:
        """Spend by provider, of which there is one."""
        days = both_days(start_date, end_date)

        def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            spent = reports.total(connection, since=days.since, until=days.until)
            return [{"provider": PROVIDER, "spend": to_dollars(spent.cost_nano)}] if spent.exchanges else []

        return await told(desk, read)

    @routes.get("/global/spend/all_tag_names")
    async def tag_names(limit: Limit = 1_000) -> Response:
        """The tags under which something was spent."""
        return await told(desk, lambda connection: {"tag_names": activity.names(connection, reports.TAG, limit)})

    @routes.get("/global/all_end_users")
    async def end_users(limit: Limit = 1_000) -> Response:
        """The customers for whom something was spent."""
        return await told(desk, lambda connection: {"end_users": activity.names(connection, reports.CUSTOMER, limit)})

    return routes


async def _report(desk: Desk, days: Span, seen: Seen) -> Response:
    part = activity.Part(kind=seen.kind, since=days.since, until=days.until, ids=seen.ids, caller=seen.caller)
    return await told(desk, lambda connection: by_key([_sum(each) for each in whole(connection, part, LINES_MAX)]))


def _sum(line: activity.Line) -> reports.DaySum:
    return reports.DaySum(
        day=line.day,
        id=line.id,
        caller=line.caller,
        model=line.model,
        exchanges=line.exchanges,
        failures=line.failures,
        prompt_tokens=line.input_tokens + line.cache_read_tokens + line.cache_write_tokens,
        completion_tokens=line.output_tokens,
        cost_nano=line.cost_nano,
        unpriced=line.unpriced,
    )
