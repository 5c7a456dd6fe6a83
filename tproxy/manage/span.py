"""Days as they come in queries: `2026-11-25`, or `7d` for the last seven days, today included. All are days of UTC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Final

from fastapi import Query
from pydantic import BeforeValidator

from tproxy.manage.faults import Unprocessable

DAYS_MAX: Final = 1_100  # three years

_EPOCH: Final = date(1970, 1, 1)
_DAY_US: Final = 86_400_000_000
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME: Final = re.compile(r"[T ][0-9:.]+(Z|[+-][0-9:]+)?$")
_AGO: Final = re.compile(r"([1-9][0-9]{0,3})([dw])")


def _date(text: str) -> date:
    if not _DAY.fullmatch(text):
        raise ValueError("must be a day such as 2026-11-25")
    return date.fromisoformat(text)


def _day(value: object) -> object:
    """What stands for one day. Clients also send it with a time, of which the day counts."""
    if not isinstance(value, str):
        return value
    try:
        return _date(_TIME.sub("", value))
    except ValueError:
        raise ValueError("must be a day such as 2026-11-25") from None


Day = Annotated[date | None, BeforeValidator(_day), Query()]


@dataclass(frozen=True, slots=True)
class Span:
    """From the first day to the last, both included; None is without that bound."""

    first: date | None = None
    last: date | None = None

    @property
    def since(self) -> str | None:
        return None if self.first is None else self.first.isoformat()

    @property
    def until(self) -> str | None:
        return None if self.last is None else self.last.isoformat()

    @property
    def since_us(self) -> int | None:
        return None if self.first is None else (self.first - _EPOCH).days * _DAY_US

    @property
    def until_us(self) -> int | None:
        """The end of the last day."""
        return None if self.last is None else ((self.last - _EPOCH).days + 1) * _DAY_US


def span(first: date | None, last: date | None, last_name: str = "end_date") -> Span:
    """The days from `first` to `last`.

    Raises:
        Unprocessable: the last comes before the first, or more than `DAYS_MAX` days after it.
    """
    if first is not None and last is not None:
        if last < first:
            raise Unprocessable("must not be before the first day", param=last_name)
        if (last - first).days >= DAYS_MAX:
            raise Unprocessable(f"must be less than {DAYS_MAX} days after the first day", param=last_name)
    return Span(first, last)


def recent(now_us: int, days: int) -> Span:
    """So many days, of which today is the last."""
    last = today(now_us)
    return Span(last - timedelta(days=days - 1), last)


def today(now_us: int) -> date:
    """The day that holds `now_us`, in microseconds since the epoch."""
    return datetime.fromtimestamp(now_us // 1_000_000, UTC).date()


def first_day(text: str | None, now_us: int) -> date | None:
    """The first day of a span: a day, or how many days or weeks it has until today (`7d`, `2w`).

    Raises:
        Unprocessable: it is neither.
    """
    if text is None:
        return None
    if match := _AGO.fullmatch(text):
        number = int(match[1]) * (7 if match[2] == "w" else 1)
        return today(now_us) - timedelta(days=number - 1)
    try:
        return _date(text)
    except ValueError:
        raise Unprocessable("must be a day such as 2026-11-25, or a number of days such as 7d", param="since") from None
