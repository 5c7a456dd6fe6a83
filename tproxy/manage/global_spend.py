"""What was spent in all: `/global/*`, in LiteLLM's shapes, made from the sums by day.

Where no days are given, they are the last thirty. A report that would have more than `LINES_MAX` lines is refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Response

from tproxy.manage.answering import alias_of, caller_id, limit_of, page, told
from tproxy.manage.auth import Asker
from tproxy.manage.csv_page import AsCsv, csv_told
from tproxy.manage.desk import Desk
from tproxy.manage.faults import Forbidden, Invalid, Unprocessable
from tproxy.manage.permit import asker
from tproxy.manage.span import Day, Span, recent, span
from tproxy.manage.spend_groups import GROUPS, GroupBy, Period, began, group_table, grouped, key_table
from tproxy.manage.spend_row import shown_caller
from tproxy.money import to_dollars
from tproxy.store import reports
from tproxy.store.money import standings
from tproxy.store.reports import DaySum

LINES_MAX: Final = 20_000

Text = Annotated[str | None, Query(max_length=256)]
Limit = Annotated[int, Query(ge=1, le=1_000)]


def add(routes: APIRouter, desk: Desk) -> None:
    """Add the routes of the whole proxy's spend."""

    @routes.get("/global/spend")
    async def whole() -> Response:
        """What was spent since the last reset, and the budget of the whole proxy."""

        def read(connection: sqlite3.Connection) -> dict[str, Any]:
            found = reports.seen(connection, reports.PROXY, limit=1)
            budgets = standings(connection, reports.PROXY, [""], desk.clock(), desk.zone())
            return {"spend": to_dollars(found[0][2] if found else 0), "max_budget": limit_of(budgets[""])}

        return await told(desk, read)

    @routes.post("/global/spend/reset")
    async def reset(who: Annotated[Asker, Depends(asker)]) -> Response:
        """Begin the spend of all keys, teams, users, customers and tags, and the use of their budgets, at nothing.
        The logs and the reports stay. For the master key only."""
        if who.subject is not None:
            raise Forbidden("Only the master key may reset the spend of all.")

        def change(connection: sqlite3.Connection) -> Sequence[Any]:
            reports.set_back(connection)
            return ()

        await desk.directory.apply(change)
        return page({"message": "Spend for all API Keys and Teams reset successfully", "status": "success"})

    @routes.get("/global/spend/report")
    async def report(
        as_csv: AsCsv,
        start_date: Day = None,
        end_date: Day = None,
        group_by: GroupBy | None = None,
        period: Period = "day",
        api_key: Text = None,
        internal_user_id: Text = None,
        team_id: Text = None,
        customer_id: Text = None,
    ) -> Response:
        """Spend by day, week or month, and by team, customer, user, key, tag or model.

        With `api_key` or `internal_user_id`: what that key, or each key of that user, came to with each model.
        `team_id` and `customer_id` are for one team or customer alone. With `format=csv`, the same lines as a table.
        """
        days = _days(desk, start_date, end_date)
        if api_key is not None or internal_user_id is not None:
            kind, id = (reports.USER, internal_user_id)
            if api_key is not None:
                kind, id = reports.CALLER, caller_id(desk, api_key)
            if as_csv:
                return await csv_told(desk, lambda c: key_table(desk, c, _lines(c, kind, days, id)))
            return await told(desk, lambda c: by_key(_lines(c, kind, days, id)))
        if team_id is not None and customer_id is not None:
            raise Invalid("Give either `team_id` or `customer_id`.", param="customer_id")
        one = customer_id if customer_id is not None else team_id
        group: GroupBy = group_by or "team"
        if one is not None:
            group = "team" if customer_id is None else "customer"
        kind = GROUPS[group][0]
        if as_csv:
            return await csv_told(desk, lambda c: group_table(desk, c, _lines(c, kind, days, one), group, period))
        return await told(desk, lambda c: _report(desk, _lines(c, kind, days, one), group, period))

    @routes.get("/global/spend/logs")
    async def logs(start_date: Day = None, end_date: Day = None) -> Response:
        """Spend by day."""
        days = _days(desk, start_date, end_date)

        def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            return [
                {"date": day, "spend": to_dollars(_cost(some))} for day, some in _by(connection, days, _day).items()
            ]

        return await told(desk, read)

    @routes.get("/global/spend/keys")
    async def keys(limit: Limit = 10) -> Response:
        """The keys that cost most in the last thirty days."""

        def shape(id: str, cost_nano: int) -> dict[str, Any]:
            key = desk.directory.key(id.removeprefix("key:"))
            return {
                "api_key": shown_caller(id),
                "total_spend": to_dollars(cost_nano),
                "key_alias": alias_of(desk, reports.CALLER, id),
                "key_name": f"sk-...{key.last4}" if key is not None and key.last4 is not None else None,
            }

        return await _top(desk, reports.CALLER, limit, shape)

    @routes.get("/global/spend/models")
    async def models(limit: Limit = 10) -> Response:
        """The models that cost most in the last thirty days."""
        return await _top(desk, reports.MODEL, limit, lambda id, nano: {"model": id, "total_spend": to_dollars(nano)})

    @routes.get("/global/spend/end_users")
    async def end_users(limit: Limit = 100) -> Response:
        """The customers that cost most in the last thirty days."""
        return await _top(
            desk, reports.CUSTOMER, limit, lambda id, nano: {"end_user": id, "total_spend": to_dollars(nano)}
        )

    @routes.get("/global/spend/tags")
    async def tags(start_date: Day = None, end_date: Day = None, limit: Limit = 100) -> Response:
        """The tags that cost most."""
        days = _days(desk, start_date, end_date)

        def read(connection: sqlite3.Connection) -> dict[str, Any]:
            found = reports.sums(connection, reports.TAG, since=days.since, until=days.until, limit=limit)
            return {
                "spend_per_tag": [
                    {"name": each.id, "spend": to_dollars(each.cost_nano), "log_count": each.exchanges}
                    for each in found
                ]
            }

        return await told(desk, read)

    @routes.get("/global/spend/teams")
    async def teams() -> Response:
        """Spend of each team by day, in the last thirty days."""
        return await told(desk, lambda connection: _teams(desk, connection))

    @routes.get("/global/activity")
    async def activity(start_date: Day = None, end_date: Day = None) -> Response:
        """Requests and tokens by day."""
        days = _days(desk, start_date, end_date)
        return await told(desk, lambda c: _activity(_by(c, days, _day)))

    @routes.get("/global/activity/model")
    async def activity_model(start_date: Day = None, end_date: Day = None) -> Response:
        """Requests and tokens by model and day."""
        days = _days(desk, start_date, end_date)

        def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            by_model = _by(connection, days, lambda each: each.model)
            return [{"model": model} | _activity(grouped(some, _day)) for model, some in by_model.items()]

        return await told(desk, read)


