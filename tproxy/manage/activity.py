"""What was done by day: `/user/daily/activity` and its like for teams, tags and customers, in LiteLLM's shapes, made
from the sums by day.

A page is so many *lines* (one of a day, an id, a key and a model), newest day first, as with LiteLLM: a day can go on
on the next page, and `metadata` is the sum of the page. `…/aggregated` has all days on one page, made of at most
`WHOLE_MAX` lines: it is written as JSON in one go, during which nothing else runs. CSV has all lines too, up to
`LINES_MAX`. More are refused. With tags, an exchange counts for each of its tags.

Beside LiteLLM's names there are `spend_nano` and `total_spend_nano`, the same money to the nano-dollar.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Response

from tproxy.manage import own
from tproxy.manage.answering import alias_of, caller_id, told
from tproxy.manage.auth import for_any_key
from tproxy.manage.csv_page import AsCsv, Table, csv_told
from tproxy.manage.desk import Desk
from tproxy.manage.faults import Invalid, Unprocessable
from tproxy.manage.fields import InQuery, PageNumber, PageSize
from tproxy.manage.global_spend import LINES_MAX
from tproxy.manage.own import Seen
from tproxy.manage.permit import Who
from tproxy.manage.span import Day, Span, span
from tproxy.manage.spend_row import shown_caller
from tproxy.money import to_dollars, usd
from tproxy.store import reports
from tproxy.store.activity import Line, Part, count, lines
from tproxy.store.subjects import KEY

PROVIDER: Final = "anthropic"
NAMES_MAX: Final = 1_000  # in one list of ids
WHOLE_MAX: Final = 5_000

_NAMED: Final = {reports.USER: "user_id", reports.TEAM: "team_id", reports.CUSTOMER: "end_user_id", reports.TAG: "tag"}
_ALIASED: Final = {reports.USER: "user_alias", reports.TEAM: "team_alias", reports.CUSTOMER: "alias"}
_COLUMNS: Final = (
    "api_requests",
    "successful_requests",
    "failed_requests",
    "prompt_tokens",
    "completion_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "total_tokens",
)
Names = Annotated[str | None, Query(max_length=64 * 1024, description="Ids with commas between them.")]


@dataclass(frozen=True, slots=True)
class Asked:
    """What all routes are asked for alike."""

    days: Span
    api_key: str | None
    model: str | None
    as_csv: bool
    page: int
    page_size: int


async def _asked(
    as_csv: AsCsv,
    start_date: Day = None,
    end_date: Day = None,
    api_key: InQuery = None,
    model: InQuery = None,
    page: PageNumber = 1,
    page_size: PageSize = 50,
) -> Asked:
    return Asked(both_days(start_date, end_date), api_key or None, model or None, as_csv, page, page_size)


All = Annotated[Asked, Depends(_asked)]


def both_days(first: date | None, last: date | None) -> Span:
    """The days of a route that needs both.

    Raises:
        Invalid: one is missing; Unprocessable: see `span`.
    """
    if first is None or last is None:
        raise Invalid("Please provide start_date and end_date", param="start_date" if first is None else "end_date")
    return span(first, last)


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["activity"])

    @routes.get("/user/daily/activity")
    @for_any_key
    async def user(who: Who, asked: All, user_id: InQuery = None) -> Response:
        """What a user did by day; without `user_id`, what all did. A key without a role sees its own user only."""
        return await _told(desk, asked, own.of_user(desk, who, user_id or None, asked.api_key))

    @routes.get("/user/daily/activity/aggregated")
    @for_any_key
    async def user_whole(who: Who, asked: All, user_id: InQuery = None) -> Response:
        """The same on one page."""
        return await _told(desk, asked, own.of_user(desk, who, user_id or None, asked.api_key), in_one=True)

    @routes.get("/team/daily/activity")
    @for_any_key
    async def team(who: Who, asked: All, team_ids: Names = None, exclude_team_ids: Names = None) -> Response:
        """What teams did by day. A key without a role sees what it did itself in its team, or the whole team if its
        user is the team's admin."""
        seen = own.of_teams(desk, who, _names(team_ids, "team_ids"), asked.api_key)
        return await _told(desk, asked, seen, _names(exclude_team_ids, "exclude_team_ids"))

    @routes.get("/team/daily/activity/aggregated")
    @for_any_key
    async def team_whole(who: Who, asked: All, team_ids: Names = None, exclude_team_ids: Names = None) -> Response:
        """The same on one page."""
        seen = own.of_teams(desk, who, _names(team_ids, "team_ids"), asked.api_key)
        return await _told(desk, asked, seen, _names(exclude_team_ids, "exclude_team_ids"), in_one=True)

    @routes.get("/tag/daily/activity")
    @for_any_key
    async def tag(who: Who, asked: All, tags: Names = None) -> Response:
        """What was done under tags by day. A key without a role sees its own part of it."""
        if own.is_let_see_all(who):
            caller = None if asked.api_key is None else caller_id(desk, asked.api_key)
        else:
            caller = own.of_key(desk, who, asked.api_key)
        return await _told(desk, asked, Seen(reports.TAG, _names(tags, "tags"), caller))

    for path in ("/customer/daily/activity", "/end_user/daily/activity"):

        @routes.get(path)
        async def customer(asked: All, end_user_ids: Names = None, exclude_end_user_ids: Names = None) -> Response:
            """What was done for customers by day."""
            caller = None if asked.api_key is None else caller_id(desk, asked.api_key)
            seen = Seen(reports.CUSTOMER, _names(end_user_ids, "end_user_ids"), caller)
            return await _told(desk, asked, seen, _names(exclude_end_user_ids, "exclude_end_user_ids"))

    return routes


