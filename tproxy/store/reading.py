"""What a terminal asks of the ledger's file: one exchange, the newest ones, spend by day and model.

Plain functions over a connection of their own that cannot write, so they work while a server runs and when none does.
Each call sees one state of the file. Money is summed as integers.

Every function raises `LedgerUnusable` when the file is not there, is no ledger, or is at another version.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from tproxy.store.migrate import LedgerUnusable, check

ID_PREFIX_MIN = 8
BUSY_SECONDS = 5.0

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST_US = (1 << 63) - 1

_SPEND = """
SELECT upstream = 'sandbox' AS sandbox,
       coalesce(model_served, model_asked, family(path)) AS model,
       count(*),
       coalesce(sum(input_tokens), 0),
       coalesce(sum(output_tokens), 0),
       coalesce(sum(cache_read_tokens), 0),
       coalesce(sum(cache_write_5m_tokens), 0) + coalesce(sum(cache_write_1h_tokens), 0),
       coalesce(sum(cost_nano), 0),
       sum(certainty = 'unpriced'),
       sum(certainty = 'estimated' AND ended != 'open'),
       sum(certainty = 'partial' AND ended != 'open'),
       sum(ended = 'open')
  FROM exchange
 WHERE accepted_us >= ? AND accepted_us < ?
 GROUP BY sandbox, model
 ORDER BY sandbox, model
"""


@dataclass(frozen=True, slots=True)
class DayModel:
    """What one model came to on one day.

    `model` is the one that served, else the one that was asked for, else, for calls without a model, the path up to the
    first id in it.
    `sandbox` tells money that nobody spent. `cache_write_tokens` joins both lifetimes. Of the `exchanges`, `unpriced`
    have tokens whose price is not known and are not in `cost_nano`; `estimated` and `partial` have ended without the
    upstream's final word; `open` have not ended.
    """

    day: date
    sandbox: bool
    model: str
    exchanges: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_nano: int
    unpriced: int
    estimated: int
    partial: int
    open: int


def exchange(path: Path, exchange_id: str) -> dict[str, Any] | None:
    """One row in full, by its id or by the beginning of its id.

    Returns:
        The columns by name, `tags` as a list and `stream` as a bool; None where no row has that id.

    Raises:
        ValueError: the beginning is shorter than `ID_PREFIX_MIN`, or fits several rows.
    """
    prefix = exchange_id.strip().lower()
    if len(prefix) < ID_PREFIX_MIN:
        raise ValueError(f"give at least the first {ID_PREFIX_MIN} characters of the id")
    with reading(path) as connection:
        # 'g' follows every character of an id.
        rows = connection.execute(
            "SELECT * FROM exchange WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2", (prefix,)
        ).fetchall()
    if len(rows) > 1:
        raise ValueError(f"several exchanges begin with {prefix}: give more of the id")
    return _values(rows[0]) if rows else None


def recent(path: Path, limit: int = 20) -> list[dict[str, Any]]:
    """The `limit` exchanges that were accepted last, newest first, each as `exchange` gives it."""
    with reading(path) as connection:
        rows = connection.execute(
            "SELECT * FROM exchange ORDER BY accepted_us DESC, id DESC LIMIT ?", (limit,)
        ).fetchall()
    return [_values(row) for row in rows]


def spend_by_day(
    path: Path, since_us: int | None = None, until_us: int | None = None, tz: str = "UTC"
) -> list[DayModel]:
    """Spend by day and model, in that order.

    Args:
        path: the ledger's file.
        since_us, until_us: only what was accepted from the first on and before the second.
        tz: the IANA name of the time zone whose days are meant.

    Raises:
        zoneinfo.ZoneInfoNotFoundError: there is no such time zone.
    """
    zone = ZoneInfo(tz)
    start = 0 if since_us is None else since_us
    end = _LATEST_US if until_us is None else until_us
    found: list[DayModel] = []
    with reading(path) as connection:
        while True:
            (first,) = connection.execute(
                "SELECT min(accepted_us) FROM exchange WHERE accepted_us >= ? AND accepted_us < ?", (start, end)
            ).fetchone()
            if first is None:
                return found
            day = (_EPOCH + timedelta(microseconds=first)).astimezone(zone).date()
            next_start = min(_midnight_us(day + timedelta(days=1), zone), end)
            for row in connection.execute(_SPEND, (first, next_start)):
                found.append(DayModel(day, bool(row[0]), *row[1:]))
            start = next_start


def _midnight_us(day: date, zone: ZoneInfo) -> int:
    """The first instant of a day. Where the clocks skip its midnight, that is the instant of the change."""
    return (datetime.combine(day, time(), zone).astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


def _family(path: str) -> str:
    """`/v1/messages/batches/msgbatch_01/results` is one of `/v1/messages/batches`: ids would make a row each."""
    match = re.match(r"/v\d+(/[a-z_]+(?=/|$))*", path)
    return match[0] if match else path


def _values(row: sqlite3.Row) -> dict[str, Any]:
    values = dict(row)
    values["tags"] = json.loads(values["tags"])
    if values["stream"] is not None:
        values["stream"] = bool(values["stream"])
    return values


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A read transaction on a connection that cannot write, once the file is known to be a ledger."""
    if not path.is_file():
        raise LedgerUnusable(f"{path}: there is no such file; nothing has been served with this database yet")
    try:
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS, isolation_level=None
        )
        try:
            connection.create_function("family", 1, _family, deterministic=True)
            connection.execute("BEGIN")
            check(connection)
            connection.row_factory = sqlite3.Row
            yield connection
        finally:
            connection.close()
    except (LedgerUnusable, sqlite3.Error) as fault:
        raise LedgerUnusable(f"{path}: {fault}") from fault
