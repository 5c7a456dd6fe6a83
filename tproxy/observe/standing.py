"""How budgets stand, read from the ledger's file for a scrape.

At most so many subjects of a kind are told: those that have used most of their budgets. Of each, the first budget that
has a limit is told: LiteLLM has only one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Final
from zoneinfo import ZoneInfo

from tproxy.money import NANO
from tproxy.observe.series import Family, Labels, Sample, shown
from tproxy.store import money
from tproxy.store.base import Standing
from tproxy.store.subjects import KEY, TEAM, USER, Subject

_HOUR_US: Final = 3_600_000_000
_MOST_USED: Final = """
SELECT subject FROM budget WHERE kind = ? AND limit_nano IS NOT NULL
 GROUP BY subject ORDER BY max(CAST(spent_nano AS REAL) / max(limit_nano, 1)) DESC, subject LIMIT ?
"""
_HELD: Final = """
SELECT budget.kind, count(*), sum(reservation.amount_nano)
  FROM reservation JOIN budget ON budget.id = reservation.budget GROUP BY budget.kind
"""
_NAMES: Final[dict[str, tuple[str, Labels]]] = {
    TEAM: ("team", ("team", "team_alias")),
    KEY: ("api_key", ("hashed_api_key", "api_key_alias")),
    USER: ("user", ("user",)),
}

Find = Callable[[str, str], Subject | None]


def standing(connection: sqlite3.Connection, find: Find, most: int, now_us: int, zone: ZoneInfo) -> list[Family]:
    """How the budgets of teams, keys and users stand, and what running exchanges hold of all budgets.

    Args:
        find: who is known, for their names; called in this thread.
        most: how many subjects of a kind are told.
    """
    families: list[Family] = []
    for kind in _NAMES:
        ids = [id for (id,) in connection.execute(_MOST_USED, (kind, most))]
        found = money.standings(connection, kind, ids, now_us, zone)
        firsts = [next(each for each in found[id] if each.limit_nano is not None) for id in ids]
        families += _budgets(kind, firsts, find, now_us)
    held = connection.execute(_HELD).fetchall()
    families.append(
        Family(
            "tproxy_reservations",
            "gauge",
            "How many sums are held of budgets by running exchanges.",
            ("kind",),
            [((kind,), count) for kind, count, _ in held],
        )
    )
    families.append(
        Family(
            "tproxy_reserved_nano",
            "gauge",
            "Nano-dollars that running exchanges hold of budgets.",
            ("kind",),
            [((kind,), nano) for kind, _, nano in held],
        )
    )
    return families


def _budgets(kind: str, standings: list[Standing], find: Find, now_us: int) -> Iterator[Family]:
    name, names = _NAMES[kind]
    left: dict[Labels, Sample] = {}
    most: dict[Labels, Sample] = {}
    hours: dict[Labels, Sample] = {}
    for each in standings:
        subject = find(kind, each.subject)
        alias = (subject.alias if subject is not None else None) or ""
        labels = (shown(each.subject), shown(alias))[: len(names)]
        limit = each.limit_nano or 0
        left[labels] = (labels, (limit - each.spent_nano) / NANO)
        most[labels] = (labels, limit / NANO)
        if each.reset_us is not None:
            hours[labels] = (labels, max(0, each.reset_us - now_us) / _HOUR_US)
    what = name.replace("_", " ")
    yield Family(
        f"litellm_remaining_{name}_budget_metric",
        "gauge",
        f"US dollars left of the budget of this {what}.",
        names,
        list(left.values()),
    )
    yield Family(
        f"litellm_{name}_max_budget_metric",
        "gauge",
        f"US dollars of the budget of this {what}.",
        names,
        list(most.values()),
    )
    yield Family(
        f"litellm_{name}_budget_remaining_hours_metric",
        "gauge",
        f"Hours until the budget of this {what} begins anew.",
        names,
        list(hours.values()),
    )
