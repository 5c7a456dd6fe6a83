"""How spend is grouped in reports: by whom, and by what period; and these reports as tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Final, Literal

from tproxy.manage.answering import alias_of
from tproxy.manage.csv_page import Table
from tproxy.manage.csv_text import Cell
from tproxy.manage.desk import Desk
from tproxy.manage.spend_row import shown_caller
from tproxy.money import usd
from tproxy.store import reports
from tproxy.store.reports import DaySum

# Of each way to group: the kind of its sums, and the names of the list and of the one who is in it.
GROUPS: Final = {
    "team": (reports.TEAM, "teams", "team_name"),
    "customer": (reports.CUSTOMER, "customers", "customer"),
    "user": (reports.USER, "users", "user"),
    "key": (reports.CALLER, "keys", "api_key"),
    "tag": (reports.TAG, "tags", "tag"),
    "model": (reports.CALLER, "models", "model"),
}
GroupBy = Literal["team", "customer", "user", "key", "tag", "model"]
Period = Literal["day", "week", "month"]

_FIGURES: Final = ("exchanges", "failures", "prompt_tokens", "completion_tokens", "spend_nano", "spend_usd", "unpriced")


def grouped(lines: Iterable[DaySum], name: Callable[[DaySum], str]) -> dict[str, list[DaySum]]:
    """Lines by what `name` gives for them, in the order in which each first comes."""
    groups: dict[str, list[DaySum]] = {}
    for each in lines:
        groups.setdefault(name(each), []).append(each)
    return groups


def began(day: str, period: Period) -> str:
    """The first day of the period that holds `day`; weeks begin on Monday."""
    if period == "month":
        return day[:8] + "01"
    if period == "week":
        whole = date.fromisoformat(day)
        return (whole - timedelta(days=whole.weekday())).isoformat()
    return day


def group_table(
    desk: Desk, connection: sqlite3.Connection, lines: Sequence[DaySum], group_by: GroupBy, period: Period
) -> Table:
    """What each came to in each period."""
    kind, _, name = GROUPS[group_by]
    by_model = group_by == "model"
    rows: list[Sequence[Cell]] = []
    aliases: dict[str, str | None] = {}
    for first, some in grouped(lines, lambda each: began(each.day, period)).items():
        for id, theirs in grouped(some, lambda each: each.model if by_model else each.id).items():
            named: list[Cell] = [shown_caller(id) if kind == reports.CALLER else id]
            if not by_model:
                if id not in aliases:
                    aliases[id] = alias_of(desk, kind, id, connection)
                named.append(aliases[id])
            rows.append((first, *named, *figures(theirs)))
    is_of = "team_id" if group_by == "team" else name
    names = (is_of,) if by_model else (is_of, f"{group_by}_alias")
    return Table(f"spend-by-{group_by}-and-{period}", (period, *names, *_FIGURES), rows)


def key_table(desk: Desk, connection: sqlite3.Connection, lines: Sequence[DaySum]) -> Table:
    """What each key came to with each model."""
    rows: list[Sequence[Cell]] = []
    for caller, theirs in grouped(lines, lambda each: each.caller).items():
        alias = alias_of(desk, reports.CALLER, caller, connection)
        for model, some in grouped(theirs, lambda each: each.model).items():
            rows.append((shown_caller(caller), alias, model, *figures(some)))
    return Table("spend-by-key-and-model", ("api_key", "key_alias", "model", *_FIGURES), rows)


def sums_table(answer: Mapping[str, Any]) -> Table:
    """The rows of an answer of `/spend/by` as a table."""
    by = str(answer["by"])
    names = ("exchanges", "failures", "prompt_tokens", "completion_tokens", "spend_nano")
    rows = [
        (each["id"], each["alias"], *(each[name] for name in names), usd(each["spend_nano"]), each["unpriced"])
        for each in answer["rows"]
    ]
    return Table(f"spend-by-{by}", (by, "alias", *_FIGURES), rows)


def figures(lines: Iterable[DaySum]) -> list[Cell]:
    """What lines come to, as cells."""
    exchanges = failures = prompt = completion = cost = unpriced = 0
    for each in lines:
        exchanges += each.exchanges
        failures += each.failures
        prompt += each.prompt_tokens
        completion += each.completion_tokens
        cost += each.cost_nano
        unpriced += each.unpriced
    return [exchanges, failures, prompt, completion, cost, usd(cost), unpriced]
