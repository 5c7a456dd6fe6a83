"""The figures of a report, from the answer of `/spend/by/day`: exact, and checked against each other.

What is in no row (nobody's, or of those beyond the dearest) is a row of its own, `rest`, so that the rows add up to the
total to the nano-dollar. With tags they cannot: an exchange counts for each of its tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

from tproxy.manage.csv_text import Cell
from tproxy.money import to_dollars, usd

REST: Final = "(none or others)"
_COUNTS: Final = ("exchanges", "failures", "prompt_tokens", "completion_tokens", "spend_nano", "unpriced")
_NOT_COUNTED: Final = ("failures", "unpriced")  # what may be null


@dataclass(frozen=True, slots=True)
class Row:
    """What one came to, or all. A figure that is None was not counted."""

    id: str
    name: str
    exchanges: int = 0
    failures: int | None = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    spend_nano: int = 0
    unpriced: int | None = 0

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all others of a report; an id can be empty."""
        return self.id, self.name

    def as_sum(self) -> dict[str, Any]:
        """As the API gives it."""
        figures = {name: getattr(self, name) for name in _COUNTS}
        return {"id": self.id, "alias": self.name, "spend": to_dollars(self.spend_nano)} | figures

    def minus(self, rows: Sequence[Row]) -> Row:
        """What is left of it without `rows`."""
        left: dict[str, Any] = {}
        for name in _COUNTS:
            figures = [getattr(row, name) for row in (self, *rows)]
            known = None not in figures
            left[name] = max(figures[0] - sum(figures[1:]), 0) if known else None
        return Row("", REST, **left)


@dataclass(frozen=True, slots=True)
class Day:
    """What one day came to in all, and of those that have a row in the report."""

    day: date
    total: Row
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Report:
    """All figures, those that cost most first. `days` has every day of the span, also those without an exchange."""

    by: str
    first: date
    last: date
    rows: Sequence[Row]
    total: Row
    days: Sequence[Day]

    @property
    def overlaps(self) -> bool:
        """Can one exchange be in several rows?"""
        return self.by == "tag"

    @property
    def unpriced(self) -> int:
        """How many exchanges have tokens that are in no figure of money, as far as it was counted."""
        return sum(day.total.unpriced or 0 for day in self.days)


def figures_of(answer: Any, by: str, first: date, last: date) -> Report:
    """The report in an answer of `/spend/by/day`.

    Raises:
        ValueError: it is none, or its figures do not agree.
    """
    if not isinstance(answer, dict):
        raise ValueError("no object")
    total = _row(answer.get("total"), name="all exchanges")
    rows = [_row(row) for row in _list(answer.get("rows"))]
    names = {row.id: row.name for row in rows}
    by_day = {}
    for entry in _list(answer.get("days")):
        theirs = [_row(row, name=names.get(str(_dict(row).get("id")))) for row in _list(entry.get("rows"))]
        all_of_day = _row(entry, name="all exchanges")
        try:
            on = date.fromisoformat(str(entry.get("day")))
        except ValueError:
            raise ValueError("a day that is none") from None
        if by != "tag":
            theirs = _whole(theirs, all_of_day)
        by_day[on] = Day(on, all_of_day, theirs)
    if sum(day.total.spend_nano for day in by_day.values()) != total.spend_nano:
        raise ValueError("the days do not add up to the total")
    if by != "tag":
        rows = _whole(rows, total)
    nothing = Row("", "all exchanges")
    span = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    days = [by_day.get(on, Day(on, nothing, ())) for on in span]
    return Report(by, first, last, rows, total, days)


def table_of(report: Report) -> tuple[Sequence[str], list[Sequence[Cell]]]:
    """The columns and the lines of a report for programs: one for each day and group."""
    columns = ("day", report.by, "name", "exchanges", "failures", "prompt_tokens", "completion_tokens")
    rows: list[Sequence[Cell]] = [
        (
            day.day.isoformat(),
            row.id,
            row.name,
            row.exchanges,
            row.failures,
            row.prompt_tokens,
            row.completion_tokens,
            row.spend_nano,
            usd(row.spend_nano),
            row.unpriced,
        )
        for day in report.days
        for row in day.rows
    ]
    return (*columns, "spend_nano", "spend_usd", "unpriced"), rows


def _whole(rows: list[Row], total: Row) -> list[Row]:
    """The rows, with one more for what is in none of them.

    Raises:
        ValueError: they come to more than the total.
    """
    if sum(row.spend_nano for row in rows) > total.spend_nano:
        raise ValueError("the rows come to more than the total")
    rest = total.minus(rows)
    return [*rows, rest] if rest.exchanges or rest.spend_nano else rows


def _row(value: Any, *, name: str | None = None) -> Row:
    """One row.

    Raises:
        ValueError: it is none.
    """
    row = _dict(value)
    figures: dict[str, Any] = {}
    for field in _COUNTS:
        figure = row.get(field)
        if isinstance(figure, bool) or not (isinstance(figure, int) or (figure is None and field in _NOT_COUNTED)):
            raise ValueError(f"no figure in {field}")
        figures[field] = figure
    id = row.get("id", "")
    alias = row.get("alias")
    if not isinstance(id, str) or not (alias is None or isinstance(alias, str)):
        raise ValueError("a name that is none")
    return Row(id, name or alias or id or "(none)", **figures)


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a row that is none")
    return value


def _list(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError("no rows")
    return [_dict(entry) for entry in value]