def _names(text: str | None, param: str) -> list[str] | None:
    if not text:
        return None
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if len(names) > NAMES_MAX:
        raise Unprocessable(f"must hold at most {NAMES_MAX:,} ids", param=param)
    return names


async def _told(
    desk: Desk, asked: Asked, seen: Seen, without: Sequence[str] | None = None, *, in_one: bool = False
) -> Response:
    part = Part(
        kind=seen.kind,
        since=asked.days.since,
        until=asked.days.until,
        ids=seen.ids,
        without=without or (),
        caller=seen.caller,
        model=asked.model,
    )
    if asked.as_csv:
        return await csv_told(desk, lambda connection: _table(desk, connection, part))

    def read(connection: sqlite3.Connection) -> dict[str, Any]:
        if in_one:
            return _page(desk, connection, part, whole(connection, part, WHOLE_MAX), 1, 1)
        total = count(connection, part)
        found = lines(connection, part, offset=(asked.page - 1) * asked.page_size, limit=asked.page_size)
        return _page(desk, connection, part, found, asked.page, -(-total // asked.page_size))

    return await told(desk, read)


def whole(connection: sqlite3.Connection, part: Part, most: int) -> list[Line]:
    """All lines of a part.

    Raises:
        Unprocessable: there are more than `most`.
    """
    found = lines(connection, part, limit=most + 1)
    if len(found) > most:
        raise Unprocessable(
            f"the answer would be made of more than {most:,} lines; ask for fewer days, for one key or model, or "
            "for pages",
            param="end_date",
        )
    return found


def _page(
    desk: Desk, connection: sqlite3.Connection, part: Part, found: Sequence[Line], page: int, pages: int
) -> dict[str, Any]:
    metadata = _Keys(desk, connection)
    totals = metrics(found)
    return {
        "results": [
            {"date": day, "metrics": metrics(theirs), "breakdown": _breakdown(metadata, part.kind, theirs)}
            for day, theirs in _grouped(found, lambda each: each.day).items()
        ],
        "metadata": {f"total_{name.removeprefix('total_')}": figure for name, figure in totals.items()}
        | {"page": page, "total_pages": pages, "has_more": page < pages},
    }


def metrics(found: Iterable[Line]) -> dict[str, Any]:
    """The figures of lines, summed up, under LiteLLM's names."""
    exchanges = failures = fresh = output = read = written = cost = 0
    for each in found:
        exchanges += each.exchanges
        failures += each.failures
        fresh += each.input_tokens
        output += each.output_tokens
        read += each.cache_read_tokens
        written += each.cache_write_tokens
        cost += each.cost_nano
    prompt = fresh + read + written
    return {
        "spend": to_dollars(cost),
        "spend_nano": cost,
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "total_tokens": prompt + output,
        "successful_requests": exchanges - failures,
        "failed_requests": failures,
        "api_requests": exchanges,
    }


class _Keys:
    """The names of keys, each looked up once for an answer."""

    def __init__(self, desk: Desk, connection: sqlite3.Connection) -> None:
        self._desk = desk
        self._connection = connection
        self._known: dict[str, dict[str, Any]] = {}

    def of(self, caller: str) -> dict[str, Any]:
        """What LiteLLM tells of a key beside its figures."""
        found = self._known.get(caller)
        if found is None:
            key = self._desk.directory.find(KEY, shown_caller(caller))
            found = {
                "key_alias": alias_of(self._desk, reports.CALLER, caller, self._connection),
                "team_id": None if key is None else key.team,
                "user_id": None if key is None else key.user,
            }
            self._known[caller] = found
        return found

    def alias(self, kind: str, id: str) -> str | None:
        """The name of whoever has the sums."""
        return alias_of(self._desk, kind, id, self._connection)


def _breakdown(keys: _Keys, kind: str, found: Sequence[Line]) -> dict[str, Any]:
    def by_key(some: Iterable[Line]) -> dict[str, Any]:
        return {
            shown_caller(caller): {"metrics": metrics(theirs), "metadata": keys.of(caller)}
            for caller, theirs in _grouped(some, lambda each: each.caller).items()
        }

    def each_of(
        name: Callable[[Line], str], metadata: Callable[[str], dict[str, Any]] = lambda _: {}
    ) -> dict[str, Any]:
        return {
            of: {"metrics": metrics(theirs), "metadata": metadata(of), "api_key_breakdown": by_key(theirs)}
            for of, theirs in _grouped(found, name).items()
            if of  # what named no model is in the sums of the day only
        }

    def entity(id: str) -> dict[str, Any]:
        return {_ALIASED[kind]: keys.alias(kind, id)} if kind in _ALIASED else {}

    models = each_of(lambda each: each.model)
    return {
        "mcp_servers": {},
        "models": models,
        "model_groups": models,
        "providers": each_of(lambda _: PROVIDER),
        "endpoints": {},
        "api_keys": by_key(found),
        # The rows of all callers together do not say of which user each is.
        "entities": {} if kind == reports.CALLER else each_of(lambda each: each.id, entity),
    }


def _table(desk: Desk, connection: sqlite3.Connection, part: Part) -> Table:
    keys = _Keys(desk, connection)
    is_of = _NAMED.get(part.kind)
    alias = _ALIASED.get(part.kind)
    aliases: dict[str, str | None] = {}
    rows = []
    for each in reversed(whole(connection, part, LINES_MAX)):
        figures = metrics([each])
        of: list[str | None] = [] if is_of is None else [each.id]
        if alias is not None:
            if each.id not in aliases:
                aliases[each.id] = keys.alias(part.kind, each.id)
            of.append(aliases[each.id])
        rows.append(
            (
                each.day,
                *of,
                shown_caller(each.caller),
                keys.of(each.caller)["key_alias"],
                each.model,
                *(figures[name] for name in _COLUMNS),
                each.cost_nano,
                usd(each.cost_nano),
                each.unpriced,
            )
        )
    named = [name for name in (is_of, alias) if name is not None]
    columns = ("date", *named, "api_key", "key_alias", "model", *_COLUMNS, "spend_nano", "spend_usd", "unpriced")
    return Table(f"activity-{part.since}-{part.until}", columns, rows)


def _grouped(found: Iterable[Line], name: Callable[[Line], str]) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = {}
    for each in found:
        groups.setdefault(name(each), []).append(each)
    return groups
