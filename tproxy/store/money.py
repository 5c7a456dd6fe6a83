"""The budgets of subjects and the sums of what was spent, as an operator sets and reads them.

A budget is one limit of one subject over one period. `spent` is what was booked since its period began, `held` is what
running exchanges hold of it (`claims`). A period that has ended is begun anew when the budget is next claimed or
booked upon, not by a clock; whoever only reads is shown it as if that had happened.

Functions on a connection, within a transaction of the caller. Those that set figures are for the ledger's thread:
`SqliteLedger.write`. Those that read may be used by any connection.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import msgspec

from tproxy.period import next_reset
from tproxy.store.base import Standing
from tproxy.store.subjects import KEY, Subject

FIGURE_MAX = (1 << 63) - 1  # what a column can hold: a figure stays there rather than fail its row

_COLUMNS = "id, kind, subject, period, limit_nano, soft_nano, cut, spent_nano, held_nano, started_us, reset_us"
_OF_ONE = f"SELECT {_COLUMNS} FROM budget WHERE kind = ? AND subject = ? ORDER BY position"  # noqa: S608
_ONE = f"SELECT {_COLUMNS} FROM budget WHERE id = ?"  # noqa: S608
_OF_MANY = (
    f"SELECT {_COLUMNS} FROM budget WHERE kind = ? AND subject IN (SELECT value FROM json_each(?)) "  # noqa: S608
    "ORDER BY subject, position"
)
_TALLIES = """
SELECT id, exchanges, prompt_tokens, completion_tokens, cost_nano, written_off_nano, expected_exchanges, expected_nano,
       expected_cost_nano, expected_error_nano, last_us
  FROM tally WHERE kind = ? AND id IN (SELECT value FROM json_each(?))