def _days(desk: Desk, first: date | None, last: date | None) -> Span:
    return recent(desk.clock(), 30) if first is None and last is None else span(first, last)


def _bounded(lines: list[DaySum]) -> list[DaySum]:
    if len(lines) > LINES_MAX:
        raise Unprocessable(
            f"the report would have more than {LINES_MAX:,} lines; ask for fewer days, or for one key, user, team or "
            "customer",
            param="end_date",
        )
    return lines


def _lines(connection: sqlite3.Connection, kind: str, days: Span, id: str | None) -> list[DaySum]:
    return _bounded(reports.days(connection, kind, since=days.since, until=days.until, id=id, limit=LINES_MAX + 1))


def _by(connection: sqlite3.Connection, days: Span, name: Callable[[DaySum], str]) -> dict[str, list[DaySum]]:
    """All spend by day and model, grouped."""
    found = reports.day_sums(connection, reports.MODEL, since=days.since, until=days.until, limit=LINES_MAX + 1)
    return grouped(_bounded(found), name)


def _day(each: DaySum) -> str:
    return each.day


def _cost(lines: Iterable[DaySum]) -> int:
    return sum(each.cost_nano for each in lines)


async def _top(desk: Desk, kind: str, limit: int, shape: Callable[[str, int], dict[str, Any]]) -> Response:
    days = recent(desk.clock(), 30)

    def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
        found = reports.sums(connection, kind, since=days.since, until=days.until, limit=limit)
        return [shape(each.id, each.cost_nano) for each in found]

    return await told(desk, read)


