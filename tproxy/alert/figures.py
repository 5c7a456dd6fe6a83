"""What the rules are asked about, as it is in the ledger's file. Functions on a connection that only reads.

Each finds few rows of many: what cannot be a cause is left out by the query.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from tproxy.alert.rules import HISTORY_DAYS, NEARLY
from tproxy.store.base import Standing
from tproxy.store.money import Row, current

FOUND_MAX: Final = 2_000  # of each kind; more are no alerts that anybody could read

_BUDGETS: Final = (
    "SELECT id, kind, subject, period, limit_nano, soft_nano, cut, spent_nano, held_nano, started_us, reset_us "  # noqa: S608
    f"FROM budget WHERE spent_nano >= soft_nano OR spent_nano * 100.0 >= limit_nano * {NEARLY}.0 "
    "ORDER BY spent_nano DESC LIMIT ?"
)
# A key that was rotated goes on for a while under its old hash: that it ends is meant.
_EXPIRING: Final = """
SELECT id, alias, json_extract(document, '$.last4'), json_extract(document, '$.expires_us') AS expires FROM subject
 WHERE kind = 'key' AND expires > ? AND expires <= ? AND json_extract(document, '$.replaced_by') IS NULL
 ORDER BY expires LIMIT ?
"""
_DEAR: Final = """
SELECT coalesce(new, id) AS now FROM daily LEFT JOIN renamed ON old = id
 WHERE kind = 'caller' AND day IN (?, ?) GROUP BY day, now
HAVING sum(cost_nano) >= ? ORDER BY sum(cost_nano) DESC LIMIT ?
"""
_DAYS: Final = """
SELECT coalesce(new, id) AS now, day, sum(cost_nano) FROM daily LEFT JOIN renamed ON old = id
 WHERE kind = 'caller' AND day IN (SELECT value FROM json_each(:days))
   AND id IN (SELECT value FROM json_each(:ids) UNION
              SELECT old FROM renamed WHERE new IN (SELECT value FROM json_each(:ids)))
 GROUP BY now, day
"""


def budgets(connection: sqlite3.Connection, now_us: int, zone: ZoneInfo) -> list[Standing]:
    """Budgets that have reached their soft limit, or nearly their limit, as they stand in their present periods."""
    found = connection.execute(_BUDGETS, (FOUND_MAX,))
    return [current(Row(*values), now_us, zone).standing() for values in found]


def expiring(connection: sqlite3.Connection, now_us: int, days: float) -> list[tuple[str, str, int]]:
    """Keys of the database that expire within so many days, the next one first: hash, name for people, when."""
    until_us = now_us + int(days * 86_400_000_000)
    found = connection.execute(_EXPIRING, (now_us, until_us, FOUND_MAX))
    return [(id, alias or f"…{last4 or ''}", expires_us) for id, alias, last4, expires_us in found]


def spend_days(connection: sqlite3.Connection, now_us: int, least_nano: int) -> dict[str, Sequence[int]]:
    """Callers whose spend of today or yesterday (UTC) is `least_nano` or more, and what each of their last days cost,
    the oldest first: those of their history, yesterday and today."""
    today = datetime.fromtimestamp(now_us // 1_000_000, UTC).date()
    days = [str(today - timedelta(days=back)) for back in range(HISTORY_DAYS + 1, -1, -1)]
    dear = [id for (id,) in connection.execute(_DEAR, (days[-2], days[-1], least_nano, FOUND_MAX))]
    if not dear:
        return {}
    place = {day: at for at, day in enumerate(days)}
    found = {id: [0] * len(days) for id in dear}
    for id, day, nano in connection.execute(_DAYS, {"days": json.dumps(days), "ids": json.dumps(dear)}):
        if id in found:
            found[id][place[day]] = nano
    return dict(found)