"""


class Row(msgspec.Struct, frozen=True, gc=False):
    """One row of the table `budget`."""

    id: int
    kind: str
    subject: str
    period: str
    limit_nano: int | None
    soft_nano: int | None
    cut: int
    spent_nano: int
    held_nano: int
    started_us: int
    reset_us: int | None

    def standing(self, *, spent: int | None = None, held: int | None = None) -> Standing:
        """How it stands, with other figures than those of the row where they are given."""
        return Standing(
            kind=self.kind,
            subject=self.subject,
            period=self.period or None,
            limit_nano=self.limit_nano,
            soft_nano=self.soft_nano,
            spent_nano=self.spent_nano if spent is None else spent,
            held_nano=self.held_nano if held is None else held,
            reset_us=self.reset_us,
        )


@dataclass(frozen=True, slots=True)
class Tally:
    """What all exchanges of one id came to: those that have ended.

    The `expected_` figures are of those whose cost was expected at admission and is exact: how many, what was expected,
    what they cost, and by how much the two differ, each difference taken as positive. `last_us` is when the last one
    ended.
    """

    exchanges: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nano: int = 0
    written_off_nano: int = 0
    expected_exchanges: int = 0
    expected_nano: int = 0
    expected_cost_nano: int = 0
    expected_error_nano: int = 0
    last_us: int = 0

    @property
    def visible_nano(self) -> int:
        """The cost that people are shown: a reset or a set of the figure is in it."""
        return self.cost_nano - self.written_off_nano


def tally_id(kind: str, id: str) -> tuple[str, str]:
    """The kind and id in `tally` of what a subject was billed for."""
    return ("caller", f"key:{id}") if kind == KEY else (kind, id)


def set_budgets(connection: sqlite3.Connection, subject: Subject, now_us: int, zone: ZoneInfo) -> None:
    """Make the budgets of `subject` those of its terms.

    Of a period that it had before, what is spent and held and when it began are kept, whatever the new limit is. A
    budget whose period was changed, so that another one stands in its place, keeps what is spent and held, and its new
    period begins now. Other budgets go, with what is held of them. One that is added has nothing spent; the running
    exchanges that hold some of the subject's other budgets hold as much of it, and are booked on it too.
    """
    terms = subject.terms
    wanted = [budget.period or "" for budget in terms.budgets]
    before = budgets(connection, subject.kind, subject.id, now_us, zone)
    had = {row.period for row in before}
    held = _reservations(connection, before) if set(wanted) - had else []
    for row, period in zip(before, wanted, strict=False):
        if row.period not in wanted and period not in had:
            connection.execute(
                "UPDATE budget SET period = ?, started_us = ?, reset_us = ? WHERE id = ?",
                (period, now_us, _reset_us(period, now_us, zone), row.id),
            )
            had.add(period)
    _delete(connection, subject.kind, subject.id, wanted)
    for position, budget in enumerate(terms.budgets):
        period = budget.period or ""
        [(id,)] = connection.execute(
            "INSERT INTO budget (kind, subject, period, position, limit_nano, soft_nano, cut, started_us, reset_us) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, subject, period) DO UPDATE SET "
            "position = excluded.position, limit_nano = excluded.limit_nano, soft_nano = excluded.soft_nano, "
            "cut = excluded.cut RETURNING id",
            (
                subject.kind,
                subject.id,
                period,
                position,
                budget.limit_nano,
                budget.soft_nano,
                terms.cut,
                now_us,
                _reset_us(period, now_us, zone),
            ),
        ).fetchall()
        if period not in had:
            _hold_too(connection, id, held)


def _reset_us(period: str, now_us: int, zone: ZoneInfo) -> int | None:
    return next_reset(period, now_us, now_us, zone) if period else None


def _reservations(connection: sqlite3.Connection, rows: Sequence[Row]) -> list[tuple[str, str, int]]:
    """Each exchange that holds some of these budgets, how, and how much of the one of which it holds most."""
    return connection.execute(
        "SELECT exchange, mode, max(amount_nano) FROM reservation "
        "WHERE budget IN (SELECT value FROM json_each(?)) GROUP BY exchange",
        (json.dumps([row.id for row in rows]),),
    ).fetchall()


def _hold_too(connection: sqlite3.Connection, budget: int, reservations: Sequence[tuple[str, str, int]]) -> None:
    total = 0
    for exchange, mode, amount in reservations:
        more = min(amount, FIGURE_MAX - total)
        total += more
        connection.execute(
            "INSERT INTO reservation (exchange, budget, mode, amount_nano) VALUES (?, ?, ?, ?)",
            (exchange, budget, mode, more),
        )
    connection.execute("UPDATE budget SET held_nano = ? WHERE id = ?", (total, budget))


def drop_budgets(connection: sqlite3.Connection, kind: str, id: str) -> None:
    """Delete the budgets of a subject, with what is held of them."""
    _delete(connection, kind, id, ())


def _delete(connection: sqlite3.Connection, kind: str, id: str, but: Sequence[str]) -> None:
    gone = "FROM budget WHERE kind = ? AND subject = ? AND period NOT IN (SELECT value FROM json_each(?))"
    values = (kind, id, json.dumps(but))
    if connection.execute(f"SELECT 1 {gone} LIMIT 1", values).fetchone():
        connection.execute(f"DELETE FROM reservation WHERE budget IN (SELECT id {gone})", values)  # noqa: S608
        connection.execute(f"DELETE {gone}", values)


def standings(
    connection: sqlite3.Connection, kind: str, ids: Sequence[str], now_us: int, zone: ZoneInfo
) -> dict[str, list[Standing]]:
    """How the budgets of some subjects of one kind stand, each subject's in the order in which they were set.

    Every id that was asked for is there; one without a budget has an empty list.
    """
    found: dict[str, list[Standing]] = {id: [] for id in ids}
    for values in connection.execute(_OF_MANY, (kind, json.dumps(ids))):
        row = current(Row(*values), now_us, zone)
        found[row.subject].append(row.standing())
    return found


def set_spent(connection: sqlite3.Connection, kind: str, id: str, spent_nano: int, now_us: int, zone: ZoneInfo) -> None:
    """Let the figure of a subject be `spent_nano`: of all its budgets in their present periods, and of its tally.

    The rows of exchanges, the sums by day and `Tally.cost_nano` stay as they are.
    """
    for row in budgets(connection, kind, id, now_us, zone):
        connection.execute("UPDATE budget SET spent_nano = ? WHERE id = ?", (spent_nano, row.id))
    connection.execute(
        "INSERT INTO tally (kind, id, written_off_nano) VALUES (?, ?, ?) "
        "ON CONFLICT (kind, id) DO UPDATE SET written_off_nano = cost_nano + excluded.written_off_nano",
        (*tally_id(kind, id), -spent_nano),
    )


def tallies(connection: sqlite3.Connection, kind: str, ids: Sequence[str]) -> dict[str, Tally]:
    """The tallies of some ids of one kind of `tally` (`caller`, whose ids are like `key:<hash>`, `team`, …).

    Every id that was asked for is there.
    """
    found = dict.fromkeys(ids, Tally())
    for id, *figures in connection.execute(_TALLIES, (kind, json.dumps(ids))):
        found[id] = Tally(*figures)
    return found


def held(connection: sqlite3.Connection) -> tuple[dict[str, int], int]:
    """What running exchanges hold of all budgets, by the kind of the subject, as far as anything is; and how many
    reservations there are."""
    found: dict[str, int] = {}
    for kind, amount in connection.execute("SELECT kind, held_nano FROM budget WHERE held_nano != 0"):
        found[kind] = found.get(kind, 0) + amount
    (count,) = connection.execute("SELECT count(*) FROM reservation").fetchone()
    return found, count


def budgets(connection: sqlite3.Connection, kind: str, id: str, now_us: int, zone: ZoneInfo) -> list[Row]:
    """The budgets of one subject in their present periods: those that have ended are begun anew, in the table too."""
    return [_rolled(connection, row, now_us, zone) for row in rows_of(connection, kind, id)]


def rows_of(connection: sqlite3.Connection, kind: str, id: str) -> list[Row]:
    """The budgets of one subject as they are in the table, in the order in which they were set."""
    return [Row(*values) for values in connection.execute(_OF_ONE, (kind, id))]


def row(connection: sqlite3.Connection, id: int) -> Row:
    """One budget that is there, as it is in the table."""
    return Row(*connection.execute(_ONE, (id,)).fetchone())


def _rolled(connection: sqlite3.Connection, row: Row, now_us: int, zone: ZoneInfo) -> Row:
    if row.reset_us is None or row.reset_us > now_us:
        return row
    row = current(row, now_us, zone)
    connection.execute(
        "UPDATE budget SET spent_nano = 0, started_us = ?, reset_us = ? WHERE id = ?",
        (row.started_us, row.reset_us, row.id),
    )
    return row


def current(row: Row, now_us: int, zone: ZoneInfo) -> Row:
    """The same budget in the period that holds `now_us`. What is held stays: those who hold it still run."""
    if row.reset_us is None or row.reset_us > now_us:
        return row
    reset_us = next_reset(row.period, now_us, row.reset_us, zone)
    return msgspec.structs.replace(row, spent_nano=0, started_us=row.reset_us, reset_us=reset_us)