def _report(desk: Desk, lines: list[DaySum], group_by: GroupBy, period: Period) -> list[dict[str, Any]]:
    kind, members, name = GROUPS[group_by]
    result = []
    for first, some in grouped(lines, lambda each: began(each.day, period)).items():
        groups: list[dict[str, Any]] = []
        for id, theirs in grouped(some, lambda each: each.model if group_by == "model" else each.id).items():
            shown = shown_caller(id) if kind == reports.CALLER else id
            alias = None if group_by == "model" else alias_of(desk, kind, id)
            member: dict[str, Any] = {name: alias if group_by == "team" and alias is not None else shown}
            if group_by == "team":
                member["team_id"] = id
            elif group_by == "key":
                member["key_alias"] = alias
            groups.append(member | {"total_spend": to_dollars(_cost(theirs)), "metadata": _metadata(theirs)})
        groups.sort(key=lambda each: -each["total_spend"])
        result.append({"group_by_day": f"{first}T00:00:00+00:00", members: groups})
    return result


def _metadata(lines: list[DaySum]) -> list[dict[str, Any]]:
    """What each pair of model and key came to."""
    pairs: dict[tuple[str, str], tuple[int, int]] = {}
    for each in lines:
        cost, tokens = pairs.get((each.model, each.caller), (0, 0))
        tokens += each.prompt_tokens + each.completion_tokens
        pairs[each.model, each.caller] = cost + each.cost_nano, tokens
    return [
        {"model": model, "spend": to_dollars(cost), "total_tokens": tokens, "api_key": shown_caller(caller)}
        for (model, caller), (cost, tokens) in pairs.items()
    ]


def by_key(lines: list[DaySum]) -> list[dict[str, Any]]:
    """What each key came to, and with each model."""
    return [
        {"api_key": shown_caller(caller)}
        | _totals(theirs)
        | {
            "model_details": [
                {"model": model} | _totals(some) for model, some in grouped(theirs, lambda each: each.model).items()
            ]
        }
        for caller, theirs in grouped(lines, lambda each: each.caller).items()
    ]


def _totals(lines: list[DaySum]) -> dict[str, Any]:
    return {
        "total_cost": to_dollars(_cost(lines)),
        "total_input_tokens": sum(each.prompt_tokens for each in lines),
        "total_output_tokens": sum(each.completion_tokens for each in lines),
    }


def _activity(by_day: dict[str, list[DaySum]]) -> dict[str, Any]:
    daily = [
        {
            "date": f"{date.fromisoformat(day):%b %d}",
            "api_requests": sum(each.exchanges for each in lines),
            "total_tokens": sum(each.prompt_tokens + each.completion_tokens for each in lines),
        }
        for day, lines in by_day.items()
    ]
    return {
        "daily_data": daily,
        "sum_api_requests": sum(each["api_requests"] for each in daily),
        "sum_total_tokens": sum(each["total_tokens"] for each in daily),
    }


def _teams(desk: Desk, connection: sqlite3.Connection) -> dict[str, Any]:
    days = recent(desk.clock(), 30)
    lines = _bounded(
        reports.day_sums(connection, reports.TEAM, since=days.since, until=days.until, limit=LINES_MAX + 1)
    )
    names = {each.id: alias_of(desk, reports.TEAM, each.id) or each.id for each in lines}
    totals = sorted(((_cost(theirs), id) for id, theirs in grouped(lines, lambda each: each.id).items()), reverse=True)
    return {
        "daily_spend": [
            {"date": day}
            | {name: to_dollars(_cost(theirs)) for name, theirs in grouped(some, lambda each: names[each.id]).items()}
            for day, some in grouped(lines, _day).items()
        ],
        "teams": sorted(set(names.values())),
        "total_spend_per_team": [{"team_id": names[id], "total_spend": to_dollars(cost)} for cost, id in totals[:10]],
    }
